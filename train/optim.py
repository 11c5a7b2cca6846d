"""The optimizer's settings, and the optimizer built from them.

Owns which parameters have weight decay; schedule.py gives the learning rate of every step, and the training step does
clipping and accumulation. Invariant: every trainable parameter is in exactly one group.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from pipelines.errors import UserError


@dataclass(kw_only=True)
class OptimConfig:
    name: Literal["sgd", "adamw"] = "sgd"
    "the optimizer; adamw: decoupled weight decay, which wants another lr (0.001) and weight_decay (0.05)"
    lr: float = 0.1
    "learning rate after the warm-up, before the schedule lowers it"
    lr_scale: Literal["none", "linear", "sqrt"] = "none"
    "multiply optim.lr by optim.batch / optim.lr_base_batch, or by its square root"
    lr_base_batch: int = 256
    "the batch size that optim.lr is meant for, where optim.lr_scale is not none"
    momentum: float = 0.9
    "sgd: momentum, the share of the last update that is kept"
    nesterov: bool = False
    "sgd: Nesterov momentum"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    "adamw: decay of the running means of the gradient and of its square"
    weight_decay: float = 5e-4
    "sgd: L2 penalty, added to the gradient; adamw: share of the weights, times lr, taken off at each step"
    no_decay: list[str] = field(default_factory=list)
    "regular expressions, searched in parameter names: matching parameters have no weight decay, e.g. [bn, bias$]"
    clip: float | None = None
    "largest norm of the whole gradient; null = no limit"
    batch: int = 128
    "images per optimizer step, over all processes"
    accumulate: int = 1
    "gradient accumulation: the number of micro-batches into which each process divides its share of a batch, to save memory"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr={self.lr}: must be above 0")
        if self.lr_base_batch < 1:
            raise ValueError(f"optim.lr_base_batch={self.lr_base_batch}: must be at least 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum}: must be at least 0 and below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={self.betas}: must be two numbers of at least 0 and below 1")
        if self.name == "adamw" and self.nesterov:
            raise ValueError(
                "optim.nesterov=true with optim.name=adamw, which has no momentum: use optim.nesterov=false"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov=true with optim.momentum=0: Nesterov needs a momentum above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"optim.weight_decay={self.weight_decay}: must be 0 or above")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"optim.clip={self.clip}: must be above 0, or null for no limit")
        if self.accumulate < 1 or self.batch < 1 or self.batch % self.accumulate:
            raise ValueError(
                f"optim.batch={self.batch}, optim.accumulate={self.accumulate}: both must be at least 1, "
                "and the batch a multiple of accumulate"
            )
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                given = f"{pattern[:80]!r}"
                raise ValueError(f"optim.no_decay: {given} is no regular expression: {error}") from error


def scaled_lr(config: OptimConfig) -> float:
    """The base learning rate of the schedule: optim.lr, scaled to the batch size if optim.lr_scale asks for it."""
    ratio = config.batch / config.lr_base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scale]


def describe_scaling(config: OptimConfig) -> str | None:
    """A line that says how the learning rate was scaled; None where it was not."""
    if config.lr_scale == "none":
        return None
    share = f"{config.batch} / {config.lr_base_batch}"
    factor = f"sqrt({share})" if config.lr_scale == "sqrt" else share
    return f"learning rate {scaled_lr(config):g} = optim.lr {config.lr:g} x {factor} (optim.lr_scale={config.lr_scale})"


def build_optimizer(model: nn.Module, config: OptimConfig, scaled: bool = False) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters: a group with weight decay and, if it is not empty, one without.

    scaled: a GradScaler will skip the steps whose gradients overflow (precision=fp16).
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    undecayed: set[str] = set()
    for pattern in config.no_decay:
        found = {name for name in named if re.search(pattern, name)}
        if not found:
            raise UserError(
                f"optim.no_decay: {pattern!r} is found in no parameter name of this model; names are like "
                f"{', '.join(list(named)[:3])} ... {list(named)[-1]}"
            )
        undecayed |= found
    groups = [
        {
            "params": [named[name] for name in named if name not in undecayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [named[name] for name in named if name in undecayed], "weight_decay": 0.0},
    ]
    groups, lr = [group for group in groups if group["params"]], scaled_lr(config)
    fused = _fused(list(named.values()))
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(config.betas[0], config.betas[1]), fused=fused)
    # A first step that is skipped would leave the momentum of torch's fused SGD what its memory held, and all later steps would
    # add it. Without `fused` the scaler itself skips the step, for which the host waits for the device.
    return torch.optim.SGD(
        groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=None if scaled else fused
    )


def _fused(parameters: list[nn.Parameter]) -> bool | None:
    """True on a GPU: one launch updates many parameters. None, torch's own choice, elsewhere."""
    return True if all(parameter.is_cuda for parameter in parameters) else None
