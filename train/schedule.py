"""The learning rate as a pure function of the optimizer step.

Owns the schedule's settings and its formula (where the paper is silent, our choice: epochs count from 0, the
rate is constant within an epoch). Holds no state: nothing is in a checkpoint, nothing can fall out of step.
"""

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class ScheduleConfig:
    kind: Literal["multistep", "cosine", "constant"] = "cosine"
    "what follows the warm-up"
    epochs: int = 200
    "length of the training"
    warmup_epochs: int = 0
    "linear warm-up: epoch e of w trains at lr * (e + 1) / w; the schedule goes on at its own epoch after it"
    milestones: list[int] = field(default_factory=list)
    "multistep: the rate is multiplied by gamma from the START of each of these epochs"
    gamma: float = 0.1
    "multistep: the factor"
    per: Literal["epoch", "step"] = "epoch"
    "the rate changes from epoch to epoch, or with every step"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"schedule.epochs={self.epochs}: must be at least 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            given = f"schedule.warmup_epochs={self.warmup_epochs}"
            raise ValueError(f"{given}: must be from 0 to schedule.epochs={self.epochs}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"schedule.gamma={self.gamma}: must be above 0 and at most 1")
        self._check_milestones()

    def _check_milestones(self) -> None:
        given = f"schedule.milestones={self.milestones}"
        if (self.kind == "multistep") != bool(self.milestones):
            raise ValueError(
                f"{given} with schedule.kind={self.kind}: multistep needs at least one, the others have none"
            )
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"{given}: must increase from one to the next")
        if any(not 0 < milestone < self.epochs for milestone in self.milestones):
            raise ValueError(f"{given}: each must be from 1 to {self.epochs - 1} (schedule.epochs={self.epochs})")


class Schedule:
    """`at(step)` for the steps 0 .. total_steps - 1."""

    def __init__(self, config: ScheduleConfig, base_lr: float, steps_per_epoch: int):
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch={steps_per_epoch}: must be at least 1")
        self.config = config
        self.base_lr = base_lr
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = config.epochs * steps_per_epoch

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside 0 .. {self.total_steps - 1}")
        config = self.config
        # The clock ticks once an epoch or once a step; the settings, in epochs, are converted to ticks.
        tick, ticks_per_epoch = step, self.steps_per_epoch
        if config.per == "epoch":
            tick, ticks_per_epoch = step // self.steps_per_epoch, 1
        warmup = config.warmup_epochs * ticks_per_epoch
        if tick < warmup:
            return self.base_lr * (tick + 1) / warmup
        if config.kind == "multistep":
            passed = sum(tick >= milestone * ticks_per_epoch for milestone in config.milestones)
            return self.base_lr * config.gamma**passed
        if config.kind == "cosine":
            return self.base_lr * (1 + math.cos(math.pi * tick / (config.epochs * ticks_per_epoch))) / 2
        return self.base_lr
