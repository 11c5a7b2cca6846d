"""The ceiling: measured on the training's own network, which is put back, so that the training does not notice."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.launch import run, tiny_config
from helpers.one_rank import group_of_one
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import Outputs, build_model
from pipelines.batch import Batch
from pipelines.order import TrainOrder
from pipelines.records.reader import Records
from train.config import Config
from train.objectives.methods import DistillConfig
from train.objectives.objective import Objective
from train.objectives.targets import CachedTargets
from train.optim import build_optimizer
from train.run.optimizer_state import optimizer_tensors
from train.step import TrainStep
from train.watch import ceiling
from train.watch.ceiling import ROUNDS, STEPS, WARM_UP, measure_ceiling
from train.watch.tracking import TrackConfig

B, C = 8, 5
TRAINING = [
    "checkpoints/step_00000014/model",
    "checkpoints/step_00000014/optimizer",
    "checkpoints/step_00000014/rng",
    "model",
]


class Net(nn.Module):
    """A small network with everything that could be disturbed: buffers, and a forward pass that draws random numbers."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(4 * 6 * 6, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Net.calls += 1
        return self.head(self.body(images))


@pytest.fixture
def batch() -> Batch:
    images = torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(B) % C, np.arange(B), np.zeros(B, np.int32), torch.zeros(B, 8, 8, 3))


def settings(track: str = "on", **optim: Any) -> Config:
    config = Config(track=TrackConfig(ceiling=track))  # type: ignore[arg-type]
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, batch=B, **optim))


@pytest.fixture(autouse=True)
def any_precision():
    """Accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def trained(batch: Batch, precision: str = "no") -> tuple[Accelerator, nn.Module, Any, Objective]:
    """A network after one step, so that its optimizer holds something."""
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    network = Net()
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    objective = Objective(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64), None)
    accelerator.backward(objective(Outputs(model(batch.images)), batch, 0)[0])
    optimizer.step()
    optimizer.zero_grad()
    return accelerator, model, optimizer, objective


def everything(model: nn.Module, optimizer: Any) -> list[torch.Tensor]:
    momentum = [state["momentum_buffer"] for state in optimizer.optimizer.state.values()]
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*model.state_dict().values(), *momentum, *grads, torch.get_rng_state()]


@pytest.mark.parametrize(
    ("precision", "optim"), [("no", {}), ("no", {"accumulate": 2, "clip": 0.1}), ("bf16", {"clip": 1.0})]
)
def test_nothing_of_the_training_changes(batch: Batch, precision: str, optim: dict[str, Any]) -> None:
    accelerator, model, optimizer, objective = trained(batch, precision)
    before = copy.deepcopy(everything(model, optimizer))
    Net.calls = 0
    measured = measure_ceiling(settings(**optim), accelerator, model, optimizer, objective, batch)
    assert measured is not None and measured > 1
    assert Net.calls == (WARM_UP + ROUNDS * STEPS) * optim.get("accumulate", 1)
    after = everything(model, optimizer)
    assert len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_before_the_first_step_the_optimizer_holds_nothing_afterwards(batch: Batch, kind: str) -> None:
    """So that the first step is a first step; and one that fails leaves nothing either."""
    results = []
    for measured in (False, True):
        torch.manual_seed(0)
        accelerator, network = Accelerator(cpu=True), Net()
        own = build_optimizer(network, settings(name=kind).optim)
        model, optimizer = accelerator.prepare(network, own)
        objective = Objective(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64), None)
        if measured:
            measure_ceiling(settings(), accelerator, model, optimizer, objective, batch)
            short = batch._replace(labels=batch.labels[:3])
            with pytest.raises(ValueError, match="batch_size"):
                measure_ceiling(settings(), accelerator, model, optimizer, objective, short)
            assert not own.state and all(parameter.grad is None for parameter in model.parameters())
        TrainStep(model, own, objective, settings().optim)(batch, 0, 0.1)
        results.append([*model.state_dict().values(), *optimizer_tensors(network, own).values()])
    assert all(torch.equal(plain, after) for plain, after in zip(*results, strict=True))


def test_nothing_is_compiled_a_second_time(batch: Batch) -> None:
    torch.compiler.reset()
    compiled: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    accelerator, network = Accelerator(cpu=True), build_model("resnet8", C)
    network.compile(dynamic=False, backend=counted)
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1))
    objective = Objective(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64), None)
    measure_ceiling(settings(), accelerator, model, optimizer, objective, batch)
    assert len(compiled) == 1
    TrainStep(model, optimizer.optimizer, objective, settings().optim)(batch, 0, 0.1)
    assert len(compiled) == 1


def test_it_is_the_speed_of_the_whole_step(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by a clock that only the optimizer advances: 1/40 s per step, 1/10 s in the first round."""
    accelerator, model, optimizer, objective = trained(batch)
    now, steps, original = [0.0], [0], torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: Any = None) -> None:
        assert all(group["lr"] == 0 for group in self.param_groups)
        steps[0] += 1
        now[0] += 0.1 if steps[0] <= WARM_UP + STEPS else 0.025
        original(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: now[0])
    assert measure_ceiling(settings(), accelerator, model, optimizer, objective, batch) == pytest.approx(B / 0.025)
    assert steps[0] == WARM_UP + ROUNDS * STEPS


