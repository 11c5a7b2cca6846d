"""The cosine head against its formula: directions alone count, in full precision, with gradients that stay finite."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import CosineHead, LinearHead


def head(features: int = 5, classes: int = 4, scale: float = 30) -> CosineHead:
    torch.manual_seed(0)
    return CosineHead(features, classes, scale)


def test_logits_are_scaled_cosines_of_angles() -> None:
    made, x = head(scale=20).double(), torch.randn(3, 5, dtype=torch.float64)
    weight: Tensor = made.weight.detach() * 7  # their length is without meaning
    made.weight.data = weight
    found = made(x).detach()
    for i in range(3):
        for c in range(4):
            dot = sum(float(a) * float(b) for a, b in zip(x[i], weight[c], strict=True))
            expected = 20 * dot / math.sqrt(float((x[i] ** 2).sum()) * float((weight[c] ** 2).sum()))
            assert float(found[i, c]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(made(1000 * x), found)
    assert [name for name, _ in made.named_parameters()] == ["weight"]  # no bias


def test_a_vector_of_weights_itself_gets_the_scale() -> None:
    made = head(scale=30)
    assert torch.allclose(made(3 * made.weight.detach()).diagonal(), torch.tensor(30.0))


def test_initial_weights_are_uniform_directions_of_length_one() -> None:
    torch.manual_seed(0)
    weight = CosineHead(64, 500, 30).weight.detach()
    torch.manual_seed(0)
    drawn = torch.empty(500, 64).uniform_(-1, 1)
    torch.testing.assert_close(weight, drawn / drawn.square().sum(1, keepdim=True).sqrt())
    assert weight.shape == (500, 64)


def test_gradients_are_those_of_the_formula() -> None:
    made = head().double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def logits(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(logits, (x, made.weight))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6])
def test_features_of_nearly_zero_have_a_finite_gradient(size: float) -> None:
    made = head()
    x = torch.full((2, 5), size, requires_grad=True)
    logits = made(x)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert logits.isfinite().all() and (size > 0 or not logits.any())
    assert x.grad is not None and made.weight.grad is not None
    assert x.grad.isfinite().all() and made.weight.grad.isfinite().all()
    assert x.grad.abs().max() < 30 * 1e4  # the bound of 1 / the least norm


def test_it_is_computed_in_float32_under_autocast() -> None:
    made, x = head(64, 10), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert found.dtype == torch.float32 and torch.equal(found, made(x))
    assert made(x.bfloat16()).dtype == torch.float32


def test_a_linear_head_answers_in_full_precision_and_trains_in_that_of_the_network() -> None:
    """Equal logits in bfloat16 would count for the first class, which is the most frequent one where classes are sorted."""
    torch.manual_seed(0)
    made, x = LinearHead(64, 100), torch.randn(2000, 64)
    plain = torch.nn.Linear(64, 100)
    plain.load_state_dict(made.state_dict())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.train()(x).dtype == torch.bfloat16 and torch.equal(made(x), plain(x))
        logits = made.eval()(x)
    top = logits.topk(2).values
    assert logits.dtype == torch.float32 and torch.equal(logits, plain(x)) and bool((top[:, 0] > top[:, 1]).all())
    assert made.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16, "without autocast as the caller has it"
    assert made.to("meta")(x.to("meta")).shape == (2000, 100)
