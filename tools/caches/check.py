"""Whether the files of a logit cache are whole, whether they belong to given images, and the removal of those that are not.

Owns what counts as a bad file; the format and its checksums are pipelines/logits'. Works on unfinished caches, and beside
writers at work. Invariant: identity.json and index.bin are only read, and done.json goes before any block does, so that no
reader ever finds a cache that calls itself complete and has holes.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.backends import PixelSource, available_backends, pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.files import fsync_folder, is_temporary, read_json
from pipelines.loader import Loader
from pipelines.logits.blocks import BLOCK_ROWS, FINGERPRINT_BYTES, Block, block_path, open_block, record_crcs
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints, compare
from pipelines.logits.folder import Opened, Wanted, find_cache, misfits, open_folder, read_done
from pipelines.logits.identity import PIXEL_FIELDS, view_identity
from pipelines.logits.writer import Cell, leftovers
from pipelines.records.reader import Records

FIXED_FILES = ("identity.json", "index.bin", "done.json", "made.json")
_CELL = re.compile(r"v(\d+)/b(\d+)\.lc")
_BATCH = 256  # crops compared at a time


class Bad(NamedTuple):
    """A file that is damaged, foreign or missing. why: a sentence that names it; cell: of a block."""

    path: Path
    why: str
    cell: Cell | None = None


class Survey(NamedTuple):
    """What lies in a cache folder, before any block is read."""

    folder: Path
    opened: Opened
    views: int | None
    "views that done.json declares complete; None = unfinished, or done.json is bad"
    certificate: np.ndarray | None
    "done.json's sum over those views, float64 [T, 3]"
    cells: list[Cell]
    "blocks on disk, in order"
    bad: list[Bad]
    "among done.json and made.json"
    temporary: list[Path]
    "files being written, or left behind by killed writers"
    strays: list[Path]
    "files that are no part of a cache; no program reads them"

    @property
    def blocks(self) -> int:
        """Blocks of one view."""
        return -(-len(self.opened.rows) // BLOCK_ROWS)

    def keys(self, block: int) -> np.ndarray:
        """int64 [n]: the keys of a block's records."""
        return np.ascontiguousarray(self.opened.rows["key"][block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS])

    def open(self, cell: Cell) -> Block:
        """A block of this cache, its records unchecked; UserError when it is missing, damaged or foreign."""
        return open_block(self.folder, self.opened.kind, *cell, len(self.keys(cell[1])))

    def declared(self) -> list[Cell]:
        """The blocks that done.json says are there."""
        return [(view, block) for view in range(self.views or 0) for block in range(self.blocks)]

    def complete_views(self) -> tuple[list[int], list[int]]:
        """(views of which every block is on disk, views of which some are)."""
        count = Counter(view for view, _ in self.cells)
        return (
            [view for view in sorted(count) if count[view] == self.blocks],
            [view for view in sorted(count) if count[view] < self.blocks],
        )


def cache_folder(path: Path) -> Path:
    """The cache at `path`, or the only one in it; UserError names what is missing."""
    if not (path / "identity.json").exists() and (path / "index.bin").exists():
        raise UserError(f"{path}/identity.json is missing, without which no block can be judged; write the cache again")
    return find_cache(path)


def survey(folder: Path) -> Survey:
    """Take stock of a cache; UserError when identity.json or index.bin is bad: without them nothing else can be judged."""
    opened = open_folder(folder)
    views, certificate, bad = None, None, []
    done, made = folder / "done.json", folder / "made.json"
    if done.exists():
        try:
            views, certificate = read_done(folder, opened.kind)
        except UserError as error:
            bad.append(Bad(done, str(error)))
    if made.exists():
        try:
            if not isinstance(read_json(made), dict):
                bad.append(Bad(made, f"{made} is damaged: not a JSON object"))
        except UserError as error:
            bad.append(Bad(made, str(error)))
    found = Survey(folder, opened, views, certificate, [], bad, [], [])
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        cell = _cell(folder, path, name)
        if path.is_dir() and cell is None:
            continue
        if cell is not None and cell[1] < found.blocks:
            found.cells.append(cell)
        elif is_temporary(path):
            found.temporary.append(path)
        elif name not in FIXED_FILES:
            found.strays.append(path)
    found.cells.sort()
    return found


