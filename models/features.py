"""The features of a network: what goes into its last layer, for pictures and measures of them.

Owns how that layer is found. Invariant: the network's answers stay as they are; a hook only looks on.
Shapes: B batch, D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def last_layer(network: nn.Module) -> nn.Module:
    """The layer that maps features [B, D] to logits; ValueError, worded for the user, where there is no single one."""
    named: Any = getattr(network, "fc", None)
    if named is None and hasattr(network, "get_classifier"):  # timm
        named = network.get_classifier()  # pyright: ignore[reportCallIssue]
    if not isinstance(named, nn.Module) or isinstance(named, nn.Identity):
        raise ValueError(
            f"the features of {type(network).__name__} are not known: it has no single last layer, neither as `fc` nor by "
            "timm's get_classifier()"
        )
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
