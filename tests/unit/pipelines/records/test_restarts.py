"""Parts of a JPEG: their pixels are those of the whole, and no file makes them anything else."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.drawings import noise
from helpers.odd_files import exif, jpeg, packed, unpacked
from PIL import Image

from pipelines import libffcv
from pipelines.records.marking import marked
from pipelines.records.restarts import MARGIN, cut, part

SIZES = [(100, 75), (97, 33), (9, 200), (192, 9), (3, 40), (96, 3), (64, 64)]


def with_segments(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    other = marked(packed(noise(width, height).convert(mode), "JPEG", quality=90, **options))
    assert other is not None
    return other


def windows(width: int, height: int, count: int, seed: int = 0) -> np.ndarray:
    """int32[count, 4] inside the image, some of one pixel."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        w, h = (1, 1) if i % 4 == 0 else (int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1)))
        rows.append([rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h])
    return np.array(rows, np.int32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "subsampling"), [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)])
def test_a_part_has_the_pixels_of_the_whole(mode: str, subsampling: int, size: tuple[int, int]) -> None:
    """Noise, whose neighbours have nothing in common: a missing one shows."""
    width, height = size
    data = with_segments(width, height, mode, subsampling=subsampling)
    whole, source = unpacked(data), np.frombuffer(data, np.uint8)
    for box in windows(width, height, 24):
        jpeg, (x, y, w, h) = cut(source, width, height, box)
        pixels = unpacked(jpeg)
        assert pixels.shape == (h, w, 3)
        left, top = box[0] - x, box[1] - y
        found = pixels[top : top + box[3], left : left + box[2]]
        np.testing.assert_array_equal(found, whole[box[1] : box[1] + box[3], box[0] : box[0] + box[2]], str(box))


FULL, HALF = (1, 1), (2, 2)
SAMPLINGS = {
    "444": [FULL, FULL, FULL],
    "422": [(2, 1), FULL, FULL],
    "440": [(1, 2), FULL, FULL],
    "420": [HALF, FULL, FULL],
    "411": [(4, 1), FULL, FULL],
    "410": [(4, 2), FULL, FULL],
    "chroma of two sizes": [HALF, (2, 1), (1, 2)],
    "halves and quarters": [(4, 1), (2, 1), FULL],
    "luma of half the pixels": [FULL, HALF, HALF],
}


@pytest.mark.parametrize("rest", [1, 4, 5])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_part_needs_no_more_than_its_margin(sampling: str, rest: int) -> None:
    """Each pixel of a line and of a column as a box of its own, in a picture whose last MCU has `rest` columns.

    Seventeen MCUs are segments of one each, so that parts may be narrower than libjpeg interpolates.
    """
    factors = SAMPLINGS[sampling]
    width, height = 8 * max(h for h, _ in factors) * 16 + rest, 37
    data = marked(jpeg(np.asarray(noise(width, height)).transpose(2, 0, 1), factors))
    assert data is not None
    source = np.frombuffer(data, np.uint8)
    decoders = {"Pillow": lambda jpeg, w, h: unpacked(jpeg)}
    if libffcv.decoder() is not None:
        decoders["libffcv"] = libffcv.pixels
    wholes = {name: decode(source, width, height) for name, decode in decoders.items()}
    for x, y in [(x, 17) for x in range(width - 70, width)] + [(width - 30, y) for y in range(height)]:
        found, (left, top, w, h) = cut(source, width, height, np.array([x, y, 1, 1], np.int32))
        for name, decode in decoders.items():
            assert decode(found, w, h)[y - top, x - left].tolist() == wholes[name][y, x].tolist(), (name, x, y)


def test_a_part_is_small_and_has_no_comments() -> None:
    data = np.frombuffer(with_segments(400, 300, exif=exif(6), comment=b"c" * 5000), np.uint8)
    jpeg, place = cut(data, 400, 300, np.array([200, 150, 10, 10], np.int32))
    assert place[2] <= 10 + 2 * (MARGIN + 2 * 24) and len(jpeg) < len(data) / 20
    assert Image.open(io.BytesIO(jpeg.tobytes())).getexif() == {}


