"""Writing a logit cache, block by block, so that killing a writer at any moment loses at most its block.

identity.json and index.bin are written first, done.json last; every file appears as a whole. Several writers may work on one
cache: if two of them compute the same cell (view, block), their results are equal, and the last rename wins.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.device import to_host
from pipelines.errors import UserError
from pipelines.files import alone_in, is_temporary, read_json, write_bytes_atomic, write_json_atomic
from pipelines.logits.blocks import BLOCK_ROWS, BlockKind, block_path, missing_cells, open_block, write_block
from pipelines.logits.codec import TEMPERATURES, certificate, encode
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.folder import open_folder, write_done
from pipelines.logits.identity import identity_bytes, identity_hash

Cell = tuple[int, int]  # (view, block)
LEFTOVER_SECONDS = 3600  # a temporary file this old has lost its writer: writing one takes seconds


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in a cache whose writers were killed, judged by age, which works for writers on any host."""
    found = []
    for path in folder.rglob(".*"):
        try:
            if is_temporary(path) and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                found.append(path)
        except FileNotFoundError:  # its writer has just renamed it
            continue
    return found


class CacheSize(NamedTuple):
    """How large a cache is, by arithmetic: nothing here grows with the number of views."""

    samples: int
    views: int
    kind: BlockKind

    @property
    def blocks(self) -> int:
        """Of all views together; each is a file."""
        return self.views * -(-self.samples // BLOCK_ROWS)

    @property
    def bytes(self) -> int:
        """On disk, of all blocks."""
        full, rest = divmod(self.samples, BLOCK_ROWS)
        of_view = full * self.kind.block_bytes(BLOCK_ROWS) + (self.kind.block_bytes(rest) if rest else 0)
        return self.views * of_view


def cache_folder(parent: str | Path, name: str, identity: dict[str, Any]) -> Path:
    """Where the cache of this identity lies, or would."""
    return Path(parent) / f"{name}-{identity_hash(identity).hex()[:12]}"


def cache_size(identity: dict[str, Any], samples: int, views: int) -> CacheSize:
    """The size that a cache of this identity has in the end."""
    kind = BlockKind(b"", b"", len(identity["dataset"]["class_names"]), identity["codec"])
    return CacheSize(samples, views, kind)


class CacheWriter:
    """Creates or continues `parent/name-<12 hex>`; rows: ROW[N] sorted by key, of the dataset in the identity."""

    def __init__(self, parent: str | Path, name: str, identity: dict[str, Any], rows: np.ndarray) -> None:
        self.folder = cache_folder(parent, name, identity)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, content in (("identity.json", identity_bytes(identity)), ("index.bin", rows.tobytes())):
                if not (self.folder / file).exists():
                    write_bytes_atomic(self.folder / file, content)
            self._clear()
        except OSError as error:
            raise UserError(
                f"cannot write to cache.dir={parent}: {error.strerror}; choose another cache.dir"
            ) from error
        self.identity, self.rows, self.kind = open_folder(self.folder)
        self.blocks = -(-len(rows) // BLOCK_ROWS)

    def block_rows(self, block: int) -> slice:
        """Rows of the index that a block covers."""
        return slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self.rows)))

    def block_size(self, block: int) -> int:
        """Number of rows of a block."""
        rows = self.block_rows(block)
        return rows.stop - rows.start

    def size(self, views: int) -> CacheSize:
        """Of the finished cache with `views` views."""
        return CacheSize(len(self.rows), views, self.kind)

    def missing(self, views: int) -> list[Cell]:
        """Cells of the first `views` views that are not on disk, in order."""
        return missing_cells(self.folder, views, self.blocks)

    def has(self, cell: Cell) -> bool:
        """Whether a cell is visible, which means complete."""
        return block_path(self.folder, *cell).exists()

    def write(self, cell: Cell, logits: torch.Tensor | np.ndarray, prints: Fingerprints) -> int:
        """Encode, certify and publish the float32 logits [n, C] of a cell's rows, in index order.

        Those on a CUDA device are encoded and certified there, all others by the CPU.
        Returns the number of rows whose largest logit is that of the label.
        """
        rows = self.rows[self.block_rows(cell[1])]
        if isinstance(logits, np.ndarray):
            logits = torch.from_numpy(np.array(logits, np.float32, order="C"))
        logits = (logits if logits.is_cuda else logits.cpu()).detach().float().contiguous()
        if logits.shape != (len(rows), self.kind.classes):
            raise ValueError(
                f"logits {tuple(logits.shape)} for a block of {len(rows)} rows, {self.kind.classes} classes"
            )
        bad = np.flatnonzero(~to_host(logits.isfinite().all(dim=1)))
        if len(bad):
            raise UserError(
                f"the teacher gives NaN or infinite logits for sample {rows['key'][bad[0]]} (view {cell[0]}); "
                "nothing of this block was written: check the teacher, or use precision=fp32"
            )
        right = int((to_host(logits.argmax(dim=1)) == rows["label"]).sum())
        payload = encode(logits, self.kind.codec)
        sums = certificate(logits, payload, self.kind.codec)
        with self._writing():
            write_block(self.folder, self.kind, *cell, rows["key"], prints, to_host(payload), to_host(sums), right)
        return right

    def finish(self, views: int, session: dict[str, Any] | None) -> float:
        """Declare the first `views` views complete, and any further complete ones; returns the teacher's accuracy on them.

        session: host, times, versions and figures of this session, for made.json; None = it computed nothing.
        """
        with self._writing(), alone_in(self.folder):  # of two writers that finish together, the last one sees all views
            while all(self.has((views, block)) for block in range(self.blocks)):
                views += 1
            sums, right = np.zeros((len(TEMPERATURES), 3)), 0
            for view in range(views):
                for block in range(self.blocks):
                    opened = open_block(self.folder, self.kind, view, block, self.block_size(block))
                    sums += opened.certificate
                    right += opened.right
            accuracy = right / (views * len(self.rows))
            self._write_made(accuracy, session)
            write_done(self.folder, self.kind, views, sums)
            self._clear()
        return accuracy

    def _write_made(self, accuracy: float, session: dict[str, Any] | None) -> None:
        """Write made.json: how this cache came to be. Nothing depends on it, so a damaged one is simply replaced."""
        path = self.folder / "made.json"
        before = _read_made(path)
        sessions = [*before.get("sessions", []), *([session] if session is not None else [])]
        made = {"teacher_top1": accuracy, "sessions": sessions}
        if made != before:
            write_json_atomic(path, made)

    def _clear(self) -> None:
        """Remove the temporary files of killed writers."""
        for path in leftovers(self.folder):
            path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; what is finished is kept: make room, or the folder "
                "writable, and run the same command again"
            ) from error


def _read_made(path: Path) -> dict[str, Any]:
    try:
        made = read_json(path)
    except UserError:  # absent or damaged
        return {}
    return made if isinstance(made, dict) and isinstance(made.get("sessions", []), list) else {}
