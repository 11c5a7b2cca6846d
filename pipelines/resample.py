"""Crop, resize and flip in one pass over decoded pixels, for every backend that decodes on the CPU.

The filter is the antialiased triangle (PIL's BILINEAR), computed as PIL computes it: weights in double, rounded to 22-bit
integers, a horizontal pass, 8-bit rounding, a vertical pass. Only integers touch pixels, so the result is the same on every
machine: bit for bit what PIL gives for the two passes in this order (recent Pillow swaps them for tall boxes: within 1 level).
"""

import numpy as np

from pipelines.compiled import exact

RESAMPLE_VERSION = 1  # raise when any output pixel changes; part of a cache's identity
_BITS = 22  # 32 bits less 8 for the pixel and 2 for the sum, as in Pillow's Resample.c


@exact
def _weights(length, size):
    """Triangle weights that turn `length` pixels into `size`: (first source pixel, count, integer weights)."""
    scale = length / size
    support = max(scale, 1.0)
    first = np.empty(size, np.int64)
    count = np.empty(size, np.int64)
    weights = np.zeros((size, np.int64(np.ceil(support)) * 2 + 1), np.int32)
    row = np.empty(weights.shape[1], np.float64)
    for i in range(size):
        center = (i + 0.5) * scale
        low = max(np.int64(center - support + 0.5), 0)
        n = min(np.int64(center + support + 0.5), length) - low
        total = 0.0
        for j in range(n):
            row[j] = max(1.0 - abs((j + low - center + 0.5) * (1.0 / support)), 0.0)
            total += row[j]
        for j in range(n):
            weights[i, j] = np.int32(0.5 + row[j] / total * (1 << _BITS))
        first[i], count[i] = low, n
    return first, count, weights


@exact
def _copy(source, x, y, flip, out):
    """Copy an out-sized window whose corner is (x, y); what lies outside the source is 0."""
    height, width = source.shape[0], source.shape[1]
    size = out.shape[1]
    for i in range(out.shape[0]):
        for j in range(size):
            row, column = y + i, x + (size - 1 - j if flip else j)
            inside = 0 <= row < height and 0 <= column < width
            for c in range(3):
                out[i, j, c] = source[row, column, c] if inside else np.uint8(0)


@exact
def crop_resize_flip(source, x, y, w, h, flip, out):
    """Write the box (x, y, w, h) of uint8 source[H, W, 3], resized to out[S, S, 3] and mirrored if `flip`, into `out`.

    A box of the output's size is copied (it may reach outside: zeros); any other box must lie inside the source.
    """
    size_y, size_x = out.shape[0], out.shape[1]
    if w == size_x and h == size_y:
        _copy(source, x, y, flip, out)
        return
    half = np.int32(1 << (_BITS - 1))
    first, count, weights = _weights(w, size_x)
    middle = np.empty((h, size_x * 3), np.uint8)
    for j in range(size_x):
        start, n = x + first[j], count[j]
        column = 3 * (size_x - 1 - j if flip else j)
        for i in range(h):
            r, g, b = half, half, half
            for k in range(n):
                weight = weights[j, k]
                r += source[y + i, start + k, 0] * weight
                g += source[y + i, start + k, 1] * weight
                b += source[y + i, start + k, 2] * weight
            middle[i, column] = r >> _BITS
            middle[i, column + 1] = g >> _BITS
            middle[i, column + 2] = b >> _BITS
    first, count, weights = _weights(h, size_y)
    sums = np.empty(size_x * 3, np.int32)
    for i in range(size_y):
        sums[:] = half
        for k in range(count[i]):
            weight = weights[i, k]
            line = middle[first[i] + k]
            for j in range(size_x * 3):
                sums[j] += np.int32(line[j]) * weight
        for j in range(size_x):
            for c in range(3):
                out[i, j, c] = sums[3 * j + c] >> _BITS
