"""Reading a logit cache: targets by (key, view), each checked before it is used.

Owns gathering and the check of fingerprints. Knows nothing about the backend that loads images or the student. Invariant: a
target that `gather` returns has the right key, view, teacher and checksum.
"""

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipelines.backends.pixels import PixelSource
from pipelines.errors import UserError, quoted
from pipelines.logits.blocks import (
    BLOCK_ROWS,
    FINGERPRINT_BYTES,
    HEADER,
    block_path,
    gather_records,
    missing_cells,
    open_block,
)
from pipelines.logits.codec import TEMPERATURES, certified_loss, decode
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints, compare
from pipelines.logits.folder import Wanted, find_cache, misfits, open_folder, read_done
from pipelines.logits.identity import PIXEL_FIELDS
from pipelines.logits.maps import BlockMaps
from pipelines.records.layout import sample_key

LOSS_BUDGET = 0.01  # share of the teacher's information that a codec may lose at the temperature in use
# Memory maps that one cache keeps open, of some 65,000 that a process may have, and their bytes, which count as the process's
# memory while they are in the page cache. A view of iNaturalist 2018 has 107 blocks of 33 MB, and each epoch may read another
# view.
_OPEN_BLOCKS, _OPEN_BYTES = 8192, 2**35


@dataclass(kw_only=True)
class CacheConfig:
    paths: list[str] = field(default_factory=list, metadata={"path": True})
    "logit caches to train from, one per teacher: its folder, or the folder that contains it; empty = run the teacher online"
    weights: list[float] = field(default_factory=list)
    "weights of the caches in the average, one positive number each; empty = equal"
    average: Literal["logits", "probabilities"] = "logits"
    "how several teachers are averaged: by their raw logits, or by their probabilities at the temperature in use"
    check: Literal["open", "epoch", "always"] = "epoch"
    "when to compare fingerprints of the pixels: on the first mini-batches only, also once per epoch, or on every mini-batch"
    pixels: Literal["same", "close"] = "close"
    "close: accept the same view decoded by another backend or machine, with a note; same: refuse it"
    codec: Literal["u8", "f16", "f32"] = "u8"
    "how train/cache_logits.py stores logits: 8 bits per class with a range per sample, or floats"
    batch: int = 256
    "images per forward pass of the teacher in train/cache_logits.py; part of the cache's identity"
    dir: str = field(default="caches", metadata={"path": True})
    "folder in which train/cache_logits.py creates the folder of the cache"

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= BLOCK_ROWS:
            raise ValueError(f"cache.batch={self.batch}: must be from 1 to {BLOCK_ROWS}, the images of a block")
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"cache.weights={self.weights}: needs one number for each of the {len(self.paths)} cache.paths"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"cache.weights={self.weights}: must be above 0; leave out a cache that is not to count")
        total = sum(self.weights)
        if self.weights and (total == math.inf or min(self.weights) / total == 0):
            raise ValueError(
                f"cache.weights={self.weights}: too far apart or too large for a share of each; use smaller ones"
            )