def _cell(folder: Path, path: Path, name: str) -> Cell | None:
    """The cell whose block has this very path, if there is one."""
    match = _CELL.fullmatch(name)
    cell = (int(match[1]), int(match[2])) if match else None
    return cell if cell and block_path(folder, *cell) == path else None


# ---- checksums ----


def check_blocks(found: Survey, workers: int, progress: Callable[[], None]) -> list[Bad]:
    """Every bad block, with what done.json says of the others checked; calls `progress` after each of `to_check`."""
    bad: list[Bad] = []
    sums = {}
    with ThreadPool(max(1, workers)) as pool:  # checksums release the GIL
        cells = to_check(found)
        for cell, (why, certificate) in zip(cells, pool.imap(lambda c: _check_block(found, c), cells), strict=True):
            if why:
                bad.append(Bad(block_path(found.folder, *cell), why, cell))
            sums[cell] = certificate
            progress()
    declared = found.declared()
    if found.certificate is not None and not {one.cell for one in bad} & set(declared):
        total = np.sum([sums[cell] for cell in declared], axis=0)
        if not np.allclose(total, found.certificate, rtol=1e-9, atol=0):
            done = found.folder / "done.json"
            bad.insert(0, Bad(done, f"{done}: its certificate is not the sum of its blocks'"))
    return bad


def to_check(found: Survey) -> list[Cell]:
    """The blocks that are there or should be."""
    return sorted({*found.cells, *found.declared()})


def _check_block(found: Survey, cell: Cell) -> tuple[str, np.ndarray | None]:
    """(what is wrong with a block, or ""; its certificate)."""
    try:
        block = found.open(cell)
    except UserError as error:
        return str(error), None
    keys = found.keys(cell[1])
    wrong = np.flatnonzero(record_crcs(block.records, keys, cell[0]) != block.crcs)
    if not len(wrong):
        return "", block.certificate
    path = block_path(found.folder, *cell)
    return f"{path}: {len(wrong)} of {len(keys)} records are damaged, the first of key {keys[wrong[0]]}", None


# ---- pixels ----


class Pixels(NamedTuple):
    """Crops of a records file beside those that a teacher saw."""

    verdicts: Counter
    "same, close, other"
    backend: str
    notes: list[str]
    "fields in which cache and records differ and may"
    others: list[str]
    "crops of other pixels, by name, key and view"


def compare_pixels(
    found: Survey, records: Records, samples: int | None, device: torch.device, progress: Callable[[], None]
) -> Pixels:
    """Load crops of `records` under the cache's recipe and seed and compare their fingerprints with the stored ones.

    samples: how many (sample, view) pairs, spread evenly over views and blocks; None = all. UserError when these are not
    the cache's records. progress: called for each crop.
    """
    identity = found.opened.identity
    recipe, seed = Recipe(**identity["recipe"]), identity["data_seed"]
    cached = PixelSource.parse(identity["backend"])
    here = cached.backend in available_backends(records, recipe, device)
    backend = resolve_backend("auto", records, recipe, device, cached if here else None)
    view = view_identity(records, recipe, seed, pixel_source(backend, records, device, cached.hw_decoder_load))
    differing = misfits(found.opened, Wanted(view, records.rows()))
    refused = [f"{field}: {text}" for field, text in differing.items() if field not in PIXEL_FIELDS]
    if refused:
        raise UserError(f"{records.path} is not the data of {found.folder}: {'; '.join(refused)}; name its records")
    # Only the crops are looked at: what is made of them is thrown away.
    finish = Finish([0, 0, 0], [1, 1, 1], device, channels_last=False)
    loader = Loader(
        records,
        recipe.unmixed(),
        seed=seed,
        backend=backend,
        finish=finish,
        device=device,
        hw_decoder_load=cached.hw_decoder_load,
    )
    out = Pixels(Counter(), backend, [f"{field}: {text}" for field, text in differing.items()], [])
    fingerprint = Fingerprinter()
    positions, places, views = _pairs(found, records, samples)
    batches = loader.batches(positions, views, _BATCH)
    try:
        for number, batch in enumerate(batches):
            part = slice(number * _BATCH, (number + 1) * _BATCH)
            stored, seen = _stored_prints(found, places[part], views[part]), fingerprint(batch.pixels)
            for i, position in enumerate(positions[part]):
                verdict = compare(*(Fingerprints(p.hashes[i : i + 1], p.thumbs[i : i + 1]) for p in (stored, seen)))
                out.verdicts[verdict] += 1
                if verdict == "other":
                    out.others.append(f"{records.name(position)} (key {batch.keys[i]}, view {batch.views[i]})")
                progress()
    finally:
        batches.close()
    return out


