"""What passes through a loader: what a batch is to be (order.py), what chance decides about it, and the batch itself."""

from typing import NamedTuple

import numpy as np
import torch


class Plan(NamedTuple):
    """Which views make one batch: row i is view views[i] of the sample at positions[i] of the records."""

    positions: np.ndarray
    "int64 [B]"
    views: np.ndarray
    "int32 [B]"


class Draws(NamedTuple):
    """What chance has decided about each view of a batch (augment/transforms.py), on the host; rows are those of its Plan."""

    boxes: np.ndarray
    "int32 [B, 5]: x, y, w, h of the box on the stored image, in pixels, and whether it is flipped (geometry.py)"
    colours: tuple[np.ndarray, np.ndarray] | None = None
    "factors float32 [B, 3] and order int64 [B, 3], as in Colours; None without jitter"


class Colours(NamedTuple):
    """Colour jitter of B views (colour.py), on the device."""

    factors: torch.Tensor
    "float32 [B, 3]: brightness, contrast, saturation"
    order: torch.Tensor
    "int64 [B, 3]: which of them comes first, second, third"


class Batch(NamedTuple):
    """B views with what joins them to labels and cached targets; row i of every field belongs to one sample."""

    images: torch.Tensor
    "float32 [B, 3, S, S], finished (jittered, normalised), on the device"
    labels: torch.Tensor
    "int64 [B], on the device"
    keys: np.ndarray
    "int64 [B], on the host"
    views: np.ndarray
    "int32 [B], on the host"
    pixels: torch.Tensor
    "uint8 [B, S, S, 3], on the device: the crops before colour jitter and normalisation"
    colours: Colours | None = None
    "what jitter did to them; None without jitter"

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start to stop (a micro-batch of gradient accumulation), without copying."""
        part = slice(start, stop)
        colours = self.colours and Colours(self.colours.factors[part], self.colours.order[part])
        return Batch(
            self.images[part], self.labels[part], self.keys[part], self.views[part], self.pixels[part], colours
        )
