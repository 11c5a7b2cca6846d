"""The record format: FFCV's layout, columns and names, and every damage refused in words."""

import copy
import errno
import json
import os
import pickle
import re
import shlex
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.records import layout
from pipelines.records.layout import rows_digest, sample_key
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

CLASSES = ["ant", "bee", "[cat]"]


def write(path: Path, images: int = 40, side: int = 5, class_names: list[str] | None = None) -> Path:
    """Raw images of random pixels with odd names; labels cycle through the three classes."""
    rng = np.random.default_rng(1)
    samples = [
        Sample(f"train/é{number}\udcff.png", number % 3, rng.integers(0, 256, (side, side + 1, 3), np.uint8))
        for number in range(images)
    ]
    write_records(path, samples, class_names or CLASSES, kind="test")
    return path


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("records") / "a.beton").read_bytes()


def sections(data: bytes | bytearray) -> dict[str, tuple[int, int]]:
    """(start, end) of each part of a file."""
    header = np.frombuffer(data, layout.HEADER, 1)[0]
    end, samples = int(header["alloc_table_ptr"]), int(header["num_samples"])
    footer = np.frombuffer(data, layout.FOOTER, 1, end - layout.FOOTER.itemsize)[0]
    names, manifest = int(footer["names_offset"]), int(footer["manifest_offset"])
    table_end = layout.TABLE_START + samples * layout.TABLE.itemsize
    images = -(-table_end // layout.PAGE_SIZE) * layout.PAGE_SIZE
    return {
        "header": (0, layout.HEADER.itemsize),
        "fields": (layout.HEADER.itemsize, layout.TABLE_START),
        "table": (layout.TABLE_START, table_end),
        "images": (images, names),
        "names": (names, manifest),
        "manifest": (manifest, end - layout.FOOTER.itemsize),
        "footer": (end - layout.FOOTER.itemsize, end),
        "allocations": (end, len(data)),
    }


def reseal(data: bytearray, manifest: bytes | None = None) -> bytearray:
    """Set right checksums in a changed file, as a faulty writer would leave it; optionally another manifest."""
    parts = sections(data)
    footer = np.frombuffer(data[slice(*parts["footer"])], layout.FOOTER).copy()
    allocations = data[slice(*parts["allocations"])]
    if manifest is not None:
        end = parts["manifest"][0] + len(manifest) + layout.FOOTER.itemsize
        np.frombuffer(data, layout.HEADER, 1)["alloc_table_ptr"] = end
        footer["manifest_size"], footer["manifest_crc"] = len(manifest), zlib.crc32(manifest)
        data = data[: parts["manifest"][0]] + manifest
    else:
        data = data[: parts["footer"][0]]
    footer["head_crc"] = zlib.crc32(data[: parts["table"][1]])
    footer["names_crc"] = zlib.crc32(data[slice(*parts["names"])])
    footer["allocation_crc"] = zlib.crc32(allocations)
    footer["crc"] = layout.footer_crc(footer)
    return data + footer.tobytes() + allocations


def refusal(path: Path, data: bytes | bytearray) -> str:
    """The message that refuses a file of these bytes: one line that starts with its name."""
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        Records(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "tools/convert.py" in message, "says what to type"
    return message


def test_columns_names_and_payloads(tmp_path: Path) -> None:
    opened = Records(write(tmp_path / "a.beton", images=40))
    rng = np.random.default_rng(1)
    assert len(opened) == 40 and opened.num_classes == 3 and opened.class_names == CLASSES
    assert opened.class_counts.tolist() == [14, 13, 13] and opened.class_counts.dtype == np.int64
    for position in range(40):
        pixels = rng.integers(0, 256, (5, 6, 3), np.uint8)
        assert opened.name(position) == f"train/é{position}\udcff.png"
        assert opened.keys[position] == sample_key(opened.name(position))
        assert opened.payload(position).tobytes() == pixels.tobytes()
        assert opened.crcs[position] == zlib.crc32(pixels.tobytes())
        assert opened.sources[position] == layout.hash63(pixels.tobytes())
        opened.verify(position)
    assert opened.labels.tolist() == [number % 3 for number in range(40)]
    assert opened.raw.all() and (opened.sizes == 90).all()
    for widths, heights in ((opened.widths, opened.heights), (opened.stored_widths, opened.stored_heights)):
        assert (widths == 6).all() and (heights == 5).all() and widths.dtype == np.int32
    assert not opened.payload(0).flags.writeable
    for column in (opened.keys, opened.labels, opened.sources, opened.offsets, opened.sizes):
        assert column.dtype == np.int64 and column.flags.c_contiguous


def test_rows_are_sorted_and_digested_in_any_order(tmp_path: Path) -> None:
    opened = Records(write(tmp_path / "a.beton"))
    rows = opened.rows()
    assert rows.dtype == layout.ROW and (np.diff(rows["key"]) > 0).all()
    order = np.argsort(opened.keys)
    assert (rows["label"] == opened.labels[order]).all() and (rows["source"] == opened.sources[order]).all()
    assert (rows["width"] == 6).all() and (rows["height"] == 5).all()
    assert rows_digest(rows[::-1]) == rows_digest(rows) == opened.digest
    changed = rows.copy()
    changed["label"][3] += 1
    assert rows_digest(changed) != opened.digest


def test_class_names_are_not_in_the_digest(tmp_path: Path) -> None:
    one, other = (
        Records(write(tmp_path / f"{names[0]}.beton", class_names=names)) for names in (CLASSES, ["x", "y", "z"])
    )
    assert one.digest == other.digest and one.class_names != other.class_names


def test_keys_are_fixed_and_fit_a_signed_integer() -> None:
    # blake2b("a.jpg") in 8 bytes is fe47f0026e12a789: little-endian, top bit cleared. Caches depend on them.
    keys = {"a.jpg": 0x09A7126E02F047FE, "train/apple/x.png": 8474115788834050035, "é": 3394012004367669963}
    assert {name: sample_key(name) for name in keys} == keys
    assert all(0 <= sample_key(str(number)) < 2**63 for number in range(200))


def test_opening_makes_no_object_per_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton", images=5000, side=1)
    Records(path)  # loads what the first call loads permanently
    before = sys.getallocatedblocks()
    opened = Records(path)
    assert sys.getallocatedblocks() - before < 500
    assert len(opened) == 5000


def test_images_never_cross_a_page(tmp_path: Path) -> None:
    opened = Records(write(tmp_path / "a.beton", images=6, side=1000))  # 3 MB each, two fit on a page
    pages = opened.offsets // layout.PAGE_SIZE
    assert pages.tolist() == [1, 1, 2, 2, 3, 3]
    assert ((opened.offsets + opened.sizes - 1) // layout.PAGE_SIZE == pages).all()
    assert (opened.offsets[::2] % layout.PAGE_SIZE == 0).all()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.beton: no such record file; write it with tools/convert\.py"):
        Records(tmp_path / "none.beton")
    (tmp_path / "train.txt").touch()  # no records
    write(tmp_path / "train.beton")
    with pytest.raises(UserError, match=r"tran\.beton: no such record file; nearest: .*/train\.beton; write it with"):
        Records(tmp_path / "tran.beton")
    (tmp_path / "train.beton").unlink()
    convert = f"python tools/convert.py folder --images {tmp_path} --out FILE.beton"
    with pytest.raises(UserError, match=re.escape(f"is a folder without records; convert its images: {convert}")):
        Records(tmp_path)
    for name in ("train.beton", "test.beton"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"is a folder; name the file in it, test.beton or train.beton"):
        Records(tmp_path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign.beton"
    assert "truncated or no record file: it has 0 bytes" in refusal(path, b"")
    assert "FFCV version 2 expected, 20550 found" in refusal(path, b"FP" * 10_000)
    assert "FFCV version 2 expected, 0 found" in refusal(path, bytes(10_000))


def test_ffcv_file_with_our_fields_but_no_footer(tmp_path: Path, intact: bytes) -> None:
    data = bytearray(intact)
    start, _ = sections(data)["footer"]
    data[start : start + 8] = bytes(8)
    assert "no footer with checksums" in refusal(tmp_path / "a.beton", data)


def test_truncation_anywhere_is_refused(tmp_path: Path, intact: bytes) -> None:
    edges = [edge for part in sections(intact).values() for edge in part]
    inside = np.random.default_rng(0).integers(1, len(intact), 20).tolist()
    lengths = {max(0, edge + shift) for edge in edges for shift in (-1, 0, 1)} | set(inside)
    lengths = {length for length in lengths if length < len(intact)}
    assert len(lengths) > 35
    for length in lengths:
        assert "the file is truncated" in refusal(tmp_path / "a.beton", intact[:length]), length


def test_appended_bytes_are_refused(tmp_path: Path, intact: bytes) -> None:
    assert "the file is too long" in refusal(tmp_path / "a.beton", intact + b"\0")


@pytest.mark.parametrize("part", ["header", "fields", "table", "names", "manifest", "footer", "allocations"])
def test_flipped_bits_are_refused(tmp_path: Path, intact: bytes, part: str) -> None:
    start, end = sections(intact)[part]
    places = set(range(start, end)) if end - start <= 80 else set(range(start, end, (end - start) // 40))
    path = tmp_path / "a.beton"
    path.write_bytes(intact)
    with open(path, "r+b", buffering=0) as file:
        for place in places | {end - 1}:
            file.seek(place)
            file.write(bytes([intact[place] ^ 1 << place % 8]))
            with pytest.raises(UserError, match=r"a\.beton: .*tools/convert\.py"):
                Records(path)
            file.seek(place)
            file.write(intact[place : place + 1])
    Records(path)


def test_flipped_bit_of_an_image_is_found_by_verify(tmp_path: Path, intact: bytes) -> None:
    path = tmp_path / "a.beton"
    data = bytearray(intact)
    path.write_bytes(data)
    opened = Records(path)
    data[opened.offsets[7] + 11] ^= 16
    path.write_bytes(data)
    opened = Records(path)
    for position in range(len(opened)):
        if position != 7:
            opened.verify(position)
    with pytest.raises(UserError) as caught:
        opened.verify(7)
    message = str(caught.value)
    assert str(path) in message and str(opened.keys[7]) in message and opened.name(7) in message
    advice = "; convert it again with tools/convert.py, or copy it again; to rebuild the file without it type: "
    command = f"python tools/convert.py repair {path} --out {tmp_path / 'a-repaired.beton'}"
    assert message.endswith(advice + command) and "\n" not in message


def test_the_command_that_repairs_can_be_pasted(tmp_path: Path, intact: bytes) -> None:
    path = tmp_path / "my own.beton"
    path.write_bytes(intact)
    command = str(Records(path).damaged(0, "does not decode")).split(" type: ")[1]
    assert shlex.split(command) == [
        "python",
        "tools/convert.py",
        "repair",
        str(path),
        "--out",
        str(tmp_path / "my own-repaired.beton"),
    ]


def set_column(column: str, position: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        np.frombuffer(data, layout.TABLE, 40, layout.TABLE_START)[column][position] = value

    return change


def set_image(field: str, position: int, value: int) -> Callable[[bytearray], None]:
    """A field of the image column; a new address goes into the allocation table as well."""

    def change(data: bytearray) -> None:
        np.frombuffer(data, layout.TABLE, 40, layout.TABLE_START)["f0"][field][position] = value
        if field == "data_ptr":
            set_allocation("ptr", position, value)(data)

    return change


def set_allocation(field: str, position: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        start, _ = sections(data)["allocations"]
        np.frombuffer(data, layout.ALLOCATION, 40, start)[field][position] = value

    return change


def set_name_offset(data: bytearray) -> None:
    np.frombuffer(data, "<u8", 41, sections(data)["names"][0])[5] = 2**62


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_column("f1", 4, 3), "label 3 is not among the manifest's 3 classes"),
        (set_column("f1", 4, -1), "label -1 is not among the manifest's 3 classes"),
        (set_column("f1", 4, 0), "class counts of the manifest differ"),
        (set_column("f3", 4, 7), "does not have the manifest's digest"),
        (set_column("f2", 4, 1), "does not have the manifest's digest"),
        (set_image("width", 4, 7), "sizes of some images do not fit"),
        (set_image("width", 4, 0), "sizes of some images do not fit"),
        (set_image("data_ptr", 4, 0), "record 4 points outside the pages of images"),
        (set_image("data_ptr", 39, 2**62), "record 39 points outside the pages of images"),
        (set_image("data_ptr", 4, 2 * layout.PAGE_SIZE - 8), "record 4 points outside the pages of images"),
        (set_allocation("size", 39, 5000), "record 39 points outside the pages of images"),
        (set_allocation("size", 4, 0), "record 4 points outside the pages of images"),
        (set_allocation("ptr", 4, 9), "allocation table does not list the samples"),
        (set_allocation("sample_id", 4, 9), "allocation table does not list the samples"),
        (set_name_offset, "list of names does not fit its offsets"),
    ],
)
def test_nonsense_under_right_checksums_is_refused(
    tmp_path: Path, intact: bytes, change: Callable[[bytearray], None], words: str
) -> None:
    data = bytearray(intact)
    change(data)
    assert words in refusal(tmp_path / "a.beton", reseal(data))


def test_resealing_alone_changes_nothing(intact: bytes) -> None:
    assert reseal(bytearray(intact)) == intact


def test_two_equal_keys_are_refused(tmp_path: Path, intact: bytes) -> None:
    data = bytearray(intact)
    keys = np.frombuffer(data, layout.TABLE, 40, layout.TABLE_START)["f2"]
    keys[4] = keys[5]
    assert "two records have the same key" in refusal(tmp_path / "a.beton", reseal(data))


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("format", "other", "does not describe"),
        ("samples", 39, "does not describe"),
        ("class_counts", [14, 13], "does not describe"),
        ("class_counts", [14, 13, 12], "does not describe"),
        ("class_counts", None, "the manifest is not ours"),
        ("digest", "00", "does not have the manifest's digest"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path: Path, intact: bytes, entry: str, value: Any, words: str) -> None:
    manifest = json.loads(intact[slice(*sections(intact)["manifest"])])
    changed = json.dumps(manifest | {entry: value}).encode()
    assert words in refusal(tmp_path / "a.beton", reseal(bytearray(intact), changed))
    del manifest[entry]
    refusal(tmp_path / "a.beton", reseal(bytearray(intact), json.dumps(manifest).encode()))


def test_manifest_that_is_no_json_is_refused(tmp_path: Path, intact: bytes) -> None:
    for text in (b"{", b"[]", b"3", b'{"a": 1}', b"\xff\xfe"):
        assert "manifest" in refusal(tmp_path / "a.beton", reseal(bytearray(intact), text))


def test_a_file_that_can_no_longer_be_asked_about(
    intact: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system whose server is gone; one cut short is tested with every backend in test_loader.py."""
    (tmp_path / "a.beton").write_bytes(intact)
    records = Records(tmp_path / "a.beton")

    class Gone:
        def size(self) -> int:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(records, "_map", Gone())
    with pytest.raises(
        UserError, match=r"a.beton: can no longer be read \(Stale file handle\); put the whole file back"
    ):
        records.payload(0)


def test_a_copy_makes_its_own_map(intact: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.beton").write_bytes(intact)
    monkeypatch.chdir(tmp_path)
    records = Records("a.beton")
    for other in (pickle.loads(pickle.dumps(records)), copy.deepcopy(records)):
        assert np.array_equal(other.payload(3), records.payload(3)) and other.name(3) == records.name(3)
    assert len(pickle.dumps(records)) < 1000
