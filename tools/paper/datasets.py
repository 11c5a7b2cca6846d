"""The data sets that tools/reproduce.py knows: how each is converted and trained on, and what the paper reports of it.

Owns the paper's figures. A further data set is a further row here. Invariant: no two data sets share a `name` or a `tag`;
everything that is kept or reported by data set is filed under `name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("ce", "bsce", "dive")
PAPER_SOURCE = "He, Wu, Wei, ICCV 2021 (arXiv 2103.15042), Table 1"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """tag: of its runs' and tasks' names; convert: arguments of tools/convert.py but those of places and workers.

    column, value: heading and cell that tell it from the other data sets of its table. configs: by method; settings: KEY=VALUE
    for all of its runs, where a configuration is of another data set. paper, public: top-1 in percent by method, of the paper
    and of the group's published code; each lacks some.
    """

    name: str
    tag: str
    column: str
    value: int | str
    convert: tuple[str, ...]
    configs: Mapping[str, Path]
    settings: tuple[str, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)
    public: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's name in a sentence, such as 'imbalance 100'."""
        return f"{self.column} {self.value}"

    @property
    def folder(self) -> str:
        """The folder of its records, below OUT."""
        return f"data/{self.name}"


def _cifar100_lt(
    imbalance: int, paper: tuple[float, float, float], public: Mapping[str, float] | None = None
) -> Dataset:
    """paper: of METHODS, on CIFAR-100-LT, ResNet-32, 200 epochs."""
    tag = f"if{imbalance}"
    return Dataset(
        name=f"cifar100_lt_{tag}",
        tag=tag,
        column="imbalance",
        value=imbalance,
        convert=("cifar100-lt", "--imbalance", str(imbalance)),
        configs={method: ROOT / "configs" / "cifar100_lt" / f"{method}_{tag}.yaml" for method in METHODS},
        paper=dict(zip(METHODS, paper, strict=True)),
        public=public or {},
    )


CIFAR100_LT = {  # by imbalance factor
    100: _cifar100_lt(100, (38.35, 42.39, 45.35), {"dive": 45.52}),
    50: _cifar100_lt(50, (42.41, 47.60, 51.13), {"dive": 50.83}),
    10: _cifar100_lt(10, (56.51, 58.38, 62.00)),
}
