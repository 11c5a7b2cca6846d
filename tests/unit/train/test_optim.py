"""The optimizer against SGD written out in float64, its parameter groups, and the errors of the settings."""

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipelines.errors import UserError
from train.optim import OptimConfig, build_optimizer, describe_scaling, scaled_lr
from train.run.optimizer_state import optimizer_tensors, restore_optimizer

LR, MOMENTUM, DECAY = 0.3, 0.9, 0.05


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().double()


def settings(**changes: Any) -> OptimConfig:
    return OptimConfig(**({"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY} | changes))


def gradients(step: int, model: nn.Module) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(step)
    return {name: rng.standard_normal(tuple(p.shape)) for name, p in model.named_parameters()}


def sgd_by_hand(model: nn.Module, steps: int, nesterov: bool, undecayed: set[str]) -> dict[str, np.ndarray]:
    """g += decay * w; v = momentum * v + g; w -= lr * (g + momentum * v with Nesterov, else v)."""
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    velocity = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step in range(steps):
        for name, gradient in gradients(step, model).items():
            gradient = gradient + (0 if name in undecayed else DECAY) * weights[name]
            velocity[name] = MOMENTUM * velocity[name] + gradient
            update = gradient + MOMENTUM * velocity[name] if nesterov else velocity[name]
            weights[name] = weights[name] - LR * update
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("no_decay", "undecayed"),
    [
        ([], set()),
        (["bn"], {"bn1.weight", "bn1.bias"}),
        (["bn", r"bias$"], {"bn1.weight", "bn1.bias", "fc.bias"}),
        (["."], {"conv1.weight", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias"}),
    ],
)
def test_two_steps_equal_sgd_by_hand(nesterov: bool, no_decay: list[str], undecayed: set[str]) -> None:
    model = tiny()
    expected = sgd_by_hand(model, 2, nesterov, undecayed)
    optimizer = build_optimizer(model, settings(nesterov=nesterov, no_decay=no_decay))
    for step in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients(step, model)[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-12, atol=1e-14)


def test_a_gpu_gets_the_fused_update_unless_steps_are_skipped() -> None:
    """A momentum that torch's fused SGD begins in a skipped step is whatever memory held; AdamW's means begin at 0."""
    with FakeTensorMode():
        model = nn.ParameterList([torch.empty(3, device="cuda")])
        sgd, adamw = settings(), settings(name="adamw")
        kinds = ((sgd, False), (sgd, True), (adamw, False), (adamw, True))
        found = [build_optimizer(model, config, scaled).param_groups[0]["fused"] for config, scaled in kinds]
    assert found == [True, None, True, True]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_fused_update_of_a_gpu_is_the_same_formula(nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has it on a CPU too, where it is not used: it would round otherwise than before."""
    assert build_optimizer(tiny(), settings()).param_groups[0]["fused"] is None
    monkeypatch.setattr("train.optim._fused", lambda parameters: True)
    model = tiny()
    expected = sgd_by_hand(model, 3, nesterov, {"bn1.weight", "bn1.bias"})
    optimizer = build_optimizer(model, settings(nesterov=nesterov, no_decay=["bn"]))
    assert all(group["fused"] for group in optimizer.param_groups)
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients(step, model)[name])
        if step:  # as after a resume
            restore_optimizer(model, optimizer, optimizer_tensors(model, optimizer))
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("no_decay", [[], ["bn"], ["bn1", "bn", "bias"], ["."]])
def test_every_parameter_is_in_exactly_one_group(no_decay: list[str]) -> None:
    model = tiny()
    optimizer = build_optimizer(model, settings(no_decay=no_decay))
    ids = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in model.parameters()}
    assert all(group["params"] and group["lr"] == LR for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    model.fc.requires_grad_(False)
    optimizer = build_optimizer(model, settings())
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]


def test_a_pattern_that_finds_nothing_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"optim\.no_decay: 'batchnorm' .*conv1\.weight.*fc\.bias"):
        build_optimizer(tiny(), settings(no_decay=["bn", "batchnorm"]))


@pytest.mark.parametrize(
    ("changes", "rate", "line"),
    [
        ({}, 0.3, None),
        ({"lr_base_batch": 64}, 0.3, None),
        ({"lr_scale": "linear"}, 1.2, "learning rate 1.2 = optim.lr 0.3 x 1024 / 256 (optim.lr_scale=linear)"),
        ({"lr_scale": "sqrt"}, 0.6, "learning rate 0.6 = optim.lr 0.3 x sqrt(1024 / 256) (optim.lr_scale=sqrt)"),
        ({"lr_scale": "linear", "lr_base_batch": 2048}, 0.15, "x 1024 / 2048"),
    ],
)
def test_the_rate_is_scaled_to_the_batch_where_asked_for(changes: dict, rate: float, line: str | None) -> None:
    config = settings(batch=1024, **changes)
    assert scaled_lr(config) == pytest.approx(rate, rel=1e-12)
    assert build_optimizer(tiny(), config).param_groups[0]["lr"] == scaled_lr(config)
    said = describe_scaling(config)
    assert said is None if line is None else line in str(said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"optim\.lr=0\.0"),
        ({"lr": float("nan")}, r"optim\.lr=nan"),
        ({"momentum": 1.0}, r"optim\.momentum=1\.0"),
        ({"momentum": -0.1}, r"optim\.momentum"),
        ({"nesterov": True, "momentum": 0.0}, r"optim\.nesterov=true with optim\.momentum=0"),
        ({"weight_decay": -1e-4}, r"optim\.weight_decay"),
        ({"clip": 0.0}, r"optim\.clip=0\.0"),
        ({"lr_base_batch": 0}, r"optim\.lr_base_batch=0"),
        ({"batch": 0}, r"optim\.batch=0"),
        ({"accumulate": 0}, r"optim\.accumulate=0"),
        ({"batch": 128, "accumulate": 3}, r"optim\.batch=128, optim\.accumulate=3"),
        ({"no_decay": ["bn", "(bias"]}, r"optim\.no_decay: '\(bias' is no regular expression"),
    ],
)
def test_wrong_settings_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_the_settings_are_omegaconf_structured() -> None:
    schema = OmegaConf.structured(OptimConfig)
    merged = OmegaConf.merge(schema, {"clip": 1, "no_decay": ["bn"], "nesterov": True})
    assert OmegaConf.to_object(merged) == OptimConfig(clip=1.0, no_decay=["bn"], nesterov=True)
    assert OmegaConf.to_object(schema) == OptimConfig() and OptimConfig().clip is None
