"""The training step as one CUDA graph: on a tape in its place here, and on a GPU itself; what is refused; a whole run."""

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from helpers.launch import run, tiny_config
from helpers.tape import HostReads, Taped
from torch import nn

from models import build_model, set_training
from models.registry import ModelSpec
from pipelines.batch import Batch, Mix
from pipelines.errors import UserError
from train import assembly, loop, optim, step
from train.config import Config
from train.ema import Ema, EmaConfig
from train.graph import WARM_UP, Recorded, require_one_gpu
from train.meters import Meters
from train.objectives import objective
from train.objectives.methods import METHODS, DistillConfig, Given
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.run.folder import binding
from train.settings import diff, load
from train.step import TrainStep
from train.watch import ceiling

B, C, EPOCH = 8, 5, 6  # an epoch: steps after which losses switch
COUNTS = torch.tensor([20, 10, 5, 2, 1])
RATES = {
    "cpu": [0.1 / (3 + number % 4) for number in range(2 * EPOCH)],
    # A float32 holds them: to that a graph rounds its rate.
    "cuda": [0.5 ** (3 + number % 4) for number in range(2 * EPOCH)],
}


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Taped]]:
    """Steps that are recorded on a tape; the optimizers are those of a GPU, which read their rate on the device."""
    monkeypatch.setattr(step, "Recorded", Taped)
    monkeypatch.setattr(optim, "_fused", lambda parameters: True)
    Taped.made = Taped.replayed = 0
    yield Taped


def batches(number: int, device: torch.device, mixed: bool = False) -> Batch:
    rng = torch.Generator().manual_seed(number)
    images, labels = torch.randn(B, 3, 8, 8, generator=rng), torch.randint(0, C, (B,), generator=rng)
    images = images.to(device, memory_format=torch.channels_last)
    batch = Batch(images, labels.to(device), np.arange(B), np.zeros(B, np.int32), torch.zeros(B, 8, 8, 3))
    if not mixed:
        return batch
    partners = batch._replace(labels=torch.randint(0, C, (B,), generator=rng).to(device))
    return batch._replace(partners=partners, mix=Mix(torch.rand(B, generator=rng).to(device), None))


class Dropping(nn.Module):
    """Random numbers in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.fc = nn.Linear(4 * 6 * 6, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


def network(kind: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    if kind == "dropping":
        model: nn.Module = Dropping()
    elif kind == "experts":
        model = ModelSpec("resnet8", C, experts=2).build()
    else:
        model = build_model("resnet8", C)
    set_training(model)
    return model.to(device)


def trained(graph: bool, device: torch.device, kind: str = "plain", mixed: bool = False, **more: Any) -> list[Any]:
    """Weights, optimizer, average, sums of losses and random state after the steps at RATES."""
    distill = DistillConfig(**more.pop("distill", {"method": "ce"}))
    config, model = OptimConfig(batch=B, **more), network(kind, device)
    optimizer = build_optimizer(model, config)
    targets = (
        (lambda batch: torch.sin(batch.images.sum(3).flatten(1)[:, :C])) if METHODS[distill.method].targets else None
    )
    loss = Objective(distill, COUNTS.to(device), targets, steps_per_epoch=EPOCH)
    meters, ema = Meters(device), Ema(model, EmaConfig(decay=0.9))
    train = TrainStep(model, optimizer, loss, config, meters=meters, ema=ema, graph=graph)
    torch.manual_seed(1)
    for number, lr in enumerate(RATES[device.type]):
        train(batches(number, device, mixed), number, lr)
    meters._sum_up()
    states = [value for state in optimizer.state.values() for value in state.values() if value is not None]
    drawn = torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()
    return [*model.state_dict().values(), *states, *ema.state_dict().values(), meters._sums, drawn]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"nesterov": True},
    "accumulated and clipped": {"accumulate": 2, "clip": 0.1, "no_decay": ["bn"]},
    "no momentum": {"momentum": 0.0},
    "adamw": {"name": "adamw", "weight_decay": 0.05},
    "dropout": {"kind": "dropping"},
    "targets": {"distill": {"method": "dive", "tau": 3, "p": 0.5}},
    "mixtures": {"mixed": True, "distill": {"method": "bkd", "tau": 3}},
    "switches": {
        "kind": "experts",
        "distill": {"method": "ldam", "drw_from": 1, "diversity": -0.2, "diversity_from": 1},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_recorded_step_is_the_step(settings: dict[str, Any], tape: type[Taped]) -> None:
    """All that differs between the steps reaches a recording as tensors: images, targets, rates, switches, random numbers."""
    cpu = torch.device("cpu")
    plain = trained(False, cpu, **settings)
    assert tape.made == 0 and same(plain, trained(True, cpu, **settings))
    switched = 2 if "drw_from" in settings.get("distill", {}) else 1
    assert (tape.made, tape.replayed) == (switched, 2 * EPOCH - switched * (WARM_UP + 1))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_a_gpu_a_recorded_step_is_the_step(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS may have started without the variable
    try:
        plain, recorded = (trained(graph, torch.device("cuda"), **settings) for graph in (False, True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(plain, recorded)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_without_a_gpu_every_call_runs_the_step_itself(settings: dict[str, Any]) -> None:
    """On copies of the batch, at a rate that is a tensor, by torch's own choice of optimizer: the same bits, at any rate."""
    cpu = torch.device("cpu")
    assert same(trained(False, cpu, **settings), trained(True, cpu, **settings))


