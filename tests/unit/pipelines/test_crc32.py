"""CRC-32 in compiled code against zlib's."""

import zlib

import numpy as np
import pytest

from pipelines.crc32 import crc32


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 100_003, np.uint8)


def test_every_short_length_at_every_alignment(noise: np.ndarray) -> None:
    for length in range(40):
        for start in range(9):
            part = noise[start : start + length]
            assert crc32(part) == zlib.crc32(part.tobytes()), (start, length)


def test_long_and_uniform_data(noise: np.ndarray) -> None:
    assert crc32(noise) == zlib.crc32(noise.tobytes())
    for value in (0, 255):
        data = np.full(4096, value, np.uint8)
        assert crc32(data) == zlib.crc32(data.tobytes())


def test_check_value() -> None:
    """The known answer that CRC catalogues list for CRC-32."""
    assert crc32(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926


def test_read_only_data(noise: np.ndarray) -> None:
    """A memory-mapped record file gives read-only bytes."""
    fixed = noise[:999].copy()
    fixed.flags.writeable = False
    assert crc32(fixed) == zlib.crc32(fixed.tobytes())


@pytest.mark.parametrize("split", [0, 1, 7, 8, 5000, 100_003])
def test_continued(noise: np.ndarray, split: int) -> None:
    assert crc32(noise[split:], crc32(noise[:split])) == zlib.crc32(noise.tobytes())


def test_one_flipped_bit_is_seen(noise: np.ndarray) -> None:
    data = noise[:100].copy()
    sums = {int(crc32(data))}
    for bit in range(800):
        data[bit // 8] ^= 1 << (bit % 8)
        sums.add(int(crc32(data)))
        data[bit // 8] ^= 1 << (bit % 8)
    assert len(sums) == 801
