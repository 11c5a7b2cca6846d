"""How a network lies in memory, how it is compiled, and how several processes share it: the same for every network that is
trained, timed or asked."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Of DistributedDataParallel: gradients lie in the buffers that are sent, so that they are not copied there.
DDP_OPTIONS: dict[str, Any] = {"gradient_as_bucket_view": True}


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
