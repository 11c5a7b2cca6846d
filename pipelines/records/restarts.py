"""JPEG files of which a part can be decoded alone: where their segments lie, and the JPEG of a rectangle of them.

A restart marker ends a segment of the scan, and the next segment is decoded without it (ITU T.81, F.1.1.5.2). Where the length of
the segments divides a row of MCUs (the smallest blocks that are coded together), they form a grid. Any rectangle of the grid is a
JPEG again: the same header with another height and width, the rectangle's segments one after the other with their markers counted
anew, and the end marker. The sizes of the segments stand in the header, in an APP10 segment, which every other reader skips: so
nothing searches for markers, and the record's checksum covers the sizes. marking.py writes such files.

    APP10: 0xFF 0xEA, length (2 bytes), "DiVEsegs", size of each segment without its marker (2 bytes each); big-endian

Invariant: the pixels of a part, but for its margin, are bit for bit those of the whole image.
"""

import numpy as np

from pipelines.compiled import exact

SOI, EOI, SOS, DRI, DHT, COM, RST0 = 0xD8, 0xD9, 0xDA, 0xDD, 0xC4, 0xFE, 0xD0
SOF0, SOF1, SOF15 = 0xC0, 0xC1, 0xCF
APP0, APP10, APP14, APP15 = 0xE0, 0xEA, 0xEE, 0xEF
NAME = b"DiVEsegs"
MOST_SEGMENTS = (65_535 - 2 - len(NAME)) // 2  # that one APP10 segment can list
# Pixels decoded beside a box, in a direction in which chroma has fewer samples than pixels: it is interpolated from the nearest
# sample outside. And libjpeg interpolates only rows of more than two chroma samples: a part has at least five columns, or all.
MARGIN, FEWEST_COLUMNS = 1, 5

_NAME = np.frombuffer(NAME, np.uint8)


@exact
def _u16(data, at):
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@exact
def _is_table(data, at, end):
    """Whether the segment whose marker stands at `at` lists the sizes of the restart segments."""
    if data[at + 1] != APP10 or end - at < 4 + len(_NAME):
        return False
    return (data[at + 4 : at + 4 + len(_NAME)] == _NAME).all()


@exact
def _copy(data, start, end, out, to):
    """Copy data[start:end] to out[to:] and return where it ends."""
    source, target = data[start:end], out[to : to + end - start]
    for i in range(np.uint64(len(source))):
        target[i] = source[i]
    return to + end - start


@exact
def _walk(data):
    """Where the parts of a header stand: (first size, number of sizes, frame header, restart interval, first scan byte).

    All are 0 where the header does not list the segments.
    """
    nothing = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    at, table, entries, frame, interval = np.int64(2), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + _u16(data, at + 2)
        if end > len(data):
            return nothing
        if _is_table(data, at, end):
            table = at + 4 + len(_NAME)
            entries = (end - table) // 2
        elif marker in (SOF0, SOF1):
            frame = at
        elif marker == DRI and end - at == 6:
            interval = _u16(data, at + 4)
        elif marker == SOS:
            return (table, entries, frame, interval, end) if entries and frame and interval else nothing
        at = end
    return nothing


def lists_segments(data: np.ndarray) -> bool:
    """Whether parts of a JPEG, uint8, can be decoded alone."""
    return bool(_walk(data)[1])


