"""The divergence of experts from their mean: the closed form, its gradient, its sign, limits and extremes.

Shapes: B batch, E experts, C classes.
"""

import numpy as np
import pytest
import torch

from train.objectives.experts import divergence

B, E, C = 4, 3, 5
EXPERTS = 3 * np.random.RandomState(0).standard_normal((B, E, C))
MEAN = EXPERTS.mean(1)
TEMPERATURES = np.array([1.0, 0.9, 0.8, 0.7, 0.6])


def wide(array: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=grad)


def np_softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def np_divergence(experts: np.ndarray, mean: np.ndarray, temperatures: np.ndarray) -> float:
    target, total = np_softmax(mean / temperatures), 0.0
    for e in range(experts.shape[1]):
        given = np_softmax(experts[:, e] / temperatures)
        total += (target * np.log(target / given)).sum(1).mean()
    return total


@pytest.mark.parametrize("temperatures", [None, TEMPERATURES])
def test_it_is_the_closed_form(temperatures: np.ndarray | None) -> None:
    found = divergence(wide(EXPERTS), wide(MEAN), None if temperatures is None else wide(temperatures))
    expected = np_divergence(EXPERTS, MEAN, np.ones(C) if temperatures is None else temperatures)
    assert expected > 0.5 and found.item() == pytest.approx(expected, rel=1e-12)


def test_the_mean_gets_no_gradient() -> None:
    experts, mean = wide(EXPERTS, grad=True), wide(MEAN, grad=True)
    divergence(experts, mean, wide(TEMPERATURES)).backward()
    assert mean.grad is None and experts.grad is not None
    own, target = np_softmax(EXPERTS / TEMPERATURES), np_softmax(MEAN / TEMPERATURES)
    expected = (own - target[:, None]) / TEMPERATURES / B
    torch.testing.assert_close(experts.grad, wide(expected), rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda e: divergence(e, wide(MEAN)), (wide(EXPERTS, grad=True),))


def test_a_negative_weight_drives_experts_apart() -> None:
    experts = wide(EXPERTS, grad=True)
    (gradient,) = torch.autograd.grad(divergence(experts, experts.mean(1)), experts)
    for weight in (-0.2, 0.2):
        moved = experts.detach() - 0.1 * weight * gradient
        change = (divergence(moved, moved.mean(1)) - divergence(experts, experts.mean(1))).item()
        assert change * weight < 0, "descent on weight * divergence raises the divergence when the weight is negative"


def test_equal_experts_do_not_diverge() -> None:
    same = wide(np.repeat(EXPERTS[:, :1], E, axis=1), grad=True)
    alone = wide(EXPERTS[:, :1], grad=True)
    for experts in (same, alone):
        loss = divergence(experts, experts.mean(1))
        (gradient,) = torch.autograd.grad(loss, experts)
        assert abs(loss.item()) < 1e-14 and gradient.abs().max() < 1e-15


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.bfloat16, 1e30), (torch.float16, 6e4)])
def test_extreme_logits_stay_finite(dtype: torch.dtype, size: float) -> None:
    experts = torch.tensor(np.sign(EXPERTS) * size).to(dtype).requires_grad_()
    loss = divergence(experts, experts.float().mean(1), wide(TEMPERATURES).float())
    (gradient,) = torch.autograd.grad(loss, experts)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()
