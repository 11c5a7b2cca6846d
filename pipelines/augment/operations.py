"""The image operations that policies are made of, on whole batches of 8-bit images, each image with an operation of its own.

Pillow's, to the last bit: 8 bits go in and 8 bits come out, so that two operations in a row round between them as Pillow does.
Four mechanisms serve all of them, whatever was drawn: one gather of pixels (affine.py), one table of 256 levels for each
channel, a blend with the grey image, a blend with the smoothed one. Which image needs which is known on the host; nothing waits
for the device. Owns no draws and no magnitudes (policy.py).
"""

from collections.abc import Callable

import numpy as np
import torch

from pipelines.augment import affine
from pipelines.compiled import exact
from pipelines.device import to_device

IDENTITY = 0
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(1, 6)  # value: source pixels a pixel, pixels, degrees
BRIGHTNESS = 6  # value: the factor, 1 = no change
POSTERIZE = 7  # value: bits that are kept
SOLARIZE = 8  # value: the level from which on levels are inverted
INVERT = 9
CONTRAST = 10  # value: the factor, as for COLOR and SHARPNESS
AUTOCONTRAST, EQUALIZE = 11, 12
COLOR, SHARPNESS = 13, 14
FILL = 128  # the level outside a sheared, moved or turned image


def apply(images: torch.Tensor, codes: np.ndarray, values: np.ndarray) -> torch.Tensor:
    """uint8 [B, S, S, 3]: images [B, S, S, 3] after one operation each: codes int64 [B], values float64 [B], on the host."""
    order = np.argsort(codes, kind="stable")  # a mechanism's images lie together
    order = order[codes[order] != IDENTITY]
    if not len(order):
        return images
    rows = to_device(order, images.device)
    chosen, codes, values = images[rows], codes[order], values[order]
    ends = np.searchsorted(codes, [last for last, _ in _MECHANISMS], side="right").tolist()
    parts = [
        mechanism(chosen[start:end], codes[start:end], values[start:end])
        for start, end, (_, mechanism) in zip([0, *ends], ends, _MECHANISMS, strict=False)
        if start < end
    ]
    return images.index_copy(0, rows, torch.cat(parts))


# ---- moving pixels ----


@exact
def _maps(codes, values, size):
    """int64 [B, 6], as affine.apply takes them."""
    out = np.empty((len(codes), 6), np.int64)
    for i in range(len(codes)):
        code, value = codes[i], values[i]
        if code == ROTATE:
            affine.rotation(value, size, out[i])
        elif code == SHEAR_X:
            affine.fixed_point(1.0, value, 0.0, 0.0, 1.0, 0.0, out[i])
        elif code == SHEAR_Y:
            affine.fixed_point(1.0, 0.0, 0.0, value, 1.0, 0.0, out[i])
        elif code == TRANSLATE_X:
            affine.fixed_point(1.0, 0.0, -value, 0.0, 1.0, 0.0, out[i])
        else:
            affine.fixed_point(1.0, 0.0, 0.0, 0.0, 1.0, -value, out[i])
    return out


def _moved(images: torch.Tensor, codes: np.ndarray, values: np.ndarray) -> torch.Tensor:
    return affine.apply(images, to_device(_maps(codes, values, images.shape[1]), images.device), FILL)


# ---- tables of levels ----

_LEVELS = np.arange(256)


def _table(code: int, value: float) -> np.ndarray:
    """uint8 [256]: the table of an operation that does not depend on the image; of others, no change."""
    if code == BRIGHTNESS:  # Image.blend with black, which computes in float32
        return np.clip(np.float32(value) * _LEVELS.astype(np.float32), 0, 255).astype(np.uint8)
    if code == POSTERIZE:
        return (_LEVELS & ~(2 ** (8 - int(value)) - 1)).astype(np.uint8)
    if code in (SOLARIZE, INVERT):
        inverted = (value if code == SOLARIZE else 0) <= _LEVELS
        return np.where(inverted, 255 - _LEVELS, _LEVELS).astype(np.uint8)
    return _LEVELS.astype(np.uint8)


