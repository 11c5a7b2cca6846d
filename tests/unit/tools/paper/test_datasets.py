"""The paper's figures."""

from tools.paper.datasets import CIFAR100_LT


def test_the_papers_figures() -> None:
    """As in docs/method.md: Table 1."""
    table = {"ce": (38.35, 42.41, 56.51), "bsce": (42.39, 47.60, 58.38), "dive": (45.35, 51.13, 62.00)}
    for method, values in table.items():
        assert tuple(CIFAR100_LT[imbalance].paper[method] for imbalance in (100, 50, 10)) == values
