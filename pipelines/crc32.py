"""CRC-32 (zlib's) as compiled code, so that loaders can check bytes inside their compiled, parallel loops."""

import zlib

import numpy as np

from pipelines.compiled import exact


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
