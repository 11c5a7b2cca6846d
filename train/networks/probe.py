"""Whether a network takes the images that it will be given: tried once on blank images, before anything is trained or written.

Owns that try and the words for a network of another input size. Invariant: the network, its statistics and all random numbers
are afterwards as they were.
Shapes: B batch, C classes, S side of the images.
"""

import copy

import torch
from torch import nn

from models import ModelSpec, outputs_of, set_training
from pipelines.errors import UserError

_ONE_VALUE = "more than 1 value per channel"  # torch's error of batch norm in training


@torch.no_grad()
def require_fit(network: nn.Module, spec: ModelSpec, size: int, origin: str, images: int | None = None) -> None:
    """UserError, naming the shapes, unless the network maps [B, 3, size, size] to [B, C].

    origin: where the network comes from, for messages. images: B of a forward pass in training (two say as much as more); None:
    the network is used in eval mode.
    """
    device = next(network.parameters()).device
    network = copy.deepcopy(network)
    if images is None:
        network.eval()
    else:
        set_training(network)
    blank = torch.zeros(min(images or 1, 2), 3, size, size, device=device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = outputs_of(network(blank)).logits
    except torch.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:  # whatever a network says of a shape that it does not take
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
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
