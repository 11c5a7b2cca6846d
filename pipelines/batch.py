"""What passes through a loader: the plan of a batch (order.py), its random draws, and the batch itself."""

from typing import NamedTuple

import numpy as np
import torch


class Plan(NamedTuple):
    """Which views make one batch: row i is view views[i] of the sample at positions[i] of the records.

    For mixtures of two images each row has a partner, view partner_views[i] of the sample at partners[i].
    """

    positions: np.ndarray
    "int64 [B]"
    views: np.ndarray
    "int32 [B]"
    partners: np.ndarray | None = None
    "int64 [B]; None = nothing is mixed"
    partner_views: np.ndarray | None = None
    "int32 [B], where there are partners"

    def of_partners(self) -> "Plan | None":
        """The partners' views as a plan of their own; None where there are none."""
        if self.partners is None or self.partner_views is None:
            return None
        return Plan(self.partners, self.partner_views)


class Boxes(NamedTuple):
    """What B views show of their stored images, in pixels (geometry.py)."""

    windows: np.ndarray
    "int32 [B, 4]: x, y, w, h of the pixels that are read"
    insides: np.ndarray
    "float64 [B, 4]: x, y, w, h of the box that is shown, in its window"
    flips: np.ndarray
    "int32 [B]: 1 = mirrored"


class Draws(NamedTuple):
    """The random draws for each view of a batch (augment/transforms.py), on the host; rows are those of its Plan."""

    boxes: Boxes
    "which part of each image is shown, and whether it is mirrored"
    colours: tuple[np.ndarray, np.ndarray] | None = None
    "factors float32 [B, 3] and order int64 [B, 3], as in Colours; None without jitter"
    angles: np.ndarray | None = None
    "float64 [B]: degrees, counter-clockwise (rotation.py); None without rotation"
    operations: "Operations | None" = None
    "those of a policy (policy.py); None without one"
    grey: np.ndarray | None = None
    "bool [B]: whether a view has lost its colours (grey.py); None where no view has"
    holes: tuple[np.ndarray, int] | None = None
    "boxes int32 [B, N, 4] and level, as in Holes; None without holes"
    mix: tuple[np.ndarray, np.ndarray | None] | None = None
    "ratios float32 [B] and boxes int32 [B, 4], as in Mix; None where nothing is mixed"


class Operations(NamedTuple):
    """L operations on each of B views, one after another (operations.py); on the host, where it is decided what is launched."""

    codes: np.ndarray
    "int64 [B, L]"
    values: np.ndarray
    "float64 [B, L]; the unit depends on the operation"


class Colours(NamedTuple):
    """Colour jitter of B views (colour.py), on the device."""

    factors: torch.Tensor
    "float32 [B, 3]: brightness, contrast, saturation"
    order: torch.Tensor
    "int64 [B, 3]: which of them comes first, second, third"


class Holes(NamedTuple):
    """Holes of B views (erase.py), on the device."""

    boxes: torch.Tensor
    "int32 [B, N, 4]: left, top, right, bottom in pixels, right and bottom outside"
    level: int
    "what they are filled with, 0..255"


class Mix(NamedTuple):
    """How B views are mixed with their partners (mix.py), on the device."""

    ratios: torch.Tensor
    "float32 [B]: the share of the view itself, in pixels and labels; 1 where it is not mixed"
    boxes: torch.Tensor | None
    "int32 [B, 4]: left, top, right, bottom of what is cut from the partner, right and bottom outside; None: a weighted mean"


class Batch(NamedTuple):
    """B views with what links them to labels and cached targets; row i of every field belongs to one sample."""

    images: torch.Tensor
    """[B, 3, S, S], float32 or the type of the Finish, finished (augmented, normalised), on the device; the same as pixels where
    the loader has no finish"""
    labels: torch.Tensor
    "int64 [B], on the device; of mixtures, those of the views themselves"
    keys: np.ndarray
    "int64 [B], on the host"
    views: np.ndarray
    "int32 [B], on the host"
    pixels: torch.Tensor
    "uint8 [B, S, S, 3], on the device: the crops, after crop and flip alone"
    colours: Colours | None = None
    "the jitter applied to them; None without jitter"
    partners: "Batch | None" = None
    "B more views, the second of each mixture; None where the plan has none"
    altered: torch.Tensor | None = None
    "uint8 [B, S, S, 3], on the device: the crops after rotation, policy and grey; None where all are off"
    holes: Holes | None = None
    "what is erased from them; None without holes"
    mix: Mix | None = None
    "how images were mixed from these views and the partners; None where nothing is mixed"

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start to stop (a micro-batch of gradient accumulation), without copying."""
        part = slice(start, stop)
        colours = self.colours and Colours(self.colours.factors[part], self.colours.order[part])
        return Batch(
            images=self.images[part],
            labels=self.labels[part],
            keys=self.keys[part],
            views=self.views[part],
            pixels=self.pixels[part],
            colours=colours,
            partners=self.partners and self.partners.rows(start, stop),
            altered=None if self.altered is None else self.altered[part],
            holes=self.holes and Holes(self.holes.boxes[part], self.holes.level),
            mix=self.mix and Mix(self.mix.ratios[part], None if self.mix.boxes is None else self.mix.boxes[part]),
        )
