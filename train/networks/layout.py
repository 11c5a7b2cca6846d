"""How a network lies in memory, how it is compiled, and how several processes share it: the same for every network that is
trained, timed or asked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.registry import MODELS

# Of DistributedDataParallel: gradients lie in the buffers that are sent, so that they are not copied there.
DDP_OPTIONS: dict[str, Any] = {"gradient_as_bucket_view": True}

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: str) -> torch.dtype:
    """The type in which a network computes at `precision`, fp32, bf16 or fp16, as far as autocast lets it."""
    return _DTYPES[precision]


def input_dtype(name: str, precision: str) -> torch.dtype:
    """The type in which the images of the network `name` are best made.

    Our networks begin with a convolution, before which autocast narrows its input: narrowed where they are made, the images have
    the same bits, and are written and read once, in half the memory. Others (timm) may begin with something else.
    """
    return compute_dtype(precision) if name in MODELS else torch.float32


def without_broadcasts(model: nn.Module) -> nn.Module:
    """The model, which, where several processes share it, no longer sends its buffers before every forward pass.

    Those are running statistics. The first process's alone are evaluated and saved, and no training step reads them.
    """
    if isinstance(model, DistributedDataParallel):
        model.broadcast_buffers = False  # not an argument: torch 2.13 renames that, with a warning
    return model


def channels_last(network: nn.Module) -> nn.Module:
    """The network in channels-last layout, as the images are: tensor cores need it, and a CPU is 26 and 29 % faster with it.

    (ResNet-20 at 24 pixels, ResNet-32 at 32; fp32, two cores; against the contiguous layout.)
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_in_place(network: nn.Module, wanted: bool, mode: str) -> nn.Module:
    """torch.compile, where it is wanted; in place, so that no prefix reaches the names of the weights."""
    if wanted:
        network.compile(dynamic=False, mode=mode)
    return network


def compiled(function: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    """torch.compile of a function; with mode None the function as it is."""
    return function if mode is None else torch.compile(function, mode=mode)
