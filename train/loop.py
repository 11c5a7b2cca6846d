"""The training loop: batches in, optimizer steps out, checkpoints on the way.

Straight-line code without callbacks. Steps are the clock; whatever is periodic asks `due`. The loop knows neither priors nor
where soft targets come from: the objective owns them. Invariant: a run that is killed and resumed takes the same steps on
the same views as one that is not, and no checkpoint ever holds a step whose loss was not finite.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.order import TrainOrder
from train.checkpoint import Checkpoint, load_latest, optimizer_tensors, restore_optimizer, save
from train.config import Config
from train.objective import Objective
from train.schedule import Schedule
from train.tracking import Tracker

LOG_STEPS = 50  # steps between two lines of metrics within an epoch


def due(done: int, every: int, total: int) -> bool:
    """Whether something periodic is due after `done` of `total` steps; every = 0 means only at the end."""
    return done == total or (every > 0 and done % every == 0)


class Meters:
    """Sums of losses, and the first step whose loss was not finite, kept on the device until somebody asks."""

    def __init__(self, device: torch.device):
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._bad_step = torch.full((), torch.iinfo(torch.int64).max, dtype=torch.int64, device=device)

    def add(self, step: int, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """One (micro-)batch of step number `step`."""
        for name, value in {"loss": loss.detach(), **parts}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1
        fine = torch.isfinite(loss.detach())
        self._bad_step = torch.where(fine, self._bad_step, self._bad_step.clamp(max=step))

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call; UserError names the first step that was not finite."""
        bad = int(accelerator.gather(self._bad_step.reshape(1)).min())  # type: ignore[union-attr]
        if bad < torch.iinfo(torch.int64).max:
            raise UserError(
                f"the loss of step {bad} is not finite; nothing after the last checkpoint was kept. "
                "Lower optim.lr, lengthen schedule.warmup_epochs, set optim.clip, or use precision=fp32"
            )
        names = list(self._sums)
        means: Any = accelerator.reduce(torch.stack([self._sums[n] for n in names]) / self._count, reduction="mean")
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


def fit(
    config: Config,
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    objective: Objective,
    loader: Loader,
    order: TrainOrder,
    schedule: Schedule,
    evaluate: Callable[[], dict[str, Any]] | None,
) -> dict[str, float | None]:
    """Train from the newest checkpoint in `folder` (or from the start) to the end of the schedule.

    model, optimizer: as `accelerator.prepare` gave them. evaluate: figures for the log, as often as `eval` says.
    Returns the session's speed.
    """
    network = accelerator.unwrap_model(model)
    total, epoch_steps = schedule.total_steps, order.steps_per_epoch
    checkpoint = load_latest(folder)
    first = _restore(checkpoint, network, optimizer, accelerator) if checkpoint else 0
    parts = config.optim.accumulate
    rows = config.optim.batch // accelerator.num_processes // parts
    meters = Meters(accelerator.device)
    batches = loader.stream(order.plan(first, total))
    tracker = Tracker(
        folder,
        is_main=accelerator.is_main_process,
        total_steps=total,
        steps_per_epoch=epoch_steps,
        resumed_at=first if checkpoint else None,
        device=accelerator.device,
    )
    model.train()
    try:
        if checkpoint:
            for line in checkpoint.warnings:
                tracker.say(f"warning: {line}")
            tracker.say(f"resumed after step {first} (epoch {first / epoch_steps:g} of {total / epoch_steps:g})")
        for step in range(first, total):
            with tracker.waiting():
                batch = next(batches)
            lr = schedule.at(step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for part in range(parts):
                micro = batch.rows(part * rows, (part + 1) * rows)
                with nullcontext() if part == parts - 1 else accelerator.no_sync(model):
                    loss, named = objective(model(micro.images), micro)
                    accelerator.backward(loss / parts)
                meters.add(step, loss, named)
            if config.optim.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            tracker.step(done, config.optim.batch)
            if due(done % epoch_steps, LOG_STEPS, total=0) or done == total:  # due: and at the end of each epoch
                tracker.log(done, lr=lr, **meters.read(accelerator))
            if evaluate and done < total and due(done, config.eval.period(epoch_steps), total):
                with tracker.evaluating():
                    tracker.event(done, **evaluate())
            if due(done, config.save.every_epochs * epoch_steps, total):
                with tracker.evaluating():
                    if accelerator.is_main_process:
                        tracker.sync()
                        _save(folder, done, network, optimizer, accelerator, config)
                    accelerator.wait_for_everyone()
        return tracker.speed()
    finally:
        tracker.close()
        batches.close()


def _save(
    folder: Path, done: int, network: nn.Module, optimizer: Any, accelerator: Accelerator, config: Config
) -> None:
    rng = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state()
    tensors = {
        "model": network.state_dict(),
        "optimizer": optimizer_tensors(network, optimizer.optimizer),
        "rng": rng,
    }
    state = {"scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None}
    try:
        save(folder, done, tensors, state, config.save.keep)
    except OSError as error:
        raise UserError(
            f"cannot save a checkpoint in {folder}: {error.strerror}; the earlier ones are intact: "
            "make room and run the same command again"
        ) from error


def _restore(checkpoint: Checkpoint, network: nn.Module, optimizer: Any, accelerator: Accelerator) -> int:
    """Weights, optimizer, scaler, random states, in this order; returns the number of steps done."""
    network.load_state_dict(checkpoint.tensors["model"])
    restore_optimizer(network, optimizer.optimizer, checkpoint.tensors["optimizer"])
    if accelerator.scaler is not None and checkpoint.state["scaler"] is not None:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    rng = checkpoint.tensors["rng"]
    torch.set_rng_state(rng["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"])
    return checkpoint.step
