"""The ceiling of a run: the speed of its training step on one batch that never leaves the device.

Owns that measurement, 30 steps on copies of network and optimizer. Invariant: the training goes on, bit for bit, as if nothing
had been measured; the measurement shares no weights, buffers, optimizer, gradient scaler, random states, compiled code or CUDA
graphs with it.
"""

import copy
import gc
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.batch import Batch
from pipelines.errors import UserError
from train.config import Config
from train.networks.layout import DDP_OPTIONS, compile_in_place, without_broadcasts
from train.objectives.objective import Objective
from train.step import TrainStep

WARM_UP = 5  # steps that are not timed: compilation, choice of algorithms, recording of CUDA graphs
ROUNDS = 3  # the fastest counts: the others were disturbed, for example by a loader that fills its buffers
STEPS = 10  # in each round


def copied_step(
    config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective
) -> TrainStep:
    """The training step without meters and average, on a copy of the network and the optimizer it is given."""
    # In one call, so that the copied optimizer updates the copied parameters.
    network, own_optimizer = copy.deepcopy((accelerator.unwrap_model(model), optimizer.optimizer))
    assert isinstance(network, nn.Module)
    copied = compile_in_place(network, config.compile, config.compile_mode)  # a copy is not compiled
    if isinstance(model, DistributedDataParallel):
        wrapped = DistributedDataParallel(network, device_ids=model.device_ids, **DDP_OPTIONS)
        copied = without_broadcasts(wrapped)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.scaler is not None)
    return TrainStep(copied, own_optimizer, objective, config.optim, scaler)


def measure_ceiling(
    config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective, batch: Batch
) -> float | None:
    """Images/s over all processes, before the first step of a session; None if `track.ceiling` asks for no measurement.

    model, optimizer: as returned by `accelerator.prepare`. batch: the first one. All processes must call it at the same time.
    """
    device, asked = accelerator.device, config.track.ceiling
    if not _wanted(asked, device):
        return None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            step = copied_step(config, accelerator, model, optimizer, objective.resident())
            seconds = _seconds_per_step(step, batch)
            del step  # and with it the copies, before their memory is given back
    except torch.OutOfMemoryError as error:
        if asked == "auto" and accelerator.num_processes == 1:  # with several, the others wait in a collective call
            return None
        raise UserError(
            "the ceiling needs memory for a second network and optimizer, and there is not enough; type track.ceiling=off"
        ) from error
    finally:
        _forget(device, config.compile)
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


def _forget(device: torch.device, compiled: bool) -> None:
    """Free the copies, which are in reference cycles with accelerate's wrappers, and what was compiled or recorded for them."""
    gc.collect()
    if compiled:
        torch.compiler.reset()  # the training compiles again, from inductor's cache on disk
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
