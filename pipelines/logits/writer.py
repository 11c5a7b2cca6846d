"""Writing a logit cache, block by block, so that killing any writer at any moment loses at most its block.

identity.json and index.bin come first, done.json last; every file appears whole. Several writers may work on one cache: a
cell (view, block) that two of them compute is equal, and the last rename wins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic, write_json_atomic
from pipelines.logits.blocks import BLOCK_ROWS, block_path, open_block, write_block
from pipelines.logits.cache import open_folder, write_done
from pipelines.logits.codec import certificate, encode
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.identity import identity_bytes, identity_hash

Cell = tuple[int, int]  # (view, block)


class CacheWriter:
    """Creates or continues `parent/name-<12 hex>`; rows: ROW[N] sorted by key, of the dataset in the identity."""

    def __init__(self, parent: str | Path, name: str, identity: dict[str, Any], rows: np.ndarray):
        self.folder = Path(parent) / f"{name}-{identity_hash(identity).hex()[:12]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, content in (("identity.json", identity_bytes(identity)), ("index.bin", rows.tobytes())):
                if not (self.folder / file).exists():
                    write_bytes_atomic(self.folder / file, content)
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

    def missing(self, views: int) -> list[Cell]:
        """Cells of the first `views` views that are not on disk, in order."""
        return [(v, b) for v in range(views) for b in range(self.blocks) if not self.has((v, b))]

    def has(self, cell: Cell) -> bool:
        """Whether a cell is visible, which means complete."""
        return block_path(self.folder, *cell).exists()

    def write(self, cell: Cell, logits: np.ndarray, prints: Fingerprints) -> None:
        """Encode, certify and publish float32 logits [n, C] of a cell's rows, in index order."""
        keys = self.rows["key"][self.block_rows(cell[1])]
        if logits.shape != (len(keys), self.kind.classes):
            raise ValueError(f"logits {logits.shape} for a block of {len(keys)} rows, {self.kind.classes} classes")
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise UserError(
                f"the teacher gives NaN or infinite logits for sample {keys[bad[0]]} (view {cell[0]}); "
                "nothing of this block was written: check the teacher, or use precision=fp32"
            )
        payload = encode(logits, self.kind.codec)
        sums = certificate(logits, payload, self.kind.codec)
        with self._writing():
            write_block(self.folder, self.kind, cell[0], cell[1], keys, prints, payload, sums)

    def finish(self, views: int, made: dict[str, Any] | None) -> None:
        """Declare the first `views` views complete, and any more that are.

        made: host, times, versions, for made.json; None = this session computed nothing.
        """
        while all(self.has((views, block)) for block in range(self.blocks)):
            views += 1
        total = sum(
            open_block(self.folder, self.kind, view, block, self.block_size(block)).certificate
            for view in range(views)
            for block in range(self.blocks)
        )
        with self._writing():
            if made is not None:
                write_json_atomic(self.folder / "made.json", made)
            write_done(self.folder, self.kind, views, np.asarray(total))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; make room and run the same command again"
            ) from error
