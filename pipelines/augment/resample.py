"""Crop, resize and flip decoded pixels, for every backend that decodes on the CPU.

The filter is the antialiased triangle (PIL's BILINEAR), computed as PIL computes it: weights in double, rounded to 22-bit
integers, one pass per direction, 8-bit rounding after each. Pixels are computed with integers only, so the result is the same on
every machine: bit for bit what PIL gives with the vertical pass first (PIL itself mostly starts with the horizontal one: within
1 level). Each pass is a weighted sum of whole lines, which compiles to vector instructions; the second works on the
transposed picture.
"""

import numpy as np

from pipelines.compiled import exact

RESAMPLE_VERSION = 2  # raise when any output pixel changes; part of a cache's identity
_BITS = 22  # 32 bits less 8 for the pixel and 2 for the sum, as in Pillow's Resample.c
_HALF = np.int32(1 << (_BITS - 1))
# Pixel indices are unsigned: a signed index may be negative (Python counts those from the end), and the test for that
# keeps the compiler from using vector instructions (five times slower, measured).
_U = np.uint64
_TILE = _U(128)  # columns that are transposed at a time


@exact
def _weights(start, span, length, size):
    """Triangle weights that turn `span` of `length` pixels, from `start` on, into `size`: (first pixel, count, integer weights).

    As in PIL, start and span may be fractions, and the filter reads what lies beside the span too.
    """
    scale = span / size
    support = max(scale, 1.0)
    first = np.empty(size, np.int64)
    count = np.empty(size, np.int64)
    weights = np.zeros((size, np.int64(np.ceil(support)) * 2 + 2), np.int32)  # an even number: they are taken in pairs
    row = np.empty(weights.shape[1], np.float64)
    for i in range(size):
        center = start + (i + 0.5) * scale
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
def _resize_lines(source, start, stride, length, inside, span, reverse, out):
    """Resize `span` of `length` lines, from line `inside` on, into out[S, N].

    The first of the `length` begins at source[start], and they lie `stride` bytes apart.

    All lines are done in one call: in each call numba counts references to every array atomically, 50 ns a call (measured).
    Two lines are added at a time, so that the sums are read and written half as often; where there are no more, never.
    """
    first, count, weights = _weights(inside, span, length, out.shape[0])
    n, step, last = _U(out.shape[1]), _U(stride), _U(out.shape[0] - 1)
    sums = np.empty(out.shape[1], np.int32)
    for i in range(_U(out.shape[0])):
        to, lines = last - i if reverse else i, _U(count[i])
        a = _U(start) + _U(first[i]) * step
        end = a + (lines - _U(1)) * step
        b = min(a + step, end)  # a line without a second one stands in for it, at weight 0
        v, w = weights[i, _U(0)], weights[i, _U(1)]
        if lines <= _U(2):
            for j in range(n):
                out[to, j] = np.uint8(np.int32(_HALF + source[a + j] * v + source[b + j] * w) >> _BITS)
            continue
        for j in range(n):
            sums[j] = _HALF + source[a + j] * v + source[b + j] * w
        for k in range(_U(2), lines, _U(2)):
            a, b = b + step, min(b + step + step, end)
            v, w = weights[i, k], weights[i, k + _U(1)]
            for j in range(n):
                sums[j] += source[a + j] * v + source[b + j] * w
        for j in range(n):
            out[to, j] = np.uint8(sums[j] >> _BITS)


@exact
def _transpose(lines, columns):
    """columns[j, i] = lines[i, j]; as far as their number allows, eight lines at a time are packed into words: half the time.

    (The first of the eight is a word's lowest byte: all machines that numba supports are little-endian.) Only so many columns
    at a time that they stay in the first cache, because each is written in pieces: a third less time.
    """
    if lines.shape[0] % 8:
        for j in range(_U(lines.shape[1])):
            for i in range(_U(lines.shape[0])):
                columns[j, i] = lines[i, j]
        return
    words = columns.view(np.uint64)
    packed = np.empty(_TILE, np.uint64)
    for begin in range(_U(0), _U(len(words)), _TILE):
        n = min(_TILE, _U(len(words)) - begin)
        for g in range(_U(words.shape[1])):
            for j in range(n):
                word = _U(0)
                for r in range(8):
                    word |= _U(lines[_U(8) * g + _U(r), begin + j]) << _U(8 * r)
                packed[j] = word
            for j in range(n):  # separate: this loop cannot be vectorised, the one above can
                words[begin + j, g] = packed[j]


@exact
def _copy(source, x, y, flip, out):
    """Copy a window of the size of `out` whose corner is (x, y); pixels outside the source are 0."""
    height, width, size_y, size_x = source.shape[0], source.shape[1], out.shape[0], out.shape[1]
    left = max(0, -x)
    n = max(0, min(size_x, width - x) - left)
    pixels, target = source.reshape(-1), out.reshape(-1)
    target[:] = 0
    for i in range(max(0, -y), min(size_y, height - y)):
        at = _U(3 * ((y + i) * width + x + left))
        if flip:
            to = _U(3 * (i * size_x + size_x - 1 - left))
            for j in range(_U(n)):
                for c in range(_U(3)):
                    target[to - _U(3) * j + c] = pixels[at + _U(3) * j + c]
        else:
            to = _U(3 * (i * size_x + left))
            for j in range(_U(3 * n)):
                target[to + j] = pixels[at + j]


@exact
def crop_resize_flip(source, window, inside, flip, out):
    """Write a box of uint8 source[H, W, 3], resized to out[S, S, 3] and mirrored if `flip`, into `out`.

    window: int (x, y, w, h), the pixels that may be read; inside: float (x, y, w, h), the box in the window.
    A window of the output's size, all of it shown, is copied (it may reach outside the source, where pixels are 0); any other
    must lie in the source. Both pictures are C-contiguous.
    """
    x, y, w, h = np.int64(window[0]), np.int64(window[1]), np.int64(window[2]), np.int64(window[3])
    size_y, size_x = out.shape[0], out.shape[1]
    if w == size_x and h == size_y and inside[2] == w and inside[3] == h:
        _copy(source, x, y, flip, out)
        return
    width = source.shape[1]
    lines = np.empty((size_y, 3 * w), np.uint8)
    _resize_lines(source.reshape(-1), 3 * (y * width + x), 3 * width, h, inside[1], inside[3], 0, lines)
    columns = np.empty((3 * w, size_y), np.uint8)
    _transpose(lines, columns)
    across = np.empty((size_x, 3 * size_y), np.uint8)
    _resize_lines(columns.reshape(-1), 0, 3 * size_y, w, inside[0], inside[2], flip, across)
    _transpose(across.reshape((3 * size_x, size_y)), out.reshape((size_y, 3 * size_x)))
