"""CRC-32 (the one of zlib) as compiled code, so that loaders can check bytes inside their compiled, parallel loops."""

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.compiled import exact
from pipelines.records import Records


def _tables() -> np.ndarray:
    """uint32[8, 256]: table k advances a byte through k further zero bytes (slicing by 8)."""
    tables = np.empty((8, 256), np.uint32)
    # zlib applies a final inversion; undoing it for one byte gives the plain table.
    tables[0] = [zlib.crc32(bytes([i]), 0xFFFFFFFF) ^ 0xFFFFFFFF for i in range(256)]
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> np.uint32(8)) ^ tables[0][tables[k - 1] & np.uint32(0xFF)]
    return tables


_TABLES = _tables()


@exact
def crc32(data, value=0):
    """zlib.crc32 of uint8 `data`, continued from `value`."""
    crc = np.uint32(~np.uint32(value))
    n = len(data)
    i = 0
    while i + 8 <= n:
        low = crc ^ (
            np.uint32(data[i])
            | np.uint32(data[i + 1]) << np.uint32(8)
            | np.uint32(data[i + 2]) << np.uint32(16)
            | np.uint32(data[i + 3]) << np.uint32(24)
        )
        crc = (
            _TABLES[7, low & np.uint32(0xFF)]
            ^ _TABLES[6, (low >> np.uint32(8)) & np.uint32(0xFF)]
            ^ _TABLES[5, (low >> np.uint32(16)) & np.uint32(0xFF)]
            ^ _TABLES[4, low >> np.uint32(24)]
            ^ _TABLES[3, data[i + 4]]
            ^ _TABLES[2, data[i + 5]]
            ^ _TABLES[1, data[i + 6]]
            ^ _TABLES[0, data[i + 7]]
        )
        i += 8
    while i < n:
        crc = _TABLES[0, (crc ^ np.uint32(data[i])) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        i += 1
    return np.uint32(~crc)


@exact
def _first_damaged(data, offsets, sizes, crcs, positions, unchecked, check_always):
    """Index into `positions` of the first record whose bytes have another CRC, -1 if there is none."""
    for i in range(len(positions)):
        k = positions[i]
        if unchecked[k]:
            if crc32(data[offsets[k] : offsets[k] + sizes[k]]) != crcs[k]:
                return i
            if not check_always:
                unchecked[k] = 0
    return -1


class Verifier:
    """Checks records by the rule of data.verify: each on first touch, at every touch (`always`), or never (`off`)."""

    def __init__(self, records: Records, verify: str, workers: int):
        self._records, self._workers = records, workers
        self._always = verify == "always"
        self._unchecked = np.full(len(records), verify != "off", np.uint8)

    def check(self, positions: np.ndarray) -> None:
        """Raise UserError naming a damaged record among `positions`."""
        due = positions[self._unchecked[positions] != 0]
        if not len(due):
            return
        r = self._records

        def first_damaged(part: np.ndarray) -> int:
            return _first_damaged(r.data, r.offsets, r.sizes, r.crcs, part, self._unchecked, self._always)

        parts = np.array_split(due, min(self._workers, len(due)))
        with ThreadPoolExecutor(len(parts)) as pool:  # the compiled loop runs without the GIL
            for part, found in zip(parts, pool.map(first_damaged, parts), strict=True):
                if found >= 0:
                    r.verify(int(part[found]))
