"""The ceiling of a run: how fast its training step is on one batch that never leaves the device.

Owns that measurement, 30 steps on copies of network and optimizer. Invariant: the training goes on, bit for bit, as if nothing
had been measured: weights, buffers, optimizer, gradient scaler, random states, compiled code and CUDA graphs are its own.
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

WARM_UP = 5  # steps before the first that counts: compilation, choice of algorithms, recording of CUDA graphs
ROUNDS = 3  # the fastest counts: the others were disturbed, by a loader that fills its buffers, for example
STEPS = 10  # in each round


class BareStep:
    """The training step of loop.py without meters and average, on a copy of the network and the optimizer it is given.

    The rate is 0: that costs as much as any other, and weights that stay cannot run off to infinity on a single batch.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Any):
        # In one call, so that the copied optimizer updates the copied parameters.
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
        """One step; `batch`: this process's share."""
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
    """Images/s over all processes, before the first step of a session; None where `track.ceiling` asks for none.

    model, optimizer: as `accelerator.prepare` gave them. batch: the first one. On every process at the same time.
    """
    device, asked = accelerator.device, config.track.ceiling
    if not _wanted(asked, device):
        return None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seconds = _seconds_per_step(BareStep(config, accelerator, model, optimizer), batch, objective.resident())
    except torch.OutOfMemoryError as error:
        if asked == "auto" and accelerator.num_processes == 1:  # of several, the others wait in a collective call
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
    """The copies, which accelerate's wrappers tie into cycles, and what was compiled or recorded for them."""
    gc.collect()
    if compiled:
        torch.compiler.reset()  # the training compiles again, from the files that inductor keeps
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
