"""The transform that follows crop and flip: colour jitter (torchvision's ColorJitter without hue).

Owns its draw, per view on the host, and its application, to a whole batch on the device.
"""

import numpy as np
import torch

from pipelines.batch import Colours
from pipelines.compiled import exact
from pipelines.philox import LANE_BRIGHTNESS, LANE_COLOUR_ORDER, LANE_CONTRAST, LANE_SATURATION, below, draw, uniform


@exact
def colours(p, keys, views):
    """Colour jitter of a batch: (factors float32[B, 3] of brightness, contrast, saturation; order int64[B, 3]).

    torchvision's ColorJitter without hue: each factor uniform in [max(0, 1 - j), 1 + j], the three in any of their six
    orders; order[i, n] is the n-th transform of sample i (0 brightness, 1 contrast, 2 saturation).
    """
    factors, order = np.empty((len(keys), 3), np.float32), np.empty((len(keys), 3), np.int64)
    for i in range(len(keys)):
        for k, lane, most in (
            (0, LANE_BRIGHTNESS, p.brightness),
            (1, LANE_CONTRAST, p.contrast),
            (2, LANE_SATURATION, p.saturation),
        ):
            factors[i, k] = uniform(draw(p.seed, keys[i], views[i], lane, 0)[0], max(0.0, 1.0 - most), 1.0 + most)
        which = below(draw(p.seed, keys[i], views[i], LANE_COLOUR_ORDER, 0)[0], 6)
        first = which // 2
        low, high = (1 if first == 0 else 0), (1 if first == 2 else 2)  # the two that are left, in order
        order[i, 0] = first
        order[i, 1], order[i, 2] = (low, high) if which % 2 == 0 else (high, low)
    return factors, order


_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


def jitter(images: torch.Tensor, colours: Colours) -> torch.Tensor:
    """Colour jitter of images [B, 3, S, S] in 0..1, each with its own factors in its own order.

    torchvision's tensor definitions: clamp(f x + (1 - f) base) to 0..1 with base = 0 (brightness), the mean grey value of
    the image (contrast), the grey image (saturation). Every place in the order is one blend with a base chosen per sample.
    """
    # Channel by channel: compiled for a CPU that is three times as fast as on the tensor of four dimensions.
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
