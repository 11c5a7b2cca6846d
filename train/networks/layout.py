"""The memory layout of networks."""

import torch
from torch import nn


def channels_last(network: nn.Module) -> nn.Module:
    """The network in channels-last layout, as the images are: tensor cores need it, and a CPU is 26 and 29 % faster with it.

    (ResNet-20 at 24 pixels, ResNet-32 at 32; fp32, two cores; against the contiguous layout.)
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
