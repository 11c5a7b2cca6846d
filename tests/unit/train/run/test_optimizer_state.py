from pathlib import Path

import pytest
import torch
from helpers.tensors import assert_same
from torch import nn

from pipelines.errors import UserError
from train.run.checkpoint import Keep, load_latest, save
from train.run.optimizer_state import optimizer_tensors, restore_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).to(
        memory_format=torch.channels_last
    )


def optimizers(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": others, "weight_decay": 0.0},
        {"params": weights, "weight_decay": 1e-2},
    ]  # not the model's order
    return {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
        "plain": lambda: torch.optim.SGD(groups, lr=0.1),
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-3),
    }[kind]()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, frozen: str | None = None) -> None:
    for step in steps:
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        if frozen is not None:
            model.get_parameter(frozen).grad = None
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "plain", "adamw"])
@pytest.mark.parametrize("frozen", [None, "4.bias"])
def test_six_steps_are_three_and_three(tmp_path: Path, kind: str, frozen: str | None):
    """frozen: a parameter without gradient, so without optimizer state, before the checkpoint."""
    whole = network()
    optimizer = optimizers(kind, whole)
    train(whole, optimizer, range(3), frozen)
    train(whole, optimizer, range(3, 6))

    first = network()
    optimizer_1 = optimizers(kind, first)
    train(first, optimizer_1, range(3), frozen)
    save(
        tmp_path,
        3,
        {"model": first.state_dict(), "optimizer": optimizer_tensors(first, optimizer_1)},
        {},
        keep=Keep(1),
    )

    second = network()
    optimizer_2 = optimizers(kind, second)
    train(second, optimizer_2, range(10, 12))  # state from a different history, which must be replaced
    loaded = load_latest(tmp_path)
    assert loaded is not None
    second.load_state_dict(loaded.tensors["model"])
    restore_optimizer(second, optimizer_2, loaded.tensors["optimizer"])
    assert_same({"o": optimizer_tensors(second, optimizer_2)}, {"o": loaded.tensors["optimizer"]})
    train(second, optimizer_2, range(3, 6))

    assert_same({"m": dict(second.state_dict())}, {"m": dict(whole.state_dict())})
    assert_same({"o": optimizer_tensors(second, optimizer_2)}, {"o": optimizer_tensors(whole, optimizer)})


def test_names_and_memory_format_of_optimizer_tensors():
    model = network()
    optimizer = optimizers("sgd", model)
    assert optimizer_tensors(model, optimizer) == {}
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(model, optimizer)
    assert set(tensors) == {f"{name}/momentum_buffer" for name, _ in model.named_parameters()}
    restore_optimizer(model, optimizer, {name: tensor.contiguous() for name, tensor in tensors.items()})
    buffer = optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"]
    assert buffer.is_contiguous(memory_format=torch.channels_last)


def test_state_that_does_not_fit_is_refused():
    model = network()
    optimizer = optimizers("sgd", model)
    with pytest.raises(UserError, match="state for '9.weight', which this model does not train"):
        restore_optimizer(model, optimizer, {"9.weight/momentum_buffer": torch.zeros(3)})
    with pytest.raises(UserError, match=r"'4.bias' has shape \[3\], the parameter \[5\]"):
        restore_optimizer(model, optimizer, {"4.bias/momentum_buffer": torch.zeros(3)})
    optimizer.state[model.get_parameter("4.bias")]["count"] = 3
    with pytest.raises(TypeError, match="'count' of 4.bias is a int"):
        optimizer_tensors(model, optimizer)


@pytest.mark.parametrize(
    "theirs, own, held", [("sgd", "adamw", "momentum_buffer"), ("adamw", "sgd", "exp_avg, exp_avg_sq, step")]
)
def test_the_state_of_another_optimizer_is_refused(theirs: str, own: str, held: str):
    model = network()
    before, after = optimizers(theirs, model), optimizers(own, model)
    train(model, before, range(1))
    words = rf"another optimizer \(it holds {held}\).* optim.name={own}: type optim.name={theirs}, or model.init=RUN"
    with pytest.raises(UserError, match=words):
        restore_optimizer(model, after, optimizer_tensors(model, before))
    assert not after.state
