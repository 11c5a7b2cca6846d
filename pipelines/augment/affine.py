"""Affine maps of whole batches of 8-bit images, each image with a map of its own: rotations, shears, translations.

Pillow's Image.transform with the nearest pixel, bit for bit: it computes source coordinates in fixed point, with 16 bits after
the point, and so does this. Matrices are made on the host; owns no draws.
"""

import math

import numpy as np
import torch

from pipelines.compiled import exact

_BITS = 16


@exact
def _sin_cos(x):
    """(sin x, cos x) for |x| <= pi by their Taylor series: libm's last bit differs between machines, + * / do not."""
    sine, cosine = 1.0, 1.0
    for k in range(30, 0, -2):
        sine = 1.0 - sine * (x * x) / (k * (k + 1))
        cosine = 1.0 - cosine * (x * x) / (k * (k - 1))
    return x * sine, cosine


@exact
def _fixed(x):
    return np.int64(np.floor(x * (1 << _BITS) + 0.5))


@exact
def _round15(x):
    """x rounded to 15 places, as Pillow rounds sines: a quarter turn is then exact."""
    return np.floor(x * 1e15 + 0.5) / 1e15


@exact
def fixed_point(a, b, c, d, e, f, out):
    """Write the map (x, y) -> (a x + b y + c, d x + e y + f), from output to source, into int64 out[6] as `apply` takes it."""
    out[0], out[1], out[2] = _fixed(a), _fixed(b), _fixed(c + a * 0.5 + b * 0.5)  # of the centre of the first pixel
    out[3], out[4], out[5] = _fixed(d), _fixed(e), _fixed(f + d * 0.5 + e * 0.5)


@exact
def rotation(degrees, size, out):
    """Write the map of Image.rotate into int64 out[6]: counter-clockwise about the centre, -180 to 180 degrees."""
    sine, cosine = _sin_cos(-degrees * (math.pi / 180.0))
    sine, cosine, half = _round15(sine), _round15(cosine), size / 2.0
    x = cosine * -half + sine * -half + half
    y = -sine * -half + cosine * -half + half
    fixed_point(cosine, sine, x, -sine, cosine, y, out)


def apply(images: torch.Tensor, maps: torch.Tensor, fill: int) -> torch.Tensor:
    """uint8 [B, S, S, 3]: images [B, S, S, 3], each seen through its map int64 [B, 6]; fill: the level of what lies outside."""
    count, size = images.shape[:2]
    at = torch.arange(size, device=images.device)

    def source(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        across, down = a[:, None] * at, b[:, None] * at + c[:, None]
        return (across[:, None, :] + down[:, :, None]) >> _BITS

    a, b, c, d, e, f = maps.unbind(1)
    x, y = source(a, b, c), source(d, e, f)
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    row = torch.arange(count, device=images.device)[:, None, None] * size + y.clamp(0, size - 1)
    found = images.reshape(-1, 3)[row * size + x.clamp(0, size - 1)]
    return torch.where(inside[..., None], found, fill)
