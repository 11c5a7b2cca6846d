"""The transform that follows crop and flip: colour jitter (torchvision's ColorJitter without hue).

Owns its draw, per view on the host; its application to a whole batch on the device, which finish.py calls; and the settings of
a recipe that decide its colours.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Colours, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_BRIGHTNESS, LANE_COLOUR_ORDER, LANE_CONTRAST, LANE_SATURATION, below, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records


@exact
def colours(p, keys, views):
    """Colour jitter of a batch: (factors float32[B, 3] of brightness, contrast, saturation; order int64[B, 3]).

    torchvision's ColorJitter without hue: each factor uniform in [max(0, 1 - j), 1 + j], the three in any of the six
    orders; order[i, n] is the n-th transform of sample i (0 brightness, 1 contrast, 2 saturation).
    """
    factors, order = np.empty((len(keys), 3), np.float32), np.empty((len(keys), 3), np.int64)
    for i in range(len(keys)):
        for k, lane, most in (
            (0, LANE_BRIGHTNESS, p.brightness),
            (1, LANE_CONTRAST, p.contrast),
            (2, LANE_SATURATION, p.saturation),
        ):
            factors[i, k] = uniform(
                philox_draw(p.seed, keys[i], views[i], lane, 0)[0], max(0.0, 1.0 - most), 1.0 + most
            )
        which = below(philox_draw(p.seed, keys[i], views[i], LANE_COLOUR_ORDER, 0)[0], 6)
        first = which // 2
        low, high = (1 if first == 0 else 0), (1 if first == 2 else 2)  # the remaining two, in order
        order[i, 0] = first
        order[i, 1], order[i, 2] = (low, high) if which % 2 == 0 else (high, low)
    return factors, order


def draw(params: ViewParams, records: Records, plan: Plan) -> tuple[np.ndarray, np.ndarray] | None:
    """The colours of a batch, as in Draws; None without jitter."""
    if not (params.brightness or params.contrast or params.saturation):
        return None
    return colours(params, records.keys[plan.positions], plan.views)


_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


def apply(images: torch.Tensor, colours: Colours) -> torch.Tensor:
    """Colour jitter of images [B, 3, S, S] in 0..1, each with its own factors in its own order.

    torchvision's tensor definitions: clamp(f x + (1 - f) base) to 0..1 with base = 0 (brightness), the mean grey value of
    the image (contrast), the grey image (saturation). Each place in the order is one blend, whose base is chosen per sample.
    """
    # Channel by channel: compiled for a CPU, this is three times as fast as on the four-dimensional tensor.
    channels = list(images.unbind(1))
    for place in range(3):
        which = colours.order[:, place, None]
        factor = colours.factors.gather(1, which)[:, :, None]
        which = which[:, :, None]
        red, green, blue = channels
        grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
        base = torch.where(which == 2, grey, grey.mean(dim=(1, 2), keepdim=True) * (which == 1))
        channels = [(factor * channel + (1 - factor) * base).clamp(0, 1) for channel in channels]
    return torch.stack(channels, dim=1)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide its colours; empty without jitter."""
    return {"jitter": list(recipe.jitter)} if any(recipe.jitter) else {}