def _pairs(found: Survey, records: Records, samples: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions int64 [n] in the records, places int64 [n] in the index, views int32 [n]), cell after cell."""
    by_key = np.argsort(records.keys, kind="stable")
    places = np.searchsorted(found.opened.rows["key"], records.keys[by_key])
    starts = np.searchsorted(places // BLOCK_ROWS, np.arange(found.blocks + 1))  # where each block's samples begin
    cell_views, cell_blocks = np.array(found.cells, np.int64).reshape(-1, 2).T
    ends = np.cumsum(np.diff(starts)[cell_blocks])
    total = int(ends[-1]) if len(ends) else 0
    picks = np.arange(total)
    if samples is not None and samples < total:
        # One at a random place in each of `samples` equal parts.
        within = np.random.default_rng(0).random(samples)
        picks = ((np.arange(samples) + within) * total / samples).astype(np.int64)
    cell = np.searchsorted(ends, picks, side="right")
    sample = starts[cell_blocks[cell] + 1] - (ends[cell] - picks)
    return by_key[sample], places[sample], cell_views[cell].astype(np.int32)


def _stored_prints(found: Survey, places: np.ndarray, views: np.ndarray) -> Fingerprints:
    """What the cache holds of the index's rows `places` under `views`."""
    prints = np.empty((len(places), FINGERPRINT_BYTES), np.uint8)
    blocks = places // BLOCK_ROWS
    for view, number in sorted(set(zip(views.tolist(), blocks.tolist(), strict=True))):
        mine = (views == view) & (blocks == number)
        prints[mine] = found.open((view, number)).records[places[mine] - number * BLOCK_ROWS, :FINGERPRINT_BYTES]
    return Fingerprints(np.ascontiguousarray(prints[:, :4]).view("<u4")[:, 0], prints[:, 4:])


# ---- repair ----


def require_own_identity(found: Survey, bad: Sequence[Bad]) -> None:
    """Refuse to judge blocks by an identity or index that may itself be the wrong one."""
    whole = set(found.cells) - {one.cell for one in bad}
    if found.cells and not whole and found.views is None:
        raise UserError(
            f"{found.folder}: not one of its {len(found.cells)} blocks fits its identity.json and index.bin, so it may be "
            "these that were replaced; nothing was deleted: put the right ones back, or delete the folder"
        )


def remove(found: Survey, bad: Sequence[Bad]) -> list[Path]:
    """Delete the bad files, done.json if it promises any of them, and leftovers of killed writers; returns what is gone."""
    doomed = [one.path for one in bad if one.path.exists()]
    done = found.folder / "done.json"
    try:
        for path in doomed:
            path.open("rb").close()  # what cannot be read may be whole
        if done.exists() and {one.cell for one in bad} & set(found.declared()):
            doomed = [done, *doomed]
        doomed += leftovers(found.folder)
        for path in doomed:
            path.unlink(missing_ok=True)
            fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot read or delete {error.filename}: {error.strerror}; check permissions") from error
    return doomed
