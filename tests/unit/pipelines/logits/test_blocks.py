"""Block files: the promised bytes, and every damage refused with the name of the file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.opened import opened_below

from pipelines.errors import UserError
from pipelines.logits.blocks import (
    FINGERPRINT_BYTES,
    HEADER,
    BlockKind,
    block_path,
    open_block,
    record_crcs,
    write_block,
)
from pipelines.logits.codec import CODECS, certificate, encode
from pipelines.logits.fingerprint import Fingerprints

CLASSES, ROWS, VIEW, BLOCK, RIGHT = 7, 33, 2, 5, 21
KEYS = np.sort(np.random.default_rng(0).integers(0, 2**63 - 1, ROWS))
LOGITS = np.random.default_rng(1).normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
PRINTS = Fingerprints(
    np.random.default_rng(2).integers(0, 2**32, ROWS, np.uint32),
    np.random.default_rng(3).integers(0, 256, (ROWS, 16), np.uint8),
)


def kind_of(codec: str = "u8") -> BlockKind:
    return BlockKind(bytes(range(32)), bytes(range(32, 64)), CLASSES, codec)


def encoded(codec: str) -> tuple[np.ndarray, np.ndarray]:
    """Payload and certificate of LOGITS."""
    logits = torch.from_numpy(LOGITS)
    payload = encode(logits, codec)
    return payload.numpy(), certificate(logits, payload, codec).numpy()


def write(folder: Path, codec: str = "u8", view: int = VIEW, block: int = BLOCK) -> Path:
    payload, sums = encoded(codec)
    write_block(folder, kind_of(codec), view, block, KEYS, PRINTS, payload, sums, RIGHT)
    return block_path(folder, view, block)


def damaged_records(folder: Path, kind: BlockKind, view: int = VIEW) -> list[int]:
    """Rows of the block whose checksum does not match."""
    found = open_block(folder, kind, view, BLOCK, ROWS)
    return np.flatnonzero(record_crcs(np.array(found.records), KEYS, view) != found.crcs).tolist()


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_written_is_read(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path, codec)
    assert path.relative_to(tmp_path) == Path("v002/b00005.lc")
    found = open_block(tmp_path, kind_of(codec), VIEW, BLOCK, ROWS)
    payload, sums = encoded(codec)
    assert path.stat().st_size == kind_of(codec).block_bytes(ROWS)
    assert np.array_equal(found.records[:, :4].copy().view("<u4")[:, 0], PRINTS.hashes)
    assert np.array_equal(found.records[:, 4:FINGERPRINT_BYTES], PRINTS.thumbs)
    assert np.array_equal(found.records[:, FINGERPRINT_BYTES:], payload)
    assert np.array_equal(found.certificate, sums)
    assert found.right == RIGHT
    assert damaged_records(tmp_path, kind_of(codec)) == []


def test_the_layout_byte_by_byte(tmp_path: Path) -> None:
    """Two rows of three classes, packed by hand: caches outlive the code that wrote them."""
    kind = kind_of("f16")._replace(classes=3)
    keys, logits = np.array([5, 2**62]), torch.tensor([[1, 2, 3], [-1, 0, 0.5]])
    prints = Fingerprints(np.array([7, 2**32 - 1], np.uint32), np.arange(32, dtype=np.uint8).reshape(2, 16))
    sums = np.arange(18, dtype=np.float64).reshape(6, 3)
    write_block(tmp_path, kind, 1, 0, keys, prints, encode(logits, "f16").numpy(), sums, 1)
    head = b"DiVElc02" + struct.pack("<6I", 1, 0, 2, 3, 1, 26) + bytes(range(64))
    records = [
        struct.pack("<I", 7) + bytes(range(16)) + struct.pack("<3e", 1, 2, 3),
        struct.pack("<I", 2**32 - 1) + bytes(range(16, 32)) + struct.pack("<3e", -1, 0, 0.5),
    ]
    crcs = [zlib.crc32(struct.pack("<qI", key, 1) + record) for key, record in zip((5, 2**62), records, strict=True)]
    tail = struct.pack("<2I", *crcs) + struct.pack("<18d", *range(18)) + struct.pack("<I", 1)
    expected = (
        head + struct.pack("<I", zlib.crc32(head)) + b"".join(records) + tail + struct.pack("<I", zlib.crc32(tail))
    )
    assert block_path(tmp_path, 1, 0).read_bytes() == expected


def test_checksums_are_those_of_zlib_over_key_view_and_record() -> None:
    records = np.random.default_rng(4).integers(0, 256, (ROWS, 29), np.uint8)
    for view in (0, 1, 255, 70_000):
        expected = [
            zlib.crc32(int(key).to_bytes(8, "little") + view.to_bytes(4, "little") + record.tobytes())
            for key, record in zip(KEYS, records, strict=True)
        ]
        assert record_crcs(records, KEYS, view).tolist() == expected


def test_bytes_are_the_same_every_time_and_nothing_else_is_left(tmp_path: Path) -> None:
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["v002", "b00005.lc"]


def test_open_blocks_hold_no_file_descriptors(tmp_path: Path) -> None:
    """A run of 90 views of ImageNet-LT opens 2610 blocks; the usual limit is 1024 descriptors."""
    with open(write(tmp_path)):
        assert opened_below(tmp_path) == 1
    found = [open_block(tmp_path, kind_of(), VIEW, BLOCK, ROWS) for _ in range(40)]
    assert opened_below(tmp_path) == 0
    assert np.array_equal(found[0].records, found[39].records)


def regions(kind: BlockKind) -> dict[str, tuple[int, int]]:
    """(start, end) of each part of the file, with the header field by field."""
    fields = HEADER.fields
    assert fields is not None
    parts = {name: (start, start + dtype.itemsize) for name, (dtype, start, *_) in fields.items()}
    records_end = HEADER.itemsize + ROWS * kind.record_bytes
    parts["records"] = (HEADER.itemsize, records_end)
    parts["crcs"] = (records_end, records_end + 4 * ROWS)
    parts["certificate"] = (records_end + 4 * ROWS, kind.block_bytes(ROWS) - 8)
    parts["right"] = (kind.block_bytes(ROWS) - 8, kind.block_bytes(ROWS) - 4)
    parts["last crc"] = (kind.block_bytes(ROWS) - 4, kind.block_bytes(ROWS))
    return parts


def test_the_regions_cover_the_file() -> None:
    parts = sorted(regions(kind_of()).values())
    assert parts[0][0] == 0 and parts[-1][1] == kind_of().block_bytes(ROWS)
    assert all(end == start for (_, end), (start, _) in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize("part", regions(kind_of()))
def test_a_flipped_bit_anywhere(tmp_path: Path, part: str) -> None:
    """With damage outside the records the block does not open; inside them exactly that record is refused."""
    kind, path = kind_of(), write(tmp_path)
    whole = path.read_bytes()
    start, end = regions(kind)[part]
    rng = np.random.default_rng(5)
    for place in {start, end - 1, *rng.integers(start, end, 6).tolist()}:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        if part == "records":
            assert damaged_records(tmp_path, kind) == [(place - start) // kind.record_bytes]
        else:
            with pytest.raises(
                UserError, match=r"v002/b00005\.lc: its .*delete it and run train/cache_logits.py again"
            ):
                open_block(tmp_path, kind, VIEW, BLOCK, ROWS)


def test_other_lengths(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for data in (b"", whole[:1], whole[:200], whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole * 2):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"b00005\.lc: {len(data)} bytes instead of {len(whole)}"):
            open_block(tmp_path, kind_of(), VIEW, BLOCK, ROWS)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"b00005\.lc is missing; run train/cache_logits.py again"):
        open_block(tmp_path, kind_of(), VIEW, BLOCK, ROWS)
    block_path(tmp_path, VIEW, BLOCK).mkdir(parents=True)
    with pytest.raises(UserError, match=r"b00005\.lc"):
        open_block(tmp_path, kind_of(), VIEW, BLOCK, ROWS)


def test_a_block_at_another_place_or_of_another_cache(tmp_path: Path) -> None:
    """The files have equal size, so only the header can tell them apart."""
    kind, path = kind_of(), write(tmp_path)
    for view, block in ((VIEW, BLOCK + 1), (VIEW + 1, BLOCK)):
        other = write(tmp_path, view=view, block=block)
        whole = other.read_bytes()
        other.write_bytes(path.read_bytes())
        with pytest.raises(UserError, match=f"its header is not that of view {view}, block {block} of this cache"):
            open_block(tmp_path, kind, view, block, ROWS)
        other.write_bytes(whole)
        open_block(tmp_path, kind, view, block, ROWS)
    for foreign in (kind._replace(identity_hash=bytes(32)), kind._replace(index_hash=bytes(32))):
        with pytest.raises(UserError, match="its header is not that of view 2, block 5 of this cache"):
            open_block(tmp_path, foreign, VIEW, BLOCK, ROWS)


def test_records_at_another_place(tmp_path: Path) -> None:
    """Two records are swapped with their checksums, and the file is sealed again: the keys in the checksums reveal it."""
    kind, path = kind_of(), write(tmp_path)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    parts = regions(kind)
    for name, size in (("records", kind.record_bytes), ("crcs", 4)):
        table = data[slice(*parts[name])].reshape(ROWS, size)
        table[[3, 8]] = table[[8, 3]]
    tail = data[parts["crcs"][0] : -4].tobytes()
    path.write_bytes(data[:-4].tobytes() + zlib.crc32(tail).to_bytes(4, "little"))
    assert damaged_records(tmp_path, kind) == [3, 8]


def test_records_of_another_view(tmp_path: Path) -> None:
    """The records of view 3 under the header of view 2: the view in the checksums reveals it."""
    kind, path = kind_of(), write(tmp_path)
    other = write(tmp_path, view=VIEW + 1).read_bytes()
    path.write_bytes(path.read_bytes()[: HEADER.itemsize] + other[HEADER.itemsize :])
    assert damaged_records(tmp_path, kind) == list(range(ROWS))
