"""The one training step, used by the loop, the ceiling and the bench.

Runs forward and backward over the micro-batches, clipping, the optimizer and the moving average. Owns their order; knows
nothing of epochs, schedules, checkpoints or where targets come from. Invariant: it never waits for the device.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import outputs_of
from pipelines.batch import Batch
from train.ema import Ema
from train.meters import Meters
from train.objectives.objective import Objective
from train.optim import OptimConfig


class TrainStep:
    """`step(batch, number, lr)` takes optimizer step `number`, from 0, on this process's share of the batch.

    model: the network, possibly wrapped for several processes, in training mode. optimizer: torch's own. scaler: the loss scaler
    of fp16; None: gradients need no scaling. meters, ema: updated at every step, where given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        config: OptimConfig,
        scaler: torch.amp.GradScaler | None = None,
        meters: Meters | None = None,
        ema: Ema | None = None,
    ):
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._parts, self._clip = config.accumulate, config.clip
        self._scaler = scaler or torch.amp.GradScaler(enabled=False)
        self._meters, self._ema = meters, ema

    def __call__(self, batch: Batch, number: int, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        rows = len(batch.keys) // self._parts
        for part in range(self._parts):
            micro = batch.rows(part * rows, (part + 1) * rows)
            with self._gradients_shared(last=part == self._parts - 1):
                loss, named = self._objective(outputs_of(self._model(micro.images)), micro, number)
                share = loss / self._parts if self._parts > 1 else loss
                self._scaler.scale(share).backward()
            if self._meters:
                self._meters.add(number, loss, named)
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None
        if self._ema:
            self._ema.update(number + 1)

    def _gradients_shared(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged between processes only with the last micro-batch."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()