def _looked_up(images: torch.Tensor, codes: np.ndarray, values: np.ndarray) -> torch.Tensor:
    device = images.device
    bins = _bins(images)
    tables = np.stack([_table(code, value) for code, value in zip(codes.tolist(), values.tolist(), strict=True)])
    tables = to_device(tables, device)[:, None].repeat(1, 3, 1)
    contrast, auto, equalized, end = np.searchsorted(codes, [CONTRAST, AUTOCONTRAST, EQUALIZE, EQUALIZE + 1]).tolist()
    if contrast < auto:
        factors = to_device(values[contrast:auto].astype(np.float32), device)
        tables[contrast:auto] = _contrast(images[contrast:auto], factors)
    if auto < equalized:
        tables[auto:equalized] = _stretched(images[auto:equalized])
    if equalized < end:
        tables[equalized:end] = _equalized(images[equalized:end])
    return tables.view(-1)[bins]


def _bins(images: torch.Tensor) -> torch.Tensor:
    """int64 [B, S, S, 3]: the place of each pixel's level in tables [B, 3, 256]."""
    tables = torch.arange(3 * len(images), device=images.device).view(-1, 1, 1, 3)
    return tables * 256 + images


def _levels(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, device=images.device, dtype=dtype)


def _contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blends with the mean grey level, rounded half up."""
    count = images.shape[1] * images.shape[2]
    means = (2 * _grey(images).sum(dim=(1, 2)) + count) // (2 * count)
    return _blend(means[:, None].float(), _levels(images, torch.float32), factors[:, None])[:, None]


def _stretched(images: torch.Tensor) -> torch.Tensor:
    """ImageOps.autocontrast: darkest to 0, brightest to 255, in double as Python computes."""
    low, high = images.amin(dim=(1, 2)).double()[..., None], images.amax(dim=(1, 2)).double()[..., None]
    levels = _levels(images, torch.float64)
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)  # a number / tensor would round the reciprocal
    stretched = (levels * scale + -low * scale).clamp(0, 255)
    return torch.where(low < high, stretched, levels).to(torch.uint8)


def _equalized(images: torch.Tensor) -> torch.Tensor:
    """ImageOps.equalize: from the number of darker pixels, in whole numbers."""
    bins = _bins(images).flatten()
    counts = torch.zeros(len(images) * 3 * 256, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, bins, torch.ones_like(bins)).view(-1, 3, 256)
    brightest = counts.gather(2, images.amax(dim=(1, 2)).long()[..., None])
    step = (images.shape[1] * images.shape[2] - brightest) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp(max=255), _levels(images, torch.int64)).to(torch.uint8)


# ---- blends ----


def _blend(base: torch.Tensor, images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Image.blend of float32 levels: base + factor * (image - base), cut to 0..255 and rounded towards 0."""
    return (base + factors * (images - base)).clamp(0, 255).to(torch.uint8)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """int32 [B, S, S]: Image.convert("L")."""
    red, green, blue = images.to(torch.int32).unbind(3)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _factors(images: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    return to_device(values.astype(np.float32), images.device)[:, None, None, None]


def _coloured(images: torch.Tensor, codes: np.ndarray, values: np.ndarray) -> torch.Tensor:
    """ImageEnhance.Color: a blend with the grey image."""
    return _blend(_grey(images)[..., None].float(), images.float(), _factors(images, values))


def _sharpened(images: torch.Tensor, codes: np.ndarray, values: np.ndarray) -> torch.Tensor:
    """ImageEnhance.Sharpness: a blend with ImageFilter.SMOOTH, which leaves the border as it is."""
    levels = images.float()
    smooth = levels.clone()
    columns = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    sums = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * levels[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = (sums / 13 + 0.5).floor()  # never near a half: no multiple of 1/13 is
    return _blend(smooth, levels, _factors(images, values))


_Mechanism = Callable[[torch.Tensor, np.ndarray, np.ndarray], torch.Tensor]
_MECHANISMS: tuple[tuple[int, _Mechanism], ...] = (  # the last code of each
    (ROTATE, _moved),
    (EQUALIZE, _looked_up),
    (COLOR, _coloured),
    (SHARPNESS, _sharpened),
)