def test_the_tape_holds_what_a_graph_would_hold() -> None:
    """Numbers of the host are frozen in it, and the host cannot read what is computed."""
    number, call = [1.0], torch.ones(2)
    taped = Taped(lambda tensors: tensors[0] * number[0])
    for _ in range(WARM_UP + 1):
        assert taped([call]).tolist() == [1, 1]
    number[0] = 2.0
    assert taped([call * 3]).tolist() == [3, 3]
    reading = Taped(lambda tensors: tensors[0] * float(tensors[0].sum()))
    for _ in range(WARM_UP):
        reading([call])
    with pytest.raises(HostReads):
        reading([call])


def test_a_recording_is_gone_with_its_step(tape: type[Taped]) -> None:
    """At once, not when Python next looks for cycles: a graph keeps the device's memory."""
    model, config = network("plain", torch.device("cpu")), OptimConfig(batch=B)
    loss = Objective(DistillConfig(method="ce"), COUNTS, None)
    train = TrainStep(model, build_optimizer(model, config), loss, config, graph=True)
    gc.disable()
    try:
        for number in range(WARM_UP + 2):
            train(batches(number, torch.device("cpu")), number, 0.1)
        kept = weakref.ref(train._update._recorded)  # pyright: ignore
        assert kept() is not None
        del train
        assert kept() is None
    finally:
        gc.enable()


def test_tensors_of_another_shape_or_type_are_refused() -> None:
    recorded = Recorded(lambda tensors: tensors[0].sum())
    assert recorded([torch.ones(3)]) == 3
    with pytest.raises(ValueError, match=r"recorded for torch.float32 \[3\], not torch.float32 \[1\]"):
        recorded([torch.ones(1)])
    with pytest.raises(ValueError, match="not torch.float64"):
        recorded([torch.ones(3, dtype=torch.float64)])


def test_a_loss_may_compute_with_the_number_of_the_step_and_not_decide_by_it(
    tape: type[Taped], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, method = torch.device("cpu"), METHODS["ce"]

    def ramped(outputs: Any, given: Given) -> Any:
        loss, parts = method.loss(outputs, given)
        return loss * (given.step + 1), parts

    def switched(outputs: Any, given: Given) -> Any:
        loss, parts = method.loss(outputs, given)
        return (2 * loss if given.step > 4 else loss), parts

    monkeypatch.setitem(METHODS, "ce", method._replace(loss=ramped))
    assert same(trained(False, cpu), trained(True, cpu)) and tape.replayed
    monkeypatch.setitem(METHODS, "ce", method._replace(loss=switched))
    with pytest.raises(HostReads):
        trained(True, cpu)


def test_nothing_is_compiled_after_the_first_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that cannot be recorded. Network and loss, traced but not translated: once each, and the loss again after its switch."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    settings, cpu, made = {"distill": {"method": "ldam", "drw_from": 1}}, torch.device("cpu"), network
    plain = trained(False, cpu, **settings)
    compiled = torch.compile

    def compiled_network(*given: Any) -> nn.Module:
        model = made(*given)
        model.compile(backend=counted, fullgraph=True)
        return model

    monkeypatch.setattr(f"{__name__}.network", compiled_network)
    monkeypatch.setattr(objective, "compiled", lambda call, _: compiled(call, backend=counted, fullgraph=True))
    assert same(plain, trained(True, cpu, **settings))
    assert len(graphs) == 3


# ---- what is refused ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("compile=true compile_mode=reduce-overhead", "compile_mode=reduce-overhead with cuda_graph=true: "),
        ("compile=true compile_mode=max-autotune", "compile_mode=max-autotune with cuda_graph=true: "),
        ("precision=fp16", "precision=fp16 with cuda_graph=true: "),
    ],
)
def test_settings_that_exclude_a_graph(tmp_path: Path, given: str, words: str) -> None:
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(UserError) as caught:
        load(Config, tmp_path / "empty.yaml", ["cuda_graph=true", *given.split()])
    assert words in str(caught.value) and "or leave cuda_graph out" in str(caught.value)
    for fine in (
        given,
        "cuda_graph=true compile=true compile_mode=max-autotune-no-cudagraphs",
        "cuda_graph=true precision=bf16",
    ):
        load(Config, tmp_path / "empty.yaml", fine.split())