def test_among_several_processes_the_measured_steps_talk_as_those_of_the_training_do(
    batch: Batch, tmp_path: Path
) -> None:
    accelerator, model, optimizer, objective = trained(batch)
    with group_of_one(tmp_path):
        spread = DistributedDataParallel(model)
        before = copy.deepcopy(everything(model, optimizer))
        assert measure_ceiling(settings(accumulate=2), accelerator, spread, optimizer, objective, batch)
        assert all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))


def test_a_cache_is_not_asked(batch: Batch) -> None:
    """A cache's reads are not part of the ceiling; an online teacher is part of the step."""
    unreadable = object.__new__(CachedTargets)
    distill = DistillConfig(method="dive", tau=3)
    loss, _ = Objective(distill, torch.ones(C, dtype=torch.int64), unreadable).resident()(
        Outputs(torch.randn(B, C)), batch, 0
    )
    assert torch.isfinite(loss)
    online = Objective(distill, torch.ones(C, dtype=torch.int64), lambda batch: torch.zeros(B, C))
    assert online.resident() is online


def test_where_it_is_not_wanted(batch: Batch) -> None:
    accelerator, model, optimizer, objective = trained(batch)
    Net.calls = 0
    for choice in ("off", "auto"):  # auto means a GPU
        assert measure_ceiling(settings(choice), accelerator, model, optimizer, objective, batch) is None
    assert Net.calls == 0


@pytest.mark.gpu
def test_nothing_changes_on_a_gpu(batch: Batch) -> None:
    """Including the device's random states and memory."""
    accelerator = Accelerator(mixed_precision="bf16")
    network = Net().to(accelerator.device)
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    batch = batch._replace(images=batch.images.to(accelerator.device), labels=batch.labels.to(accelerator.device))
    objective = Objective(DistillConfig(method="ce"), torch.ones(C, dtype=torch.int64, device=accelerator.device), None)

    def state() -> list[torch.Tensor]:
        """On the host: a copy on the device would be counted in its memory."""
        torch.cuda.synchronize()
        allocated = torch.tensor([torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()])
        tensors = [*everything(model, optimizer), torch.cuda.get_rng_state(), allocated]
        return [tensor.detach().to("cpu", copy=True) for tensor in tensors]

    model(batch.images).sum().backward()  # cuBLAS keeps a workspace for each thread
    model.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = state()
    assert measure_ceiling(settings("auto"), accelerator, model, optimizer, objective, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_a_run_that_shows_everything_is_the_run_that_shows_nothing(tiny: Path, tmp_path: Path) -> None:
    """Ceiling, picture and trace in one run; a run without them has the same weights, optimizer and losses."""
    config = tiny_config(tmp_path, tiny)
    shown = ["track.ceiling=on", "track.show_batch=true", "profile.start=3", "profile.steps=2"]
    said = run("teacher", config, "run=seen", "schedule.epochs=2", *shown, cwd=tmp_path).stdout
    run("teacher", config, "run=plain", "schedule.epochs=2", cwd=tmp_path)
    seen, plain = tmp_path / "runs/seen", tmp_path / "runs/plain"
    for name in TRAINING:
        assert (seen / f"{name}.safetensors").read_bytes() == (plain / f"{name}.safetensors").read_bytes()
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (seen, plain)
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [set(line) for line in lines[0]] == [set(line) for line in lines[1]]
    speed = json.loads((seen / "result.json").read_text())["speed"]
    assert speed["of_ceiling"] == pytest.approx(speed["images_per_s"] / speed["ceiling_images_per_s"])
    assert lines[1][0]["of_ceiling"] is None and "of the ceiling)" in said and "ceiling: " in said
    assert (seen / "trace_3-4.json").exists() and not list(plain.glob("trace*"))
    records = Records(tiny / "train.beton")
    (plan,) = TrainOrder(records.keys, 0, 16, 2, 0, 1, labels=records.labels).plan(0, 1)
    captions = json.loads(Image.open(seen / "first_batch.png").text["images"])  # type: ignore[attr-defined]
    assert [caption["key"] for caption in captions] == records.keys[plan.positions].tolist()
    assert [caption["view"] for caption in captions] == plan.views.tolist()
    assert [caption["class"] for caption in captions] == [
        records.class_names[i] for i in records.labels[plan.positions]
    ]
