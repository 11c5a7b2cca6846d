"""The features of a network: what goes into its last layer, for pictures and measures of them.

Owns how that layer is found. Invariant: the network's answers stay as they are; a hook only looks on.
Shapes: B batch, D features, S side of an image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class UnknownFeatures(ValueError):
    """A network whose last layer cannot be told; worded for the user."""

    def __init__(self, network: nn.Module, reason: str):
        super().__init__(f"the features of {type(network).__name__} are not known: {reason}")


def last_layer(network: nn.Module) -> nn.Module:
    """The layer that maps features [B, D] to logits; UnknownFeatures where there is no single one."""
    # timm's own answer counts first: some of its networks call another layer `fc`.
    named: Any = network.get_classifier() if hasattr(network, "get_classifier") else getattr(network, "fc", None)  # pyright: ignore[reportCallIssue]
    if not isinstance(named, nn.Module) or isinstance(named, nn.Identity):
        raise UnknownFeatures(network, "it has no single last layer, neither as `fc` nor by timm's get_classifier()")
    return named


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Tensor]]:
    """Gives a list that holds, after each forward pass, the features float32 [B, D] of that pass alone."""
    seen: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0].detach().flatten(1).float()]

    handle = last_layer(network).register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def require_features(network: nn.Module, size: int, device: torch.device) -> None:
    """UnknownFeatures unless `watched` will find them: tried on one blank image, S = `size`, in eval mode."""
    calls: list[torch.Size] = []
    handle = last_layer(network).register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    modes = [(part, part.training) for part in network.modules()]
    try:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        handle.remove()
        for part, training in modes:
            part.training = training
    if len(calls) != 1:
        raise UnknownFeatures(network, f"an image goes through its last layer {len(calls)} times, not once")