def _integers(values: np.ndarray) -> np.ndarray:
    """The values as contiguous int64, for compiled code; ValueError for floats, which would be rounded."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"keys and views are integers, not {array.dtype}")
    return np.ascontiguousarray(array, np.int64)


def _into_page_cache(paths: Sequence[Path]) -> None:
    """Read the files; posix_fadvise would ask for some MB of each at most."""
    buffer = bytearray(2**20)
    for path in paths:
        with suppress(OSError), open(path, "rb", buffering=0) as file:  # whoever needs it says what is wrong
            while file.readinto(buffer):
                pass


class LogitCache:
    """A complete cache, opened for reading.

    path: the cache's folder or its parent. Attributes: identity (dict), views (number of complete views), classes,
    folder, certificate float64 [T, 3]. `gather` returns raw teacher logits.
    """

    def __init__(self, path: str | Path, wanted: Wanted | None = None):
        self.folder = find_cache(path, wanted)
        self._opened = open_folder(self.folder)
        self.identity, self._rows, self._kind = self._opened
        self.views, self.certificate = read_done(self.folder, self._kind)
        self.classes = self._kind.classes
        self.pixels = PixelSource.parse(self.identity["backend"])
        self._keys = np.ascontiguousarray(self._rows["key"])
        self._blocks = -(-len(self._rows) // BLOCK_ROWS)  # of one view
        self._limit = max(1, min(_OPEN_BLOCKS, _OPEN_BYTES // self._kind.block_bytes(BLOCK_ROWS)))
        self._maps = BlockMaps(self.views * self._blocks, self._limit)  # by view * self._blocks + block
        self._fingerprinter = Fingerprinter()
        self._view = -1  # the last one that was that of a whole batch
        self._ahead: threading.Thread | None = None

    def __reduce__(self) -> tuple[type["LogitCache"], tuple[Path]]:
        """Pickling sends the path alone: another process makes its own memory maps."""
        return LogitCache, (self.folder.absolute(),)

    def require(self, wanted: Wanted, views: int, pixels: str) -> list[str]:
        """Raise UserError unless this cache holds what is wanted, under `views` views; pixels: cache.pixels.

        Returns notes for the first screen: the differences that are allowed.
        """
        found = misfits(self._opened, wanted)
        allowed = PIXEL_FIELDS if pixels == "close" else ()
        refused = [f"{name}: {text}" for name, text in found.items() if name not in allowed]
        if refused:
            raise UserError(
                f"cache {self.folder} is not a cache of this run: {'; '.join(refused)}. "
                "Change these settings, or write a cache for them with train/cache_logits.py"
            )
        if views > self.views:
            raise UserError(
                f"cache {self.folder} holds {self.views} views, this run uses {views}: "
                f"set data.views={self.views}, or run train/cache_logits.py with data.views={views} to add the rest"
            )
        for cell in missing_cells(self.folder, views, self._blocks):
            raise UserError(f"{block_path(self.folder, *cell)} is missing; run train/cache_logits.py again to write it")
        notes = [f"{name}: {text}" for name, text in found.items()]
        if len(wanted.rows) < len(self._rows):
            notes.append(f"dataset: {len(wanted.rows)} of the cache's {len(self._rows)} samples")
        return notes

    def require_temperature(self, temperature: float) -> float:
        """Share of information lost at T = tau / p; UserError when it is over the budget."""
        loss = certified_loss(self.certificate, temperature)
        if not loss <= LOSS_BUDGET:
            what = f"loses {loss:.2%} of the teacher's information" if math.isfinite(loss) else "is not certified"
            raise UserError(
                f"cache {self.folder}: codec {self.identity['codec']} {what} at T = tau/p = {temperature:g} "
                f"(allowed: {LOSS_BUDGET:.0%}, certified: up to T = {TEMPERATURES[-1]:g}); "
                "lower distill.tau, or write a cache with cache.codec=f32"
            )
        return loss

    def _read_ahead(self, views: np.ndarray) -> None:
        """With the first batch of a view begin to read the next one, which is that of the next epoch, into the page cache.

        Else the first batch of every epoch, which touches nearly all blocks of a view, would wait for the disk. While the view
        before is still being read, which another reader would slow down, this waits for a later batch.
        """
        if not len(views) or views[0] == self._view or (views != views[0]).any():
            return
        if self._ahead is not None and self._ahead.is_alive():
            return
        self._view = int(views[0])
        after = (self._view + 1) % self.views
        if after != self._view:
            paths = [block_path(self.folder, after, block) for block in range(self._blocks)]
            self._ahead = threading.Thread(target=_into_page_cache, args=(paths,), name="read ahead", daemon=True)
            self._ahead.start()

    def _open_cells(self, cells: np.ndarray) -> None:
        """Before any byte of a block is touched: those that are open are still whole, the others are opened."""
        for cell in np.unique(cells).tolist():
            view, block = divmod(cell, self._blocks)
            if self._maps.addresses[cell]:
                self._maps.require_whole(cell, block_path(self.folder, view, block))
                continue
            count = min(BLOCK_ROWS, len(self._rows) - block * BLOCK_ROWS)
            open_block(self.folder, self._kind, view, block, count)  # refuses a file of another cache, view or block
            self._maps.open(cell, block_path(self.folder, view, block), self._kind.block_bytes(count))

    def keys_of(self, names: Sequence[str]) -> np.ndarray:
        """int64 [B]: the keys of samples by their names; UserError, naming the first, for names that the cache does not know."""
        if isinstance(names, str):  # a sequence, too: of letters
            raise TypeError(f"names is the text {names!r}: give a list of names")
        keys = np.array([sample_key(name) for name in names], np.int64)
        unknown = np.flatnonzero(self._keys[self._places(keys)] != keys)
        if len(unknown):
            more = f" (nor {len(unknown) - 1} more of these {len(keys)})" if len(unknown) > 1 else ""
            raise UserError(
                f"cache {self.folder} has no sample named {quoted(names[unknown[0]])}{more}: names are those of the records that "
                "it was written from, as tools/convert.py gave them"
            )
        return keys

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """Where the keys are in the index, if they are there at all."""
        return np.searchsorted(self._keys, keys).clip(0, len(self._keys) - 1)

    def records(self, keys: np.ndarray, views: np.ndarray) -> np.ndarray:
        """uint8 [B, R]: the records for integer keys [B] under integer views [B], each checked against its CRC."""
        keys, views = _integers(keys), _integers(views)
        if keys.ndim != 1 or keys.shape != views.shape:  # compiled code would read beyond the shorter one
            raise ValueError(f"keys {keys.shape} and views {views.shape}: one view for each key")
        places = self._places(keys)
        unknown = keys[self._keys[places] != keys]
        if len(unknown):
            raise UserError(f"cache {self.folder} has no sample with key {unknown[0]}")
        outside = views[(views < 0) | (views >= self.views)]
        if len(outside):
            raise UserError(f"cache {self.folder} holds views 0 to {self.views - 1}, not view {outside[0]}")
        self._read_ahead(views)
        out = np.empty((len(keys), self._kind.record_bytes), np.uint8)
        for start in range(0, len(keys), self._limit):  # so that at most twice that many blocks are open
            part = slice(start, start + self._limit)
            self._fill(out[part], keys[part], views[part], places[part])
        return out

    def _fill(self, out: np.ndarray, keys: np.ndarray, views: np.ndarray, places: np.ndarray) -> None:
        blocks = places // BLOCK_ROWS
        cells = views * self._blocks + blocks
        self._open_cells(cells)
        counts = np.minimum(BLOCK_ROWS, len(self._rows) - blocks * BLOCK_ROWS)
        bad = gather_records(
            self._maps.addresses[cells] + HEADER.itemsize, counts, places - blocks * BLOCK_ROWS, keys, views, out
        )
        if bad >= 0:
            view, block = int(views[bad]), int(blocks[bad])
            raise UserError(
                f"{block_path(self.folder, view, block)}: the record of key {keys[bad]} (view {view}, block {block}) is "
                "damaged; delete the file and run train/cache_logits.py again to rewrite it"
            )
        self._maps.close_oldest()

    def gather(self, keys: np.ndarray, views: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Raw teacher logits, float32 [B, C] on `device`, for integer keys [B] under integer views [B]."""
        return self.decode(self.records(keys, views), torch.device(device))

    def decode(self, records: np.ndarray, device: torch.device) -> torch.Tensor:
        """float32 [B, C] of checked records; the bytes are copied to the device and decoded there."""
        bytes_ = torch.from_numpy(records)
        if device.type == "cuda":
            bytes_ = bytes_.pin_memory()
        return decode(bytes_.to(device, non_blocking=True)[:, FINGERPRINT_BYTES:], self._kind.codec)

    def check_pixels(self, crops: torch.Tensor, records: np.ndarray, pixels: str) -> Literal["same", "close"]:
        """Compare crops uint8 [B, S, S, 3] with those that the teacher saw; UserError for another view or image.

        records: those of the same keys and views; pixels: cache.pixels.
        """
        if len(crops) != len(records):  # numpy would compare one with all
            raise ValueError(f"{len(crops)} crops and {len(records)} records: one record for each crop")
        stored = Fingerprints(np.ascontiguousarray(records[:, :4]).view("<u4")[:, 0], records[:, 4:FINGERPRINT_BYTES])
        verdict = compare(stored, self._fingerprinter(crops))
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
