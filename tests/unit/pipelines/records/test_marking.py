"""Restart markers: the same coefficients, and which files are left alone."""

import io

import numpy as np
import pytest
from helpers.drawings import noise, picture
from helpers.odd_files import jpeg, odd_files, packed, unpacked
from PIL import Image

from pipelines.records.marking import _codes, _extended, _header, marked, without_table
from pipelines.records.restarts import EOI, NAME, lists_segments

FILES = odd_files()
# Of the files that conversion keeps: those that are coded otherwise, and those with nothing to divide.
ALONE = {"restart.jpg", "restart-420.jpg"}


def test_every_kept_file_is_marked_or_left_alone() -> None:
    """Every sampling, grey, comments, tails and several pictures in a file; the same pixels to the bit."""
    kept = {name: file.data for name, file in FILES.items() if file.fate == "kept"}
    found = {name: other for name, data in kept.items() if (other := marked(data)) is not None}
    assert len(found) > 15 and not found.keys() & ALONE and kept.keys() > ALONE
    for name, other in found.items():
        np.testing.assert_array_equal(unpacked(other), unpacked(kept[name]), name)
        assert lists_segments(np.frombuffer(other, np.uint8)) and not lists_segments(
            np.frombuffer(kept[name], np.uint8)
        )
        with Image.open(io.BytesIO(other)) as image, Image.open(io.BytesIO(kept[name])) as before:
            assert image.info.get("comment") == before.info.get("comment") and image.format == before.format


@pytest.mark.parametrize(
    "name", ["progressive.jpg", "arithmetic.jpg", "ycck.jpg", "lossless.jpg", "12-bit.jpg", "no-height.jpg"]
)
def test_files_that_are_coded_otherwise_are_left_alone(name: str) -> None:
    assert marked(FILES[name].data) is None


def test_what_is_no_jpeg_is_left_alone() -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0\x02", packed(picture(60, 40), "PNG")):
        assert marked(data) is None and without_table(data) == data


def test_nothing_is_marked_twice_and_a_foreign_list_is_taken_out() -> None:
    plain = packed(picture(60, 40), "JPEG", quality=90)
    other = marked(plain)
    assert other is not None and marked(other) is None
    bare = without_table(other)
    assert NAME not in bare and not lists_segments(np.frombuffer(bare, np.uint8)) and without_table(plain) == plain
    np.testing.assert_array_equal(unpacked(bare), unpacked(plain))


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tables_that_lack_a_code_are_given_one(mode: str, subsampling: int, optimize: bool) -> None:
    """Optimised tables have no code for the first coefficients of most segments."""
    image = Image.blend(noise(100, 70), Image.new("RGB", (100, 70), "white"), 0.8).convert(mode)
    data = packed(image, "JPEG", quality=95, subsampling=subsampling, optimize=optimize)
    other = marked(data)
    assert other is not None
    np.testing.assert_array_equal(unpacked(other), unpacked(data))
    assert optimize or other.count(b"\xff\xc4") == data.count(b"\xff\xc4"), "the standard tables have every code"


def test_new_codes_leave_the_others_as_they_are() -> None:
    header = _header(packed(picture(60, 40), "JPEG", quality=90, optimize=True))
    assert header is not None
    table = header.huffman[0]
    missing = sorted(set(range(12)) - set(table[16:]))
    assert missing
    longer = _extended(table, missing)
    assert longer is not None
    before, after = _codes(table), _codes(longer)
    assert after.keys() == set(range(12)) and before.items() <= after.items()
    words = [format(code, f"0{length}b") for code, length in after.values()]
    assert not any(a != b and b.startswith(a) for a in words for b in words), "no code begins another"
    assert not any(set(word) == {"1"} for word in words), "ones alone are no code"


def test_a_table_without_room_is_left_alone() -> None:
    """A code of 16 bits cannot be continued."""
    assert _extended(bytes([0] * 15 + [1, 3]), [5]) is None


def test_the_least_fault_leaves_a_file_alone() -> None:
    """Bytes lost, bytes added before the end, a scan that says more or less than the frame; no input crashes."""
    data = packed(picture(60, 40), "JPEG", quality=90)
    assert marked(data) is not None
    assert marked(data[:-2] + bytes(range(1, 40)) + data[-2:]) is None
    frame = data.index(b"\xff\xc0")
    for height, width in ((60, 60), (20, 60), (40, 80), (40, 30), (0, 60)):
        lying = data[: frame + 5] + height.to_bytes(2) + width.to_bytes(2) + data[frame + 9 :]
        assert marked(lying) is None, (height, width)
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(data) - 2, 100).tolist():
        assert marked(data[:end]) is None and marked(data[:end] + bytes([0xFF, EOI])) is None
    for _ in range(200):
        spoilt = bytearray(data)
        spoilt[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        other = marked(bytes(spoilt))
        assert other is None or isinstance(other, bytes)


def test_all_files_of_our_own_encoder_are_marked() -> None:
    """Codes of one length, of which the table has all."""
    planes = np.asarray(picture(50, 34).convert("YCbCr")).transpose(2, 0, 1)
    for factors in ([(2, 2), (1, 1), (1, 1)], [(4, 1), (1, 1), (1, 1)], [(1, 1), (1, 1), (1, 1)]):
        data = jpeg(planes, factors)
        other = marked(data)
        assert other is not None
        np.testing.assert_array_equal(unpacked(other), unpacked(data))
