"""The length of a training, and its learning rate as a pure function of the optimizer step.

Owns the schedule's settings and its formula (docs/method.md; our choice where the paper is silent: epochs count from 0,
the rate is constant within an epoch). A length in steps or images may end within an epoch, which then counts as one of
the `begun_epochs`. Holds no state, so it is not in a checkpoint.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from pipelines.errors import UserError

MOST_STEPS = 10**8 - 1  # a checkpoint's name has eight digits


@dataclass(kw_only=True)
class ScheduleConfig:
    kind: Literal["multistep", "cosine", "constant"] = "cosine"
    "what follows the warm-up"
    epochs: int | None = 200
    "length of the training; null if schedule.steps or schedule.samples gives it"
    steps: int | None = None
    "length in optimizer steps instead, with schedule.epochs=null; a short cosine schedule needs schedule.per=step"
    samples: int | None = None
    "length in training images instead, rounded up to a whole step, with schedule.epochs=null"
    warmup_epochs: int = 0
    "linear warm-up: epoch e of w trains at lr * (e + 1) / w; epoch w has the rate that the schedule gives for it"
    warmup_steps: int | None = None
    "linear warm-up in steps instead: step s of w trains at lr * (s + 1) / w, whatever schedule.per says"
    milestones: list[int] = field(default_factory=list)
    "multistep: the rate is multiplied by gamma from the START of each of these epochs"
    gamma: float = 0.1
    "multistep: the factor"
    per: Literal["epoch", "step"] = "epoch"
    "the rate changes at each epoch, or at each step"

    def __post_init__(self) -> None:
        self._check_length()
        if self.warmup_epochs < 0:
            raise ValueError(f"schedule.warmup_epochs={self.warmup_epochs}: must be at least 0")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps}: must be at least 0")
        if self.warmup_steps is not None and self.warmup_epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.warmup_epochs} and schedule.warmup_steps={self.warmup_steps} are both a "
                "warm-up: type schedule.warmup_epochs=0 with the steps, or leave schedule.warmup_steps out"
            )
        if not 0 < self.gamma <= 1:
            raise ValueError(f"schedule.gamma={self.gamma}: must be above 0 and at most 1")
        self._check_milestones()
        if self.epochs is not None:
            self.check_epochs(self.epochs, f"schedule.epochs={self.epochs}")

    def _check_length(self) -> None:
        lengths = {name: getattr(self, name) for name in ("epochs", "steps", "samples")}
        given = {name: value for name, value in lengths.items() if value is not None}
        if not given:
            raise ValueError(
                "schedule.epochs=null: a training has a length; type schedule.epochs=N, schedule.steps=N or schedule.samples=N"
            )
        if len(given) > 1:
            said = " and ".join(f"schedule.{name}={value}" for name, value in given.items())
            *others, (last, value) = given.items()
            typed = " ".join([f"schedule.{name}=null" for name, _ in others] + [f"schedule.{last}={value}"])
            raise ValueError(f"{said} are both a length: for the last, type {typed}")
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"schedule.{name}={value}: must be at least 1")
            if name != "samples" and value > MOST_STEPS:
                raise ValueError(f"schedule.{name}={value}: must be at most {MOST_STEPS:,}")

    def check_epochs(self, epochs: int, length: str) -> None:
        """ValueError where the warm-up or a milestone lies outside `epochs` epochs; length: the setting that gave this number."""
        wrong = []
        if self.warmup_epochs > epochs:
            wrong.append(f"schedule.warmup_epochs={self.warmup_epochs}: must be from 0 to {epochs} ({length})")
        if any(not 0 < milestone < epochs for milestone in self.milestones):
            given = f"schedule.milestones={self.milestones}"
            if epochs > 1:
                wrong.append(f"{given}: each must be from 1 to {epochs - 1} ({length})")
            else:
                typed = "schedule.kind=cosine schedule.milestones=[]"
                wrong.append(f"{given}: one epoch has no room for any ({length}); type {typed}")
        if wrong:
            raise ValueError("; ".join(wrong))

    def _check_milestones(self) -> None:
        given = f"schedule.milestones={self.milestones}"
        if self.kind == "multistep" and not self.milestones:
            raise ValueError(f"{given}: schedule.kind=multistep has milestones; type schedule.milestones=[N,N]")
        if self.kind != "multistep" and self.milestones:
            raise ValueError(f"{given}: schedule.kind={self.kind} has none; type schedule.milestones=[]")
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"{given}: must increase from one to the next")


def total_steps(config: ScheduleConfig, steps_per_epoch: int, batch: int) -> int:
    """Optimizer steps of the whole training. batch: images per step, over all processes."""
    if config.steps is not None:
        return config.steps
    if config.samples is not None:
        return math.ceil(config.samples / batch)
    assert config.epochs is not None
    return config.epochs * steps_per_epoch


def begun_epochs(config: ScheduleConfig, steps_per_epoch: int, batch: int) -> int:
    """Epochs in the whole training; the last one may be incomplete."""
    return math.ceil(total_steps(config, steps_per_epoch, batch) / steps_per_epoch)


class Schedule:
    """`at(step)` for the steps 0 .. total_steps - 1."""

    def __init__(self, config: ScheduleConfig, base_lr: float, steps_per_epoch: int, batch: int):
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch={steps_per_epoch}: must be at least 1")
        self.config = config
        self.base_lr = base_lr
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps(config, steps_per_epoch, batch)
        self.epochs = begun_epochs(config, steps_per_epoch, batch)
        self._check_fit()

    def _check_fit(self) -> None:
        """UserError where the warm-up or a milestone lies beyond the end, which cannot be told from the settings alone."""
        config, length = self.config, f"{self.total_steps} steps in all, {self.steps_per_epoch} an epoch"
        if self.total_steps > MOST_STEPS:
            raise UserError(
                f"schedule: {length}: a training has at most {MOST_STEPS:,}; shorten schedule.epochs or samples"
            )
        try:
            config.check_epochs(self.epochs, length)
        except ValueError as error:
            raise UserError(str(error)) from error
        if (config.warmup_steps or 0) > self.total_steps:
            raise UserError(
                f"schedule.warmup_steps={config.warmup_steps}: must be at most {self.total_steps} ({length})"
            )

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside 0 .. {self.total_steps - 1}")
        config = self.config
        if config.warmup_steps is not None and step < config.warmup_steps:
            return self.base_lr * (step + 1) / config.warmup_steps
        # Time is counted in ticks of an epoch or of a step; the settings, in epochs, are converted to ticks.
        tick, ticks_per_epoch, end = step, self.steps_per_epoch, self.total_steps
        if config.per == "epoch":
            tick, ticks_per_epoch, end = step // self.steps_per_epoch, 1, self.epochs
        warmup = config.warmup_epochs * ticks_per_epoch
        if tick < warmup:
            return self.base_lr * (tick + 1) / warmup
        if config.kind == "multistep":
            passed = sum(tick >= milestone * ticks_per_epoch for milestone in config.milestones)
            return self.base_lr * config.gamma**passed
        if config.kind == "cosine":
            return self.base_lr * (1 + math.cos(math.pi * tick / end)) / 2
        return self.base_lr
