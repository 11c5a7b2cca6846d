"""Restart markers for a JPEG that has none, so that a part of it can be decoded alone (restarts.py): the same coefficients.

Only the code of a component's first DC coefficient in each segment is another: prediction begins anew there, so it is coded as a
difference from 0. Every other bit of the scan is copied. A Huffman table may lack a code for such a difference; then it is given
one that continues a code it does not use, and all its other codes stay what they are. Header and tail of the file are kept.

Knows one kind of file: one sequential scan of all components, 8 bits per sample, Huffman codes, no restart markers. It leaves any
other alone, and one with the least fault. Invariant: what is written has the coefficients of the file given.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.compiled import exact
from pipelines.records.restarts import (
    APP10,
    DHT,
    DRI,
    EOI,
    MOST_SEGMENTS,
    NAME,
    RST0,
    SOF0,
    SOF1,
    SOF15,
    SOI,
    SOS,
)

# MCUs in a segment, where a row can be divided so. Fewer cost bytes and save hardly any decoding time, and many are decoded for
# the few that a view shows; measured in docs/storage.md.
_SHORTEST, _LONGEST = 3, 8
_DC_CATEGORIES = 12  # of differences between samples of 8 bits, T.81 table F.1
_LONGEST_CODE = 16
_BLOCK_ENDS = 128  # more coefficients than a block has
_SHORT = 10  # bits looked up at once: few codes are longer
_U = np.uint64  # unsigned indices: a signed one may be negative, and each would be tested for that


class _Header(NamedTuple):
    """What the coding of the scan depends on."""

    width: int
    height: int
    factors: list[tuple[int, int]]  # (across, down) of each component
    tables: list[tuple[int, int]]  # of each: the DC and the AC table, as they are numbered in `huffman`
    huffman: dict[int, bytes]  # class << 4 | number -> 16 counts and the symbols
    scan_header: int  # where it begins
    scan: int  # where the entropy-coded data begins


class _Grid(NamedTuple):
    """How the MCUs lie."""

    blocks: np.ndarray  # int64: the component of each block of an MCU
    columns: int
    rows: int


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a header, up to that of the scan or to anything unexpected."""
    at, marker = 2, SOI
    while data[:2] == bytes([0xFF, SOI]) and marker != SOS and at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            return
        yield marker, at, end
        at = end


def without_table(data: bytes) -> bytes:
    """The file without a list of segments that it has from elsewhere: another program may have changed the segments since."""
    for marker, start, end in reversed(list(_segments(data))):
        if marker == APP10 and data.startswith(NAME, start + 4):
            data = data[:start] + data[end:]
    return data


def _header(data: bytes) -> _Header | None:
    """None unless this is the kind of file that we know."""
    frames, huffman, scan = [], {}, None
    for marker, start, end in _segments(data):
        body = data[start + 4 : end]
        if marker == DHT:
            while len(body) > 16:
                size = 17 + sum(body[1:17])
                huffman[body[0]], body = body[1:size], body[size:]
        elif marker in (SOF0, SOF1):
            frames.append(body)
        elif SOF0 <= marker <= SOF15 or (marker == DRI and any(body)):
            return None
        elif marker == SOS:
            scan = body, start, end
    if len(frames) != 1 or scan is None:
        return None
    return _understood(frames[0], *scan, huffman)


def _understood(frame: bytes, scan: bytes, start: int, end: int, huffman: dict[int, bytes]) -> _Header | None:
    """The header of a frame and a scan (T.81, B.2.2 and B.2.3); None where they are of another kind, or lack a table."""
    count = frame[5] if len(frame) > 5 else 0
    if count not in (1, 3) or frame[0] != 8 or len(frame) != 6 + 3 * count or len(scan) != 4 + 2 * count:
        return None
    if scan[0] != count or scan[1:-3:2] != frame[6::3] or scan[-3:] != bytes([0, 63, 0]):
        return None
    factors = [(byte >> 4, byte & 15) for byte in frame[7::3]]
    tables = [(byte >> 4, 16 | byte & 15) for byte in scan[2:-3:2]]
    if not all(1 <= factor <= 4 for pair in factors for factor in pair):
        return None
    if not all(_is_code(huffman.get(number, b"")) for pair in tables for number in pair):
        return None
    width, height = int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    return _Header(width, height, factors, tables, huffman, start, end) if width and height else None


