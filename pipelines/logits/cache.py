"""Reading a logit cache: targets by (key, view), each checked before it is used.

Owns opening (identity compared field by field), gathering and the check of fingerprints. Knows nothing of the backend that
loads images or of the student. Invariant: a target that leaves `gather` has the right key, view, teacher and checksum.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.files import read_json
from pipelines.logits.blocks import BLOCK_ROWS, FINGERPRINT_BYTES, Block, BlockKind, block_path, open_block, record_crcs
from pipelines.logits.codec import TEMPERATURES, certified_loss, decode
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints, compare
from pipelines.logits.identity import PIXEL_FIELDS, ROW_FIELDS, differences, identity_bytes, identity_hash
from pipelines.records import ROW

LOSS_BUDGET = 0.01  # share of the teacher's information that a codec may lose at the temperature in use
_OPEN_BLOCKS = 4096  # memory maps kept; a process may have some 65,000


@dataclass(kw_only=True)
class CacheConfig:
    paths: list[str] = field(default_factory=list)
    "logit cache to train from: its folder, or the folder that holds it; empty = ask the teacher online"
    check: Literal["open", "epoch", "always"] = "epoch"
    "compare fingerprints of the pixels: on the first batches, and once an epoch, or with every batch"
    pixels: Literal["same", "close"] = "close"
    "close: the same view decoded by another backend or machine is accepted, and said so; same: refused"
    codec: Literal["u8", "f16", "f32"] = "u8"
    "how train/cache_logits.py stores logits: 8 bit with a range per sample, or floats"
    batch: int = 256
    "images per teacher forward in train/cache_logits.py; part of the identity"
    dir: str = "caches"
    "folder in which train/cache_logits.py makes the cache's own folder"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"cache.batch={self.batch}: must be at least 1")


class Opened(NamedTuple):
    """The verified fixed part of a cache folder."""

    identity: dict[str, Any]
    rows: np.ndarray
    kind: BlockKind


def open_folder(folder: Path) -> Opened:
    """Read identity.json and index.bin, complete or not; UserError when either is damaged or they disagree."""
    identity = read_json(folder / "identity.json")
    if not isinstance(identity, dict) or identity_bytes(identity) != (folder / "identity.json").read_bytes():
        raise UserError(
            f"{folder}/identity.json was edited or damaged; write the cache again with train/cache_logits.py"
        )
    digest = identity_hash(identity)
    if not folder.resolve().name.endswith(digest.hex()[:12]):
        raise UserError(
            f"{folder}: its name should end in {digest.hex()[:12]}, the hash of its identity.json; "
            "one of the two was changed: rename the folder back, or write the cache again"
        )
    try:
        index = (folder / "index.bin").read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {folder}/index.bin: {error.strerror}; run train/cache_logits.py again") from error
    digest_of_rows = hashlib.blake2b(index, digest_size=16).hexdigest()
    if len(index) % ROW.itemsize or digest_of_rows != identity["dataset"]["digest"]:
        raise UserError(f"{folder}/index.bin is damaged or of another dataset; write the cache again")
    kind = BlockKind(
        identity_hash=digest,
        index_hash=hashlib.sha256(index).digest(),
        classes=len(identity["dataset"]["class_names"]),
        codec=identity["codec"],
    )
    return Opened(identity, np.frombuffer(index, ROW), kind)


def find_cache(path: str | Path) -> Path:
    """The cache folder at `path`: itself, or the only cache inside it."""
    folder = Path(path)
    if (folder / "identity.json").is_file():
        return folder
    inside = sorted(p.parent for p in folder.glob("*/identity.json"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(p.name for p in inside)
        raise UserError(f"cache.paths: {folder} holds {len(inside)} caches ({names}); name one of them")
    raise UserError(f"cache.paths: no logit cache at {folder}; write one with `python train/cache_logits.py CONFIG`")


class LogitCache:
    """A complete cache, opened for reading.

    path: the cache's folder or its parent. Attributes: identity (dict), views (number of complete views), classes,
    folder, certificate float64 [T, 2]. `gather` returns raw teacher logits.
    """

    def __init__(self, path: str | Path):
        self.folder = find_cache(path)
        self.identity, self._rows, self._kind = open_folder(self.folder)
        done_path = self.folder / "done.json"
        if not done_path.is_file():
            raise UserError(f"{self.folder} is unfinished; run train/cache_logits.py again with the same settings")
        done = read_json(done_path)
        self.views = int(done["views"])
        self.certificate = np.array(done["certificate"], np.float64).reshape(len(TEMPERATURES), 2)
        self.classes = self._kind.classes
        self._keys = np.ascontiguousarray(self._rows["key"])
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._fingerprinter = Fingerprinter()

    def require(self, view: dict[str, Any], rows: np.ndarray, views: int, pixels: str) -> list[str]:
        """Refuse (UserError) unless this cache holds the targets of these samples under these views.

        view: `view_identity` of the data at hand; rows: its ROW[N]; views: V; pixels: cache.pixels.
        Returns notes for the first screen: what differs and is allowed to.
        """
        different = differences(self.identity, view)
        notes = [f"{name}: {text}" for name, text in different.items() if name in PIXEL_FIELDS]
        refused = {name: text for name, text in different.items() if name not in PIXEL_FIELDS + ROW_FIELDS}
        if pixels == "same":
            refused |= {name: text for name, text in different.items() if name in PIXEL_FIELDS}
        if refused:
            listed = "; ".join(f"{name}: {text}" for name, text in refused.items())
            raise UserError(
                f"cache {self.folder} is not a cache of this run: {listed}. "
                "Change these settings, or write a cache for them with train/cache_logits.py"
            )
        if "dataset.digest" in different:
            self._require_rows(rows)
            notes.append(f"dataset: {len(rows)} of the cache's {len(self._rows)} samples")
        if views > self.views:
            raise UserError(
                f"cache {self.folder} holds {self.views} views, this run uses {views}: "
                f"set data.views={self.views}, or run train/cache_logits.py with data.views={views} to add the rest"
            )
        return notes

    def _require_rows(self, rows: np.ndarray) -> None:
        places = np.searchsorted(self._keys, rows["key"]).clip(0, len(self._keys) - 1)
        for name in ROW.names or ():
            wrong = np.flatnonzero(self._rows[name][places] != rows[name])
            if len(wrong):
                row = rows[wrong[0]]
                found = "is not in it" if name == "key" else f"has {name} {self._rows[name][places[wrong[0]]]} in it"
                raise UserError(
                    f"cache {self.folder} is of another dataset: sample {row['key']} with {name} {row[name]} {found} "
                    f"({len(wrong)} of {len(rows)} samples differ in {name}); use the records it was written from"
                )

    def require_temperature(self, temperature: float) -> float:
        """Share of information lost at T = tau / p; UserError when it is over the budget."""
        loss = certified_loss(self.certificate, temperature)
        if not loss <= LOSS_BUDGET:
            raise UserError(
                f"cache {self.folder}: codec {self.identity['codec']} loses {loss:.2%} of the teacher's information at "
                f"T = tau/p = {temperature:g}, more than {LOSS_BUDGET:.0%}; write a cache with cache.codec=f16 or f32"
            )
        return loss

    def _block(self, view: int, block: int) -> Block:
        cell = (view, block)
        found = self._blocks.get(cell)
        if found is None:
            count = min(BLOCK_ROWS, len(self._rows) - block * BLOCK_ROWS)
            found = open_block(self.folder, self._kind, view, block, count)
            self._blocks[cell] = found
            if len(self._blocks) > _OPEN_BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(cell)
        return found

    def records(self, keys: np.ndarray, views: np.ndarray) -> np.ndarray:
        """uint8 [B, R]: the checked records of int64 keys [B] under views [B]."""
        places = np.searchsorted(self._keys, keys)
        if (places >= len(self._keys)).any() or (self._keys[places] != keys).any():
            known = np.isin(keys, self._keys)
            raise UserError(f"cache {self.folder} has no sample with key {keys[~known][0]}")
        out = np.empty((len(keys), self._kind.record_bytes), np.uint8)
        block_of = places // BLOCK_ROWS
        cells = views.astype(np.int64) * (int(block_of.max()) + 1) + block_of
        for cell in np.unique(cells):
            mine = np.flatnonzero(cells == cell)
            view, number = int(views[mine[0]]), int(block_of[mine[0]])
            block = self._block(view, number)
            rows = places[mine] - number * BLOCK_ROWS
            records = block.records[rows]
            bad = np.flatnonzero(record_crcs(records, keys[mine], view) != block.crcs[rows])
            if len(bad):
                raise UserError(
                    f"{block_path(self.folder, view, number)}: the record of key {keys[mine[bad[0]]]} (view {view}, "
                    f"block {number}) is damaged; delete the file and run train/cache_logits.py again to rewrite it"
                )
            out[mine] = records
        return out

    def gather(self, keys: np.ndarray, views: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Raw teacher logits, float32 [B, C] on `device`, of int64 keys [B] under int32 views [B]."""
        return self.decode(self.records(keys, views), torch.device(device))

    def decode(self, records: np.ndarray, device: torch.device) -> torch.Tensor:
        """float32 [B, C] of checked records; the bytes travel, the device decodes."""
        payload = torch.from_numpy(np.ascontiguousarray(records[:, FINGERPRINT_BYTES:]))
        if device.type == "cuda":
            payload = payload.pin_memory()
        return decode(payload.to(device, non_blocking=True), self._kind.codec)

    def check_pixels(self, batch: Batch, records: np.ndarray, pixels: str) -> Literal["same", "close"]:
        """Compare the crops of a batch with what the teacher saw; UserError when they are of another view or image."""
        stored = Fingerprints(np.ascontiguousarray(records[:, :4]).view("<u4")[:, 0], records[:, 4:FINGERPRINT_BYTES])
        verdict = compare(stored, self._fingerprinter(batch.pixels))
        if verdict == "other":
            raise UserError(
                f"cache {self.folder}: the teacher saw other pixels than this run shows under the same keys and views "
                "(changed images, other records?); use the records it was written from, or write a new cache"
            )
        if verdict == "close" and pixels == "same":
            raise UserError(
                f"cache {self.folder}: same views, but decoded to slightly different pixels (another backend, stored "
                "size or machine), which cache.pixels=same refuses; use cache.pixels=close, or write the cache here"
            )
        return verdict