@pytest.mark.parametrize(
    ("mcus", "segment"),
    [(1, 1), (2, 2), (3, 3), (32, 4), (42, 3), (43, 1), (46, 2), (47, 1), (49, 7), (64, 4), (121, 1)],
)
def test_no_segment_is_long(mcus: int, segment: int) -> None:
    """43 is prime, and 46 has no divisor between 2 and 23. Chroma of full size needs no margin."""
    width = 8 * mcus - 3
    data = np.frombuffer(with_segments(width, 24, subsampling=0), np.uint8)
    for x in (0, width // 2):
        _, (left, _, w, _) = cut(data, width, 24, np.array([x, 0, 1, 1], np.int32))
        start = x // (8 * segment) * 8 * segment
        assert (left, w) == (start, min(8 * segment, width - start))


def test_segments_are_as_long_as_their_list_needs() -> None:
    """1,009 is prime, and one APP10 segment does not list 1,009 x 33 sizes: segments are rows, of which a box needs few."""
    width, height = 8 * 1009, 8 * 33
    data = np.frombuffer(with_segments(width, height, "L"), np.uint8)
    _, place = cut(data, width, height, np.array([5000, 100, 10, 10], np.int32))
    assert place.tolist() == [0, 96, width, 16]


def test_a_box_may_reach_outside() -> None:
    """As those of pad_crop do, which copy; what lies in the image is in the part."""
    data = with_segments(80, 80, subsampling=0)
    whole = unpacked(data)
    jpeg, (x, y, w, h) = cut(np.frombuffer(data, np.uint8), 80, 80, np.array([50, -4, 40, 20], np.int32))
    assert (x <= 50, y, x + w, h >= 16) == (True, 0, 80, True)
    np.testing.assert_array_equal(unpacked(jpeg)[:16, 50 - x :], whole[:16, 50:])
    outside, place = cut(np.frombuffer(data, np.uint8), 80, 80, np.array([200, 0, 8, 8], np.int32))
    assert place.tolist() == [0, 0, 80, 80] and outside.tobytes() == data


def test_the_whole_is_decoded_where_there_is_no_choice() -> None:
    plain = np.frombuffer(packed(noise(100, 75), "JPEG"), np.uint8)
    box = np.array([0, 0, 4, 4], np.int32)
    for data, size, one in (
        (plain, (100, 75), box),
        (np.frombuffer(with_segments(100, 75), np.uint8), (100, 75), np.array([0, 0, 100, 75], np.int32)),
        (np.frombuffer(with_segments(100, 75), np.uint8), (100, 76), box),  # the table of samples says another size
    ):
        jpeg, place = cut(data, *size, one)
        assert jpeg is data and place.tolist() == [0, 0, *size]
    data = np.frombuffer(with_segments(100, 75), np.uint8)
    assert part(data, 100, 75, box, np.empty(0, np.uint8))[0] == 0, "no room: as the caller wants the whole"


def test_damage_never_reads_or_writes_outside() -> None:
    """Bytes changed or cut off: the whole, which the decoder judges, or a part that lies inside the buffer."""
    intact = with_segments(100, 75, subsampling=2)
    rng, header = np.random.default_rng(0), intact.index(b"DiVEsegs")
    guard = 64
    for i in range(600):
        spoilt = np.frombuffer(intact, np.uint8).copy()
        at = rng.integers(0, header + 80, 3) if i % 2 else rng.integers(0, len(intact), 3)
        spoilt[at] = rng.integers(0, 256, 3)
        spoilt = spoilt[: rng.integers(2, len(spoilt) + 1)] if i % 3 == 0 else spoilt
        out = np.full(len(spoilt) + guard, 7, np.uint8)
        window = windows(100, 75, 1, i)[0]
        x, y, w, h = window.tolist()
        spoilt.flags.writeable = False
        size, left, top, width, height = part(spoilt, 100, 75, window, out[: len(spoilt)])
        assert 0 <= size <= len(spoilt) and (out[len(spoilt) :] == 7).all()
        assert 0 <= left < left + width <= 100 and 0 <= top < top + height <= 75
        assert left <= x and x + w <= left + width and top <= y and y + h <= top + height


def test_parts_of_real_photos(shared_data: Path) -> None:
    """Every 20th photo; tests/studies/restarts.py has them all, on every backend."""
    for path in sorted((shared_data / "imagenet-samples").glob("*.JPEG"))[::20]:
        data = marked(path.read_bytes())
        assert data is not None, path.name
        whole = unpacked(data)
        np.testing.assert_array_equal(whole, unpacked(path.read_bytes()))
        height, width = whole.shape[:2]
        for box in windows(width, height, 3):
            jpeg, (x, y, _, _) = cut(np.frombuffer(data, np.uint8), width, height, box)
            found = unpacked(jpeg)[box[1] - y :, box[0] - x :][: box[3], : box[2]]
            np.testing.assert_array_equal(found, whole[box[1] : box[1] + box[3], box[0] : box[0] + box[2]])