def _is_code(table: bytes) -> bool:
    """Whether a table is whole, and at every length leaves a code unused, as it must (T.81, annex C)."""
    code = 0
    for length, count in enumerate(table[:16], 1):
        code = 2 * code + count
        if code >= 1 << length:
            return False
    return len(table) > 16 and len(table) == 16 + sum(table[:16])


def _grid(header: _Header) -> _Grid:
    across, down = (8 * max(side) for side in zip(*header.factors, strict=True))
    blocks = np.repeat(np.arange(len(header.factors)), [a * d for a, d in header.factors])
    if len(header.factors) == 1:  # alone in its scan: an MCU is one block, whatever the sampling factors
        across, down, blocks = 8, 8, np.zeros(1, np.int64)
    return _Grid(blocks, -(-header.width // across), -(-header.height // down))


def _codes(table: bytes) -> dict[int, tuple[int, int]]:
    """Symbol -> (code, its length); T.81, annex C."""
    out, code, symbols = {}, 0, iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for _ in range(count):
            out[next(symbols)] = code, length
            code += 1
        code *= 2
    return out


def _extended(table: bytes, missing: list[int]) -> bytes | None:
    """A table with codes for more symbols, which continue its first unused code; None where they would be too long."""
    longest = max(length for length, count in enumerate(table[:16], 1) if count)
    length = longest + len(missing).bit_length()  # the code of ones alone stays unused
    if length > _LONGEST_CODE:
        return None
    counts = bytearray(table[:16])
    counts[length - 1] = len(missing)
    return bytes(counts) + table[16:] + bytes(missing)


class _Lookup(NamedTuple):
    """Tables of one class for compiled code, one row for each component.

    An entry is 0 where there is no code, else what it says << 8 | the bits of code and value. A DC code says the value's
    category; an AC code by how many coefficients the place moves on, _BLOCK_ENDS at the end of the block.
    """

    short: np.ndarray  # int64[C << _SHORT], by the next bits; 0 also where the code is longer
    limits: np.ndarray  # int64[C, 17]: 16 bits that begin with a code of at most this length are less
    first: np.ndarray  # int64[C, 17]: what to add to a code of this length for its place among the entries
    entries: np.ndarray  # int64[C, 256]


def _lookup(tables: list[bytes], is_dc: bool) -> _Lookup:
    count = len(tables)
    out = _Lookup(
        np.zeros(count << _SHORT, np.int64),
        np.zeros((count, 17), np.int64),
        np.zeros((count, 17), np.int64),
        np.zeros((count, 256), np.int64),
    )
    for c, table in enumerate(tables):
        _fill(np.frombuffer(table, np.uint8), is_dc, c, out)
    return out


@exact
def _fill(table, is_dc, c, lookup):
    code, n = 0, 0
    for length in range(1, _LONGEST_CODE + 1):
        lookup.first[c, length] = n - code
        for _ in range(table[length - 1]):
            symbol = np.int64(table[16 + n])
            run, size = symbol >> 4, symbol & 15
            if is_dc:
                known, says, size = symbol < _DC_CATEGORIES, symbol, symbol
            else:
                known = size > 0 or run == 0 or run == 15
                says = run + 1 if symbol else np.int64(_BLOCK_ENDS)
            lookup.entries[c, n] = says << 8 | (length + size) if known else 0
            if length <= _SHORT:
                start = (c << _SHORT) + (code << (_SHORT - length))
                lookup.short[start : start + (1 << (_SHORT - length))] = lookup.entries[c, n]
            code, n = code + 1, n + 1
        lookup.limits[c, length] = code << (_LONGEST_CODE - length)
        code *= 2


@exact
def _entry(lookup, c, window):
    """The entry of the code that the 64 bits of `window` begin with."""
    entry = lookup.short[(c << _U(_SHORT)) + (window >> _U(64 - _SHORT))]
    if entry == 0:
        bits = np.int64(window >> _U(64 - _LONGEST_CODE))
        for length in range(_SHORT + 1, _LONGEST_CODE + 1):
            if bits < lookup.limits[c, length]:
                return _U(lookup.entries[c, (bits >> (_LONGEST_CODE - length)) + lookup.first[c, length]])
    return _U(entry)


@exact
def _unstuffed(data, start, words):
    """Fill uint64 `words` with the scan that begins at `start`, first bit highest: (its bytes, where it ends in the file)."""
    n, at, word = np.int64(0), start, _U(0)
    while at + 1 < len(data):
        byte = data[at]
        if byte == 0xFF:
            if data[at + 1] != 0:
                break
            at += 1
        word = word << _U(8) | _U(byte)
        n, at = n + 1, at + 1
        if n & 7 == 0:
            words[(n >> 3) - 1] = word
    if n & 7:
        words[n >> 3] = word << _U(64 - 8 * (n & 7))
    return n, at


@exact
def _window(words, at):
    """The 64 bits from bit `at` on."""
    i, shift = at >> _U(6), at & _U(63)
    return words[i] << shift | (words[i + _U(1)] >> _U(1)) >> (_U(63) - shift)


class _Firsts(NamedTuple):
    """The first code of each component in each segment: int64[segments, C]."""

    starts: np.ndarray  # bit of the scan where it begins
    ends: np.ndarray  # and where its value ends
    values: np.ndarray  # the DC coefficient


@exact
def _parse(words, bits, mcus, interval, blocks, dc, ac, firsts):
    """Fill `firsts`: the bits of the scan without its padding; 0 where it has a fault. bits: those with its padding."""
    components = firsts.values.shape[1]
    at = _U(0)
    before, waiting = np.zeros(components, np.int64), np.zeros(components, np.uint8)
    for mcu in range(mcus):
        if mcu % interval == 0:
            waiting[:] = 1
        for b in range(_U(len(blocks))):
            c = _U(blocks[b])
            window = _window(words, at)
            entry = _entry(dc, c, window)
            if entry == 0:
                return np.int64(0)
            size, length = entry >> _U(8), entry & _U(255)
            if size:
                before[c] += _signed(np.int64((window << (length - size)) >> (_U(64) - size)), np.int64(size))
            if waiting[c]:
                s = mcu // interval
                firsts.starts[s, c], firsts.ends[s, c], firsts.values[s, c] = at, at + length, before[c]
                waiting[c] = 0
            at += length
            k = _U(1)
            while k < _U(64):
                entry = _entry(ac, c, _window(words, at))
                if entry == 0:
                    return np.int64(0)
                at += entry & _U(255)
                k += entry >> _U(8)
            if _U(64) < k < _U(_BLOCK_ENDS) or at > _U(bits):
                return np.int64(0)
    return np.int64(at) if _U(bits) < at + _U(8) else np.int64(0)


@exact
def _signed(value, size):
    """The number that `size` bits stand for (T.81, F.2.2.1: EXTEND)."""
    return value if value >> (size - 1) else value - (1 << size) + 1


@exact
def _put(out, state, value, count):
    """Append `count` <= 32 bits, with a 0 after each byte of ones. state: bytes written, bits that wait, and their number."""
    n, waiting, held = state
    waiting = waiting << _U(count) | value
    held += count
    while held >= 8:
        held -= 8
        byte = np.uint8(waiting >> _U(held) & _U(255))
        out[n], out[n + 1] = byte, 0
        n += 2 if byte == 255 else 1
    return n, waiting, held


@exact
def _recode(words, bits, firsts, codes, lengths, out, sizes):
    """Write the segments, each with a marker after it, to uint8 `out`: where the last one ends.

    codes, lengths: int64[C, 12], of the DC categories. sizes: int64[segments], the bytes of each without its marker.
    """
    segments, components = firsts.values.shape
    n = np.int64(0)
    for s in range(segments):
        state = (n, _U(0), np.int64(0))
        for c in range(components):
            value, size = firsts.values[s, c], np.int64(0)
            while abs(value) >> size:
                size += 1
            state = _put(out, state, _U(codes[c, size]), lengths[c, size])
            state = _put(out, state, _U(value if value >= 0 else value + (1 << size) - 1), size)
            at, end = firsts.ends[s, c], bits
            if c + 1 < components:
                end = firsts.starts[s, c + 1]
            elif s + 1 < segments:
                end = firsts.starts[s + 1, 0]
            while at < end:
                count = min(end - at, 32)
                state = _put(out, state, _window(words, _U(at)) >> _U(64 - count), count)
                at += count
        if state[2]:  # padded with ones
            state = _put(out, state, _U(255) >> _U(state[2]), 8 - state[2])
        sizes[s] = state[0] - n
        n = state[0]
        out[n], out[n + 1] = 0xFF, RST0 + s % 8
        n += 2
    return n - 2


def _complete(header: _Header, values: np.ndarray) -> dict[int, bytes] | None:
    """The DC tables that have a code for each of `values` int64[segments, C]; None where one cannot have it."""
    categories = np.frexp(np.abs(values))[1]  # the bits of a whole number
    out = {}
    for number in {dc for dc, _ in header.tables}:
        table = header.huffman[number]
        own = [c for c, (dc, _) in enumerate(header.tables) if dc == number]
        missing = sorted(set(np.unique(categories[:, own]).tolist()) - set(table[16:]))
        if missing and missing[-1] >= _DC_CATEGORIES:
            return None
        extended = _extended(table, missing) if missing else table
        if extended is None:
            return None
        out[number] = extended
    return out


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def _interval(columns: int, rows: int) -> int:
    """MCUs in a segment, a divisor of those in a row: the smallest that fits, else the largest below, else the smallest above.

    Each only if a header can list all the segments; `columns` where it cannot even list the rows.
    """
    divisors = [k for k in range(1, columns + 1) if columns % k == 0]
    fit = [k for k in divisors if _SHORTEST <= k <= _LONGEST]
    below, above = [k for k in divisors if k < _SHORTEST], [k for k in divisors if k > _LONGEST]
    return next((k for k in (*fit, *reversed(below), *above) if columns // k * rows <= MOST_SEGMENTS), columns)


def marked(data: bytes) -> bytes | None:
    """The JPEG with restart markers and the list of its segments; None for a file that is left alone."""
    header = _header(data)
    if header is None:
        return None
    grid = _grid(header)
    interval = _interval(grid.columns, grid.rows)
    segments = grid.columns // interval * grid.rows
    if not 1 < segments <= MOST_SEGMENTS:
        return None
    words = np.zeros((len(data) - header.scan) // 8 + 64, np.uint64)  # a faulty block may read on for 64 codes
    size, tail = _unstuffed(np.frombuffer(data, np.uint8), header.scan, words)
    if data[tail : tail + 2] != bytes([0xFF, EOI]):
        return None
    firsts = _Firsts(*np.empty((3, segments, len(header.tables)), np.int64))
    dc, ac = (
        _lookup([header.huffman[pair[i]] for pair in header.tables], is_dc) for i, is_dc in enumerate((True, False))
    )
    bits = _parse(words, 8 * size, grid.columns * grid.rows, interval, grid.blocks, dc, ac, firsts)
    tables = _complete(header, firsts.values) if bits else None
    if tables is None:
        return None
    codes, lengths = np.zeros((2, len(header.tables), _DC_CATEGORIES), np.int64)
    for c, (number, _) in enumerate(header.tables):
        for category, (code, length) in _codes(tables[number]).items():
            if category < _DC_CATEGORIES:
                codes[c, category], lengths[c, category] = code, length
    out, sizes = np.empty(2 * size + 64 * segments, np.uint8), np.empty(segments, np.int64)
    end = _recode(words, bits, firsts, codes, lengths, out, sizes)
    if sizes.max() > 0xFFFF:
        return None
    more = [
        _segment(DHT, bytes([number]) + table) for number, table in tables.items() if table != header.huffman[number]
    ]
    more += [_segment(DRI, interval.to_bytes(2)), _segment(APP10, NAME + sizes.astype(">u2").tobytes())]
    return b"".join(
        [data[: header.scan_header], *more, data[header.scan_header : header.scan], out[:end].tobytes(), data[tail:]]
    )