@exact
def part(data, width, height, window, out):
    """Write the JPEG of the part that holds a window to `out`: (its bytes; x, y, width and height of the part, in pixels).

    data: uint8; width, height: the size of the image. window: (x, y, w, h), which may reach outside. Nothing is written, and
    bytes is 0, where the whole is to be decoded: no segments are listed, all are needed, or `out` is shorter than `data`.
    """
    x, y, w, h = np.int64(window[0]), np.int64(window[1]), np.int64(window[2]), np.int64(window[3])
    whole = np.int64(0), np.int64(0), np.int64(0), np.int64(width), np.int64(height)
    table, entries, frame, interval, scan = _walk(data)
    if entries == 0 or len(out) < len(data):
        return whole
    across, down = _mcu_size(data, frame)
    if across == 0 or down == 0 or _u16(data, frame + 5) != height or _u16(data, frame + 7) != width:
        return whole
    beside, above = MARGIN * np.int64(across > 8), MARGIN * np.int64(down > 8)
    across *= interval  # from here on, of a segment
    columns, rows = -(-width // across), -(-height // down)
    left, top = max(x - beside, 0) // across, max(y - above, 0) // down
    right, bottom = -(-min(x + w + beside, width) // across), -(-min(y + h + above, height) // down)
    if width - left * across < FEWEST_COLUMNS:
        left = max(left - 1, 0)
    if entries != columns * rows or left >= right or top >= bottom or (right - left) * (bottom - top) == entries:
        return whole
    left_x, top_y = left * across, top * down
    size = min(right * across, width) - left_x, min(bottom * down, height) - top_y
    n = _copy_header(data, scan, size, out)
    n = _copy_rectangle(data, scan, table, columns, rows, left, right, top, bottom, out, n)
    return (n, left_x, top_y, size[0], size[1]) if n else whole


def cut(data: np.ndarray, width: int, height: int, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to decode of a JPEG for a window (x, y, w, h), a row of Boxes: its part or the whole, and where that lies.

    The place is int32 (x, y, w, h), in pixels of the whole.
    """
    out = np.empty(data.size, np.uint8)
    size, *place = part(data, width, height, window, out)
    return (out[:size] if size else data), np.array(place, np.int32)


@exact
def _copy_header(data, scan, size, out):
    """Write the header of a part of this (width, height): where it ends."""
    out[0], out[1] = data[0], data[1]  # the decoder judges them
    n, at = np.int64(2), np.int64(2)
    while at < scan:
        marker, end = data[at + 1], at + 2 + _u16(data, at + 2)
        if not (APP0 < marker <= APP15 and marker != APP14 or marker == COM):  # APP0 and APP14 decide the colours
            to = _copy(data, at, end, out, n)
            if marker in (SOF0, SOF1):
                out[n + 5], out[n + 6] = size[1] >> 8, size[1] & 0xFF
                out[n + 7], out[n + 8] = size[0] >> 8, size[0] & 0xFF
            n = to
        at = end
    return n


@exact
def _mcu_size(data, frame):
    """(width, height) of an MCU in pixels, from the frame header whose marker stands at `frame`; (0, 0) where it is not ours."""
    components = np.int64(data[frame + 9])
    if components == 1:  # alone in its scan, whatever its sampling factors
        return np.int64(8), np.int64(8)
    across, down = np.int64(0), np.int64(0)
    if components == 3 and _u16(data, frame + 2) == 17:
        for i in range(components):
            factors = np.int64(data[frame + 11 + 3 * i])
            across, down = max(across, factors >> 4), max(down, factors & 15)
    return 8 * across, 8 * down


@exact
def _copy_rectangle(data, scan, table, columns, rows, left, right, top, bottom, out, n):
    """Copy segments and end marker to out[n:]; returns where they end, 0 where the list of sizes does not fit the data."""
    at, done, number = scan, np.int64(0), 0
    for row in range(top, bottom):
        first, last = row * columns + left, row * columns + right
        at += _length(data, table, done, first)
        end = at + _length(data, table, first, last)
        if end > len(data) or n + end - at > len(out):
            return 0
        n, to = _copy(data, at, end, out, n), n
        for i in range(first, last):
            to += _u16(data, table + 2 * i) + 2
            if out[to - 2] != 0xFF or out[to - 1] != (EOI if i == columns * rows - 1 else RST0 + i % 8):
                return 0
            out[to - 1], number = RST0 + number % 8, number + 1
        at, done = end, last
    out[n - 1] = EOI
    return n


@exact
def _length(data, table, first, last):
    """Bytes of the segments from `first` up to `last`, with their markers."""
    total = np.int64(0)
    for i in range(first, last):
        total += _u16(data, table + 2 * i) + 2
    return total
