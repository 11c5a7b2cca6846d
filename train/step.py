"""The one training step, used by the loop, the ceiling and the bench.

Runs forward and backward over the micro-batches, clipping, the optimizer and the moving average. Owns their order; knows
nothing of epochs, schedules, checkpoints or where targets come from. Invariant: it never waits for the device.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import outputs_of
from pipelines.batch import Batch
from train.ema import Ema
from train.graph import Recorded
from train.meters import Meters
from train.objectives.losses import Parts
from train.objectives.methods import Given
from train.objectives.objective import Objective
from train.optim import OptimConfig

Micro = tuple[torch.Tensor, Given]  # images of a micro-batch, and what its loss is given beside the network's outputs
Losses = list[tuple[torch.Tensor, Parts]]  # of each micro-batch


class TrainStep:
    """`step(batch, number, lr)` takes optimizer step `number`, from 0, on this process's share of the batch.

    model: the network, possibly wrapped for several processes, in training mode. optimizer: torch's own. scaler: the loss scaler
    of fp16; None: gradients need no scaling. meters, ema: updated at every step, where given. graph: whether what changes the
    weights is recorded as one CUDA graph (`cuda_graph`); targets are read, and meters and average updated, beside it.
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
        graph: bool = False,
    ):
        self._objective, self._parts = objective, config.accumulate
        update = _Update(model, optimizer, objective, config, scaler or torch.amp.GradScaler(enabled=False))
        self._update = _RecordedUpdate(update, optimizer) if graph else update
        self._meters, self._ema = meters, ema

    def __call__(self, batch: Batch, number: int, lr: float) -> None:
        rows = len(batch.keys) // self._parts
        micros: list[Micro] = []
        for part in range(self._parts):
            micro = batch.rows(part * rows, (part + 1) * rows)
            micros.append((micro.images, self._objective.given(micro, number)))
        losses = self._update(micros, lr)
        if self._meters:
            for loss, named in losses:
                self._meters.add(number, loss, named, 1 / self._parts)
        if self._ema:
            self._ema.update(number + 1)


class _Update:
    """Changes the weights by a batch, in micro-batches; what it does on the device depends on its arguments alone."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        config: OptimConfig,
        scaler: torch.amp.GradScaler,
    ):
        self._model, self._optimizer, self._objective, self._scaler = model, optimizer, objective, scaler
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._parts, self._clip = config.accumulate, config.clip

    def __call__(self, micros: Sequence[Micro], lr: float | torch.Tensor) -> Losses:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        losses: Losses = []
        for images, given in micros:
            with self._gradients_shared(last=len(losses) == self._parts - 1):
                loss, named = self._objective.loss(outputs_of(self._model(images)), given)
                share = loss / self._parts if self._parts > 1 else loss
                self._scaler.scale(share).backward()
            losses.append((loss.detach(), named))
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None
        return losses

    def _gradients_shared(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged between processes only with the last micro-batch."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()


class _RecordedUpdate:
    """An `_Update` whose work on the device is one CUDA graph; it is recorded anew when something in the loss is switched on.

    Learning rate and number of the step are tensors of the device: as numbers they would stay those of the recording. The fused
    optimizers of a GPU read their rate as float32, so that it is rounded there; on a CPU it has all its bits.
    """

    def __init__(self, update: _Update, optimizer: torch.optim.Optimizer):
        self._update = update
        device = optimizer.param_groups[0]["params"][0].device
        self._lr = torch.zeros((), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._given: list[Given] = []
        self._recorded: Recorded[Losses] | None = None
        for group in optimizer.param_groups if device.type == "cuda" else ():
            if "capturable" in group:  # AdamW asks for it, though its fused update is the same
                group["capturable"] = True
        # It would warn of the calls before the recording, which torch.cuda.graph wants.
        optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, micros: Sequence[Micro], lr: float) -> Losses:
        self._lr.fill_(lr)
        self._number.fill_(micros[0][1].step)
        given = [one._replace(step=self._number) for _, one in micros]
        if self._recorded is None or not all(map(Given.rest_is_that_of, given, self._given)):
            self._recorded, self._given = Recorded(_on_tensors(self._update, given, self._lr)), given
        return self._recorded([tensor for images, one in micros for tensor in (images, *one.of_batch())])


def _on_tensors(update: _Update, given: Sequence[Given], lr: torch.Tensor) -> Callable[[list[torch.Tensor]], Losses]:
    """`update` as a function of the tensors of a batch, with all else as in `given`.

    It does not refer to its recording, so that a graph's memory is free as soon as nothing uses it.
    """

    def function(tensors: list[torch.Tensor]) -> Losses:
        left = iter(tensors)
        return update([(next(left), one.with_batch(left)) for one in given], lr)

    return function
