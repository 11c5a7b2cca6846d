"""Step time of train/loop.py's `fit` against a bare PyTorch loop: tests/studies/loop_overhead.py STEPS ROUNDS [NETWORK [BATCH]].

Same network, same batches, same optimizer, on the CPU, in turns within one process; both get batches from memory, so that only
the loop itself is compared: its meters, schedule, stops, tracker and accelerate. Prints the processor
seconds per step of both (medians) and the ratios round by round, as JSON.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.registry import build_model
from pipelines.batch import Batch
from pipelines.order import TrainOrder
from train import loop
from train.config import Config
from train.networks.layout import channels_last
from train.objectives.methods import DistillConfig
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.run.environment import make_accelerator
from train.run.stops import Stops
from train.schedule import Schedule, ScheduleConfig
from train.watch.dashboards import Dashboards

BATCH, CLASSES = 128, 100


class InMemory:
    """A loader that repeats one batch, and measures the time between its second and its last one."""

    waited = 0.0

    def __init__(self, batch: Batch):
        self._batch = batch
        self._times: list[float] = []

    def stream(self, plan: Iterable[Any]) -> Iterator[Batch]:
        for _ in plan:
            self._times.append(time.process_time())  # of this process alone: other load on the machine does not count
            yield self._batch

    def seconds_per_step(self) -> float:
        return (self._times[-1] - self._times[1]) / (len(self._times) - 2)


def bare(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> float:
    batches = InMemory(batch)
    for item in batches.stream(range(steps)):
        loss = F.cross_entropy(network(item.images), item.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return batches.seconds_per_step()


def ours(config: Config, network: nn.Module, batch: Batch, steps: int) -> float:
    batches: Any = InMemory(batch)
    accelerator = make_accelerator(config)
    model, optimizer = accelerator.prepare(network, build_optimizer(network, config.optim))
    order = TrainOrder(np.arange(BATCH * steps), 0, BATCH, 1)
    schedule = Schedule(ScheduleConfig(kind="constant", epochs=1), config.optim.lr, steps, BATCH)
    objective = Objective(DistillConfig(method="ce"), torch.ones(CLASSES, dtype=torch.int64), None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        path = Path(folder)
        silent = Dashboards([], "", path, {}, is_main=True)
        with Stops(path, 1) as stops:
            training = loop.Training(
                config=config,
                accelerator=accelerator,
                model=model,
                optimizer=optimizer,
                objective=objective,
                loader=batches,
                order=order,
                schedule=schedule,
                ema=None,
            )
            loop.fit(training, path, None, stops, silent)
    return batches.seconds_per_step()


def measure(name: str, steps: int, rounds: int) -> tuple[float, float, list[float]]:
    """(processor seconds per step of the loop, of the bare loop, ratios round by round)"""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH,))
    batch = Batch(images, labels, np.arange(BATCH), np.zeros(BATCH, np.int32), images, None)
    config = Config(optim=OptimConfig(batch=BATCH, lr=1e-4, nesterov=True))
    times: list[tuple[float, float]] = []
    for turn in range(rounds):
        networks = [channels_last(build_model(name, CLASSES)).train() for _ in range(2)]
        both = [
            lambda n=networks[0]: ours(config, n, batch, steps),
            lambda n=networks[1]: bare(n, build_optimizer(n, config.optim), batch, steps),
        ]
        taken = [run() for run in (both if turn % 2 else both[::-1])]
        times.append((taken[0], taken[1]) if turn % 2 else (taken[1], taken[0]))
    loops, plains = zip(*times, strict=True)
    return statistics.median(loops), statistics.median(plains), [one / other for one, other in times]


def main() -> None:
    global BATCH
    steps, rounds = int(sys.argv[1]), int(sys.argv[2])
    BATCH = int(sys.argv[4]) if len(sys.argv) > 4 else BATCH
    print(json.dumps(measure(sys.argv[3] if len(sys.argv) > 3 else "resnet20", steps, rounds)))


if __name__ == "__main__":
    main()
