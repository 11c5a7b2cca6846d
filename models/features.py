"""The features of a network: what goes into its last layer, for pictures and measures of them.

Owns how that layer is found; several experts have one each. Invariant: the network's answers stay as they are; a hook only
looks on.
Shapes: B batch, D features; of experts, those of all of them side by side.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.experts import Experts


def last_layers(network: nn.Module) -> list[nn.Module]:
    """The layer that maps features [B, D] to logits, or that of each expert.

    ValueError, worded for the user, where there is no single one.
    """
    experts = getattr(network, "experts", None)
    return experts.heads() if isinstance(experts, Experts) else [_last_layer(network)]


def _last_layer(network: nn.Module) -> nn.Module:
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
    layers = last_layers(network)
    parts: list[Tensor] = []
    seen: list[Tensor] = []

    def look(place: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parts[place:] = [inputs[0].detach().flatten(1).float()]  # a layer that was never reached leaves no stale part
        if len(parts) == len(layers):
            seen[:] = [torch.cat(parts, dim=1)]

    with ExitStack() as hooks:
        for place, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(look, place)).remove)
        yield seen