def test_one_process_with_a_gpu_is_needed(tiny: Path, tmp_path: Path) -> None:
    def having(device: str, kind: DistributedType) -> Any:
        return SimpleNamespace(device=torch.device(device), distributed_type=kind, num_processes=2)

    asked = Config(cuda_graph=True)
    require_one_gpu(Config(), having("cpu", DistributedType.MULTI_CPU))
    require_one_gpu(asked, having("cuda", DistributedType.NO))
    with pytest.raises(UserError, match=r"needs a GPU, and this process has the device cpu; leave cuda_graph out"):
        require_one_gpu(asked, having("cpu", DistributedType.NO))
    with pytest.raises(UserError, match=r"several processes \(here 2\).*type python train/"):
        require_one_gpu(asked, having("cuda", DistributedType.MULTI_GPU))
    for more in ([], ["--dry-run"]):
        done = run("teacher", tiny_config(tmp_path, tiny), "run=r", "cuda_graph=true", *more, cwd=tmp_path, check=False)
        assert done.returncode == 2 and not (tmp_path / "runs/r").exists()
        assert [line for line in done.stderr.splitlines() if "cuda_graph" in line] == [
            "error: cuda_graph=true needs a GPU, and this process has the device cpu; leave cuda_graph out"
        ]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (lambda tensor: float(torch.rand(())), "random numbers on the host"),
        (lambda tensor: float(tensor.sum()), "cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_is_told(factor: Callable[[torch.Tensor], float], words: str) -> None:
    """In the first call after the warm-up: a random number that the host draws, and a value that it reads."""
    recorded = Recorded(lambda tensors: tensors[0] * factor(tensors[0]))
    for _ in range(WARM_UP):
        recorded([torch.ones(3, device="cuda")])
    before = torch.cuda.current_stream()
    with pytest.raises(UserError, match=words):
        recorded([torch.ones(3, device="cuda")])
    assert torch.cuda.current_stream() == before and gc.isenabled()


# ---- a whole run ----

STATE = "checkpoints/step_00000014"
FILES = (*(f"{STATE}/{name}" for name in ("model", "optimizer", "ema", "rng")), "model", "model_ema")


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures of time and memory."""
    timed = ("images_per_s", "ceiling_images_per_s", "of_ceiling", "data_wait", "peak_memory_gb", "first_step_s")
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timed} for line in found]


def is_the_run(folder: Path, plain: Path) -> None:
    for name in FILES:
        assert (folder / f"{name}.safetensors").read_bytes() == (plain / f"{name}.safetensors").read_bytes(), name
    assert lines(folder) == lines(plain)


@pytest.fixture
def train(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Train for two epochs of seven steps, with a switch between them: what was printed."""
    monkeypatch.setattr(assembly, "require_one_gpu", lambda *_: None)
    config = tiny_config(tmp_path, tiny, "ldam", "  drw_from: 1\n")
    given = (config, "schedule.epochs=2", "ema.decay=0.9", "save.every_steps=3", "optim.accumulate=2", "optim.clip=1")
    return lambda *settings: run("teacher", *given, *settings, cwd=tmp_path).stdout


def test_a_run_is_the_run_without_a_graph(train: Callable[..., str], tmp_path: Path) -> None:
    train("run=plain")
    train("run=graph", "cuda_graph=true")
    is_the_run(tmp_path / "runs/graph", tmp_path / "runs/plain")


def test_a_recorded_run_is_the_run_however_it_was_interrupted(
    train: Callable[..., str], tape: type[Taped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its ceiling measured; killed in a recorded step before the switch, and after it."""
    train("run=plain")
    train("run=graph", "cuda_graph=true", "track.ceiling=on")
    assert ceiling.WARM_UP > WARM_UP  # what is timed is the graph
    assert (tape.made, tape.replayed) == (
        3,
        ceiling.WARM_UP + ceiling.ROUNDS * ceiling.STEPS - WARM_UP - 1 + 2 * (7 - WARM_UP - 1),
    )
    is_the_run(tmp_path / "runs/graph", tmp_path / "runs/plain")
    add = loop.Meters.add

    class Killed(BaseException):
        pass

    for last in (5, 12):

        def dies(meters: Meters, number: int, *rest: Any, last: int = last) -> None:
            add(meters, number, *rest)
            if number == last:
                raise Killed

        monkeypatch.setattr(loop.Meters, "add", dies)
        with pytest.raises(Killed):
            train("run=killed", "cuda_graph=true")
    monkeypatch.setattr(loop.Meters, "add", add)
    assert "resumed after step 12" in train("run=killed", "cuda_graph=true")
    is_the_run(tmp_path / "runs/killed", tmp_path / "runs/plain")


def test_a_graph_belongs_to_its_run() -> None:
    """On a GPU its rates are rounded, so that a run without it would go on with other bits."""
    assert diff(Config(), Config(cuda_graph=True)) == ["cuda_graph: false -> true"]
    assert binding(["cuda_graph: false -> true"]) == ["cuda_graph: false -> true"]
