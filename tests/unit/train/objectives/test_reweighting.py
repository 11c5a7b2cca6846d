"""What is computed from the class counts: margins, class weights and temperatures against forms written with numpy in float64."""

import numpy as np
import pytest
import torch

from pipelines.errors import UserError
from train.objectives.reweighting import class_weights, diversity_temperatures, margins

COUNTS = np.array([500, 120, 40, 9, 2])
LONG_TAIL = np.array([int(500 * 0.01 ** (i / 99)) for i in range(100)])


@pytest.mark.parametrize("counts", [COUNTS, COUNTS[::-1].copy(), LONG_TAIL])
def test_margins(counts: np.ndarray) -> None:
    expected = 0.5 * (counts.min() / counts) ** 0.25
    np.testing.assert_allclose(margins(counts, 0.5).numpy(), expected, rtol=1e-6)
    assert margins(counts, 0.5).max() == 0.5 and not margins(counts, 0).any()
    assert margins(np.full(4, 7), 0.3).tolist() == pytest.approx([0.3] * 4)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("counts", [COUNTS, LONG_TAIL])
def test_class_weights_are_those_of_the_published_code_on_another_scale(counts: np.ndarray, beta: float) -> None:
    """There they sum to C, but only their ratios matter, as the sum of the weights divides; here their mean over images is 1."""
    effective = np.array([sum(beta**i for i in range(n)) for n in counts])  # 1 + beta + ... + beta^(n-1)
    published = (1 / effective) / (1 / effective).sum() * len(counts)
    assert published.sum() == pytest.approx(len(counts))
    weights = class_weights(counts, beta).double().numpy()
    np.testing.assert_allclose(weights / weights[0], published / published[0], rtol=1e-6)
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-6)
    assert (np.diff(weights[np.argsort(-counts, kind="stable")]) >= 0).all() and weights.max() > 2 * weights.min()


def test_limits_of_the_class_weights() -> None:
    assert torch.equal(class_weights(np.full(4, 30), 0.9999), torch.ones(4))
    assert torch.equal(class_weights(COUNTS, 0), torch.ones(5))
    by_count = class_weights(COUNTS, 1 - 1e-9).double().numpy()  # towards 1 / n_j
    np.testing.assert_allclose(by_count * COUNTS, (by_count * COUNTS).mean() * np.ones(5), rtol=1e-5)


@pytest.mark.parametrize("eta", [0.05, 0.02, 1.0])
def test_temperatures(eta: float) -> None:
    share = LONG_TAIL / LONG_TAIL.sum()
    raised = eta * 100 * share + 1 - eta
    found = diversity_temperatures(LONG_TAIL, eta)
    np.testing.assert_allclose(found.numpy(), raised / raised[0], rtol=1e-6)
    assert found[0] == 1 and (found.diff() <= 0).all() and 0 < found[-1] < 1
    assert torch.equal(diversity_temperatures(LONG_TAIL, 0), torch.ones(100))
    assert torch.equal(diversity_temperatures(np.full(4, 30), eta), torch.ones(4))
    assert diversity_temperatures(np.array([3, 0]), 0.5).isfinite().all()


def test_a_class_without_images_is_refused() -> None:
    for compute in (lambda counts: margins(counts, 0.5), lambda counts: class_weights(counts, 0.9999)):
        with pytest.raises(UserError, match=r"class 1 has no training images \(1 of 3 classes"):
            compute(np.array([3, 0, 1]))
