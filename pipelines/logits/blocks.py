"""One block of a cache on disk: the targets of up to 4096 consecutive keys under one view.

    header | records | CRC-32 of each record | certificate | how often the teacher was right | CRC-32 of the last three

A record is a fingerprint (hash, thumbnail) and the encoded logits. Its CRC starts from key and view, so a record in the
wrong place fails like a damaged one. Invariant: a file that `open_block` accepts belongs to this cache, view and block.
"""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numba import types

from pipelines.compiled import exact
from pipelines.crc32 import crc32
from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic
from pipelines.logits.codec import CODECS, TEMPERATURES, payload_bytes
from pipelines.logits.fingerprint import THUMB, Fingerprints

BLOCK_ROWS = 4096
MAGIC = b"DiVElc02"
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("view", "<u4"),
        ("block", "<u4"),
        ("count", "<u4"),
        ("classes", "<u4"),
        ("codec", "<u4"),
        ("record_bytes", "<u4"),
        ("identity", "<u1", 32),
        ("index", "<u1", 32),
        ("crc", "<u4"),
    ]
)
FINGERPRINT_BYTES = 4 + THUMB * THUMB
_CERTIFICATE_BYTES = 24 * len(TEMPERATURES)

# void *memcpy(to, from, bytes), found by name as in pipelines/libffcv.py: code that holds an address cannot be cached on disk.
_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))


class BlockKind(NamedTuple):
    """What all blocks of one cache have in common. identity_hash, index_hash: SHA-256 of identity.json and of index.bin."""

    identity_hash: bytes
    index_hash: bytes
    classes: int
    codec: str

    @property
    def record_bytes(self) -> int:
        return FINGERPRINT_BYTES + payload_bytes(self.codec, self.classes)

    def block_bytes(self, rows: int) -> int:
        """Size of a block file with this many rows."""
        return HEADER.itemsize + rows * (self.record_bytes + 4) + _CERTIFICATE_BYTES + 4 + 4


class Block(NamedTuple):
    """An opened block: records uint8[n, R] and crcs uint32[n] (memory map), certificate float64[T, 3].

    right: in how many rows the largest logit is that of the label.
    """

    records: np.ndarray
    crcs: np.ndarray
    certificate: np.ndarray
    right: int


def block_path(folder: Path, view: int, block: int) -> Path:
    """The file of one cell (view, block)."""
    return folder / f"v{view:03d}" / f"b{block:05d}.lc"


def missing_cells(folder: Path, views: int, blocks: int) -> list[tuple[int, int]]:
    """(view, block) of the first `views` views that are not on disk, in order; one listing of a folder per view."""
    missing = []
    for view in range(views):
        place = block_path(folder, view, 0).parent
        there = set(os.listdir(place)) if place.is_dir() else set()
        missing += [(view, b) for b in range(blocks) if block_path(folder, view, b).name not in there]
    return missing


def _header(kind: BlockKind, view: int, block: int, count: int) -> np.ndarray:
    header = np.zeros(1, HEADER)
    header["magic"] = MAGIC
    header["view"], header["block"], header["count"] = view, block, count
    header["classes"], header["codec"], header["record_bytes"] = (
        kind.classes,
        CODECS.index(kind.codec),
        kind.record_bytes,
    )
    header["identity"][0] = np.frombuffer(kind.identity_hash, np.uint8)
    header["index"][0] = np.frombuffer(kind.index_hash, np.uint8)
    header["crc"] = zlib.crc32(header.tobytes()[:-4])
    return header


@exact
def _record_crc(record, key, view, head):
    """CRC-32 of (key, view, record bytes); head: uint8 [12], scratch memory."""
    for j in range(8):
        head[j] = np.uint8((np.uint64(key) >> np.uint64(8 * j)) & np.uint64(255))
    for j in range(4):
        head[8 + j] = np.uint8((np.uint64(view) >> np.uint64(8 * j)) & np.uint64(255))
    return crc32(record, int(crc32(head)))


@exact
def record_crcs(records, keys, view):
    """uint32[n]: CRC-32 of (key, view, record bytes) for uint8 records [n, R] and int64 keys [n]."""
    out = np.empty(len(records), np.uint32)
    head = np.empty(12, np.uint8)
    for i in range(len(records)):
        out[i] = _record_crc(records[i], keys[i], view, head)
    return out


@exact
def gather_records(addresses, counts, rows, keys, views, out):
    """Copy one record to each row of uint8 out[n, R]; -1, or the first i whose record is damaged.

    addresses int64 [n]: where the records of an open block (`Block.records`) begin; counts: how many it has; rows: which to copy.
    """
    size = out.shape[1]
    head = np.empty(12, np.uint8)
    stored = np.empty(1, np.uint32)
    for i in range(len(rows)):
        _memcpy(out[i].ctypes.data, np.uintp(addresses[i] + rows[i] * size), np.uintp(size))
        _memcpy(stored.ctypes.data, np.uintp(addresses[i] + counts[i] * size + 4 * rows[i]), np.uintp(4))
        if _record_crc(out[i], keys[i], views[i], head) != stored[0]:
            return i
    return -1


def write_block(
    folder: Path,
    kind: BlockKind,
    view: int,
    block: int,
    keys: np.ndarray,
    prints: Fingerprints,
    payload: np.ndarray,
    certificate: np.ndarray,
    right: int,
) -> None:
    """Publish one block: it becomes visible as a whole or not at all."""
    records = np.concatenate([prints.hashes.astype("<u4")[:, None].view(np.uint8), prints.thumbs, payload], axis=1)
    crcs = record_crcs(records, keys, view).astype("<u4")
    tail = crcs.tobytes() + certificate.astype("<f8").tobytes() + right.to_bytes(4, "little")
    path = block_path(folder, view, block)
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomic(
        path,
        _header(kind, view, block, len(keys)).tobytes()
        + records.tobytes()
        + tail
        + zlib.crc32(tail).to_bytes(4, "little"),
    )


def open_block(folder: Path, kind: BlockKind, view: int, block: int, count: int) -> Block:
    """Map one block after checking its header and checksums (not those of its records). UserError names the file."""
    path = block_path(folder, view, block)
    advice = "delete it and run train/cache_logits.py again to rewrite it"
    size = kind.block_bytes(count)
    try:
        found = path.stat().st_size
        if found != size:
            raise UserError(f"{path}: {found} bytes instead of {size}, so it is damaged or foreign; {advice}")
        # numpy's memory map would keep a file descriptor open, and a process may have only 1024.
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run train/cache_logits.py again to write it") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check permissions and disk") from error
    if data[: HEADER.itemsize].tobytes() != _header(kind, view, block, count).tobytes():
        raise UserError(f"{path}: its header is not that of view {view}, block {block} of this cache; {advice}")
    split = HEADER.itemsize + count * kind.record_bytes
    tail = data[split:-4]
    if crc32(tail) != int.from_bytes(data[-4:].tobytes(), "little"):
        raise UserError(f"{path}: its checksums are damaged; {advice}")
    return Block(
        records=data[HEADER.itemsize : split].reshape(count, kind.record_bytes),
        crcs=tail[: 4 * count].view("<u4"),
        certificate=tail[4 * count : -4].copy().view("<f8").reshape(-1, 3),
        right=int.from_bytes(tail[-4:].tobytes(), "little"),
    )
