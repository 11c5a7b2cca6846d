"""The training step against a loop written by hand: accumulated, clipped, averaged, with a frozen trunk."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_model, set_training
from pipelines.batch import Batch
from train.ema import Ema, EmaConfig
from train.meters import Meters
from train.objectives.methods import DistillConfig, Given
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.step import TrainStep

B, C = 8, 5


def network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet8", C)
    set_training(model)
    return model


def batch(number: int, device: str = "cpu") -> Batch:
    rng = torch.Generator().manual_seed(number)
    images, labels = torch.randn(B, 3, 8, 8, generator=rng).to(device), (torch.arange(B) % C).to(device)
    return Batch(images, labels, np.arange(B), np.zeros(B, np.int32), torch.zeros(B, 8, 8, 3))


def objective(device: str = "cpu") -> Objective:
    return Objective(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64, device=device), None)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip": 0.1}, {"accumulate": 4, "clip": 0.1}])
def test_three_steps_are_those_of_a_loop_by_hand(settings: dict) -> None:
    config = OptimConfig(batch=B, **settings)
    ours, plain = network(), network()
    step = TrainStep(ours, build_optimizer(ours, config), objective(), config)
    optimizer = build_optimizer(plain, config)
    for number, lr in enumerate((0.1, 0.05, 0.2)):
        step(batch(number), number, lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        one = batch(number)
        for images, labels in zip(
            one.images.chunk(config.accumulate), one.labels.chunk(config.accumulate), strict=True
        ):
            (F.cross_entropy(plain(images), labels) / config.accumulate).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(plain.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_adamw_is_torchs_own() -> None:
    config = OptimConfig(name="adamw", batch=B, lr=1e-3, weight_decay=0.05, betas=[0.8, 0.95])
    ours, plain = network(), network()
    step = TrainStep(ours, build_optimizer(ours, config), objective(), config)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.8, 0.95))
    for number in range(3):
        step(batch(number), number, 1e-3)
        F.cross_entropy(plain(batch(number).images), batch(number).labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


def test_the_objective_is_told_the_step_and_meters_and_average_of_it() -> None:
    seen = []

    class Recording(Objective):
        def given(self, batch: Batch, step: int) -> Given:
            seen.append(step)
            return super().given(batch, step)

    config, model = OptimConfig(batch=B, accumulate=2), network()
    ema, meters = Ema(model, EmaConfig(decay=0.5)), Meters(torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    recording = Recording(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64), None)
    step = TrainStep(model, build_optimizer(model, config), recording, config, meters=meters, ema=ema)
    step(batch(0), 7, 0.1)
    step(batch(1), 8, 0.1)
    assert seen == [7, 7, 8, 8] and meters._count == 2, "two steps, of two micro-batches each"
    assert any(not torch.equal(before[name], tensor) for name, tensor in ema.state_dict().items())


def test_a_frozen_trunk_is_not_moved() -> None:
    model = network()
    model.requires_grad_(False)
    model.get_submodule("fc").requires_grad_(True)
    set_training(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = OptimConfig(batch=B)
    step = TrainStep(model, build_optimizer(model, config), objective(), config)
    step(batch(0), 0, 0.1)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_first_step_that_overflows_leaves_nothing_behind(device: str, name: Literal["sgd", "adamw"]) -> None:
    """Only running statistics have seen its images, on which nothing depends in training mode."""
    config, found = OptimConfig(name=name, batch=B, lr=0.01), []
    for overflows in (False, True):
        model = network().to(device)
        scaler = torch.amp.GradScaler(device, 2.0**11 if overflows else 2.0**10)
        step = TrainStep(model, build_optimizer(model, config, scaled=True), objective(device), config, scaler)
        if overflows:
            torch.full((1 << 20,), 7e8, device=device)  # what memory holds that is taken next
            skipped = batch(0, device)
            step(skipped._replace(images=skipped.images * math.inf), 0, 0.01)
            assert scaler.get_scale() == 2**10
        for number in (1, 2):
            step(batch(number, device), number, 0.01)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))
