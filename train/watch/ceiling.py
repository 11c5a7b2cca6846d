"""The ceiling of a run: the speed of its training step on one batch that never leaves the device.

Owns that measurement, 30 steps on copies of network and optimizer. Invariant: the training goes on, bit for bit, as if nothing
had been measured; the measurement shares no weights, buffers, optimizer, gradient scaler, random states, compiled code or CUDA
graphs with it.
"""

import copy
import gc
import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.batch import Batch
from pipelines.errors import UserError
from train.config import Config
from train.objectives.objective import Objective

WARM_UP = 5  # steps that are not timed: compilation, choice of algorithms, recording of CUDA graphs
ROUNDS = 3  # the fastest counts: the others were disturbed, for example by a loader that fills its buffers
STEPS = 10  # in each round


class BareStep:
    """The training step without meters and moving average, on copies of the given network and optimizer.

    The learning rate is 0: a step costs the same, and constant weights cannot diverge on a single batch.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Any):
        # Copied in one call, so that the copied optimizer updates the copied parameters.
        network, self._optimizer = copy.deepcopy((accelerator.unwrap_model(model), optimizer.optimizer))
        assert isinstance(network, nn.Module)
        if config.compile:
            network.compile(dynamic=False, mode=config.compile_mode)  # a copy is not compiled
        self._model: nn.Module = network
        if isinstance(model, DistributedDataParallel):
            self._model = DistributedDataParallel(network, device_ids=model.device_ids)
        self._optim = config.optim
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.scaler is not None)

    def __call__(self, batch: Batch, objective: Objective) -> None:
        """One step; batch: the share of this process."""
        parts, model = self._optim.accumulate, self._model
        rows = len(batch.keys) // parts
        for part in range(parts):
            micro = batch.rows(part * rows, (part + 1) * rows)
            more = part < parts - 1
            with model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext():
                loss, _ = objective(model(micro.images), micro)
                self._scaler.scale(loss / parts).backward()
        if self._optim.clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._optim.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()


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
            seconds = _seconds_per_step(BareStep(config, accelerator, model, optimizer), batch, objective.resident())
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


def _seconds_per_step(step: BareStep, batch: Batch, objective: Objective) -> float:
    for _ in range(WARM_UP):
        step(batch, objective)
    rounds = []
    for _ in range(ROUNDS):
        _synchronize(batch.images.device)
        start = time.perf_counter()
        for _ in range(STEPS):
            step(batch, objective)
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
