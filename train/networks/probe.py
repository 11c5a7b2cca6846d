"""Why a forward pass failed: a network that does not take the images of the recipe is told from a fault of the program.

Owns the words for it. A network of the same kind is built anew and tried on blank images, on the CPU, where no error of a device
interferes; nothing is tried as long as nothing fails. Invariant: an error that this try does not repeat is left as it was.
Shapes: B batch, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models import ModelSpec, outputs_of, set_training
from pipelines.errors import UserError, first_line
from train.networks.weights import build

_ONE_VALUE = "more than 1 value per channel"  # torch's error of batch norm in training
_SHAPES = (RuntimeError, ValueError, AssertionError)  # what a network may raise for a shape that it does not take


@contextmanager
def explained(spec: ModelSpec, size: int, origin: str, images: int | None = None) -> Iterator[None]:
    """Around forward passes of a network on images of `size` pixels: UserError, naming the shapes, where it does not take them.

    origin: where the network comes from, for messages. images: B of a forward pass in training; None: in eval mode.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _SHAPES:
        require_fit(build(spec, origin), spec, size, origin, images)
        raise


@torch.no_grad()
def require_fit(network: nn.Module, spec: ModelSpec, size: int, origin: str, images: int | None = None) -> None:
    """UserError unless the network maps [B, 3, size, size] to [B, C]; arguments as above. Its statistics may change."""
    if images is None:
        network.eval()
    else:
        set_training(network)
    blank = torch.zeros(min(images or 1, 2), 3, size, size)  # two say as much as more
    try:
        with torch.random.fork_rng([]):
            logits = outputs_of(network(blank)).logits
    except _SHAPES as error:
        words = first_line(error)
        if images is not None and _ONE_VALUE in words:
            raise UserError(
                f"optim.batch: {origin} is trained on {images} image at a time (optim.batch over processes and "
                f"optim.accumulate), and data.recipe.size={size} leaves maps of 1x1 pixel: batch norm needs more than one value "
                "for each channel; use a larger optim.batch or data.recipe.size, or a smaller optim.accumulate"
            ) from error
        raise UserError(
            f"{origin} ({spec}) does not take images of {size}x{size} pixels ({words}): use the data.recipe.size that it was "
            "made for, or another network"
        ) from error
    if logits.shape != (len(blank), spec.num_classes):
        raise UserError(
            f"{origin} ({spec}) gives outputs {list(logits.shape)} for {len(blank)} images, not {[len(blank), spec.num_classes]}"
        )
