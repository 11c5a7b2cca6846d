"""The ceiling of a run: the speed of its training step on one batch that never leaves the device.

Owns that measurement, 30 steps of the network and the optimizer of the training itself, so that nothing is compiled twice or
kept on the device twice. Invariant: the training goes on, bit for bit, as if nothing had been measured: weights, buffers, the
optimizer's state and random states are put back, and average, meters and gradient scaler have no part in it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.batch import Batch
from train.config import Config
from train.objectives.objective import Objective
from train.step import TrainStep

WARM_UP = 5  # steps that are not timed: compilation, choice of algorithms, recording of CUDA graphs
ROUNDS = 3  # the fastest counts: the others were disturbed, for example by a loader that fills its buffers
STEPS = 10  # in each round


@contextmanager
def put_back(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Afterwards network and optimizer are as they are now, in the same tensors; copies on the host are kept until then."""
    before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    states = [value for state in before.values() for value in state.values() if isinstance(value, torch.Tensor)]
    own = [tensor.detach() for tensor in (*network.parameters(), *network.buffers(), *states)]
    copies, rates = [tensor.to("cpu", copy=True) for tensor in own], [group["lr"] for group in optimizer.param_groups]
    try:
        yield
    finally:
        for tensor, copied in zip(own, copies, strict=True):
            tensor.copy_(copied)
        optimizer.state.clear()  # of a parameter without state before the first step
        optimizer.state.update(before)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameter in network.parameters():  # of a step that failed
            parameter.grad = None


def measure_ceiling(
    config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective, batch: Batch
) -> float | None:
    """Images/s over all processes, before the first step of a session; None if `track.ceiling` asks for no measurement.

    model, optimizer: as returned by `accelerator.prepare`. batch: the first one. All processes must call it at the same time.
    """
    device = accelerator.device
    if not _wanted(config.track.ceiling, device):
        return None
    own = optimizer.optimizer
    scaler = torch.amp.GradScaler(device.type, enabled=accelerator.scaler is not None)
    random_states = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with random_states, put_back(accelerator.unwrap_model(model), own):
        step = TrainStep(model, own, objective.resident(), config.optim, scaler, graph=config.cuda_graph)
        seconds = _seconds_per_step(step, batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return config.optim.batch / seconds


def _wanted(asked: str, device: torch.device) -> bool:
    return asked == "on" or (asked == "auto" and device.type == "cuda")


def _seconds_per_step(step: TrainStep, batch: Batch) -> float:
    # The rate is 0: that costs as much as any other, and weights that stay cannot run off to infinity on a single batch.
    for _ in range(WARM_UP):
        step(batch, 0, 0.0)
    rounds = []
    for _ in range(ROUNDS):
        _synchronize(batch.images.device)
        start = time.perf_counter()
        for _ in range(STEPS):
            step(batch, 0, 0.0)
        _synchronize(batch.images.device)
        rounds.append((time.perf_counter() - start) / STEPS)
    return min(rounds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
