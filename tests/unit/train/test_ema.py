"""The moving average: its arithmetic against numpy, buffers and counters, and that the network is restored."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from train.ema import Ema, EmaConfig


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train(model: nn.Module) -> None:
    """Changes weights, statistics and the counter."""
    model(torch.randn(5, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("warmup", [True, False])
def test_arithmetic(warmup: bool) -> None:
    model = network()
    ema = Ema(model, EmaConfig(decay=0.9, warmup=warmup))
    mean = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    for step in range(1, 130):
        train(model)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        for name, tensor in model.state_dict().items():
            live = tensor.numpy()
            mean[name] = decay * mean[name] + (1 - decay) * live if tensor.is_floating_point() else live.copy()
    for name, tensor in ema.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), mean[name], rtol=1e-5, atol=1e-6)
    assert int(ema.state_dict()["1.num_batches_tracked"]) == 129


def test_applied_and_taken_back_even_after_an_error() -> None:
    model = network()
    ema = Ema(model, EmaConfig(decay=0.5))
    train(model)
    ema.update(1)
    own, places = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), ema.applied():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, ema.state_dict()[name])
        assert places == [p.data_ptr() for p in model.parameters()]  # a compiled network and CUDA graphs need that
        raise ZeroDivisionError
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(own["0.weight"], ema.state_dict()["0.weight"])


def test_state_goes_round() -> None:
    model = network()
    first, second = Ema(model, EmaConfig(decay=0.5)), Ema(network(), EmaConfig(decay=0.5))
    train(model)
    first.update(1)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])


def test_settings() -> None:
    assert EmaConfig().decay is None
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"ema\.decay"):
            EmaConfig(decay=wrong)
