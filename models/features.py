"""The features of a network: what goes into its last layer, for pictures and measures of them.

Owns how that layer is found; several experts have one each, and their features are put side by side. Invariant: the network's
answers stay as they are; a hook only looks on.
Shapes: B batch, D features, S side of an image.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.experts import Experts
from models.router import all_experts


class UnknownFeatures(ValueError):
    """A network whose last layer cannot be told; worded for the user."""

    def __init__(self, network: nn.Module, reason: str):
        super().__init__(f"the features of {type(network).__name__} are not known: {reason}")


def last_layers(network: nn.Module) -> list[nn.Module]:
    """The last layer of each expert, or of a network without experts; UnknownFeatures as below."""
    experts = getattr(network, "experts", None)
    return experts.heads() if isinstance(experts, Experts) else [last_layer(network)]


def last_layer(network: nn.Module) -> nn.Module:
    """The layer that maps features [B, D] to logits, where there are no experts; UnknownFeatures where there is no single one."""
    # timm's own answer counts first: some of its networks call another layer `fc`.
    named: Any = network.get_classifier() if hasattr(network, "get_classifier") else getattr(network, "fc", None)  # pyright: ignore[reportCallIssue]
    if not isinstance(named, nn.Module) or isinstance(named, nn.Identity):
        raise UnknownFeatures(network, "it has no single last layer, neither as `fc` nor by timm's get_classifier()")
    return named


def _hooked(network: nn.Module, look: Callable[[int, Tensor], None]) -> ExitStack:
    """While this is open, `look(i, inputs)` is called with the inputs of last layer `i` before it runs; all run on all images."""
    hooks = ExitStack()
    hooks.enter_context(all_experts(network))
    for i, layer in enumerate(last_layers(network)):
        handle = layer.register_forward_pre_hook(partial(_inputs, look, i))
        hooks.callback(handle.remove)
    return hooks


def _inputs(look: Callable[[int, Tensor], None], i: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    look(i, inputs[0])


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Tensor]]:
    """Gives a list that holds, after each forward pass, the features float32 [B, D] of that pass alone."""
    count = len(last_layers(network))
    parts: dict[int, Tensor] = {}
    seen: list[Tensor] = []

    def look(i: int, inputs: Tensor) -> None:
        parts[i] = inputs.detach().flatten(1).float()
        if len(parts) == count:
            seen[:] = [torch.cat([parts.pop(i) for i in range(count)], dim=1)]

    with _hooked(network, look):
        yield seen


@torch.no_grad()
def require_features(network: nn.Module, size: int, device: torch.device) -> None:
    """UnknownFeatures unless `watched` will find them: tried on one blank image, S = `size`, in eval mode."""
    calls = [0] * len(last_layers(network))

    def count(i: int, _: Tensor) -> None:
        calls[i] += 1

    modes = [(part, part.training) for part in network.modules()]
    try:
        with _hooked(network, count):
            network.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        for part, training in modes:
            part.training = training
    for times in calls:
        if times != 1:
            raise UnknownFeatures(network, f"an image goes through its last layer {times} times, not once")
