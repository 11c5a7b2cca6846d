"""Small logit caches for tests: real records and files, made-up logits that are a simple function of key and view."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.augment.recipe import Recipe
from pipelines.logits import CacheWriter
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.folder import Wanted
from pipelines.logits.identity import cache_identity, view_identity
from pipelines.logits.writer import Cell
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

MANY = BLOCK_ROWS + 37  # samples: two blocks
FEW = 41
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
RECIPE = Recipe(crop="pad_crop", size=4, pad=1)
TEACHER = {
    "weights": "ab" * 32,
    "architecture": "resnet8",
    "input_size": 4,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "dtype": "float32",
    "memory_format": "contiguous",
    "kind": "raw",
}


def some_samples(count: int, seed: int = 0) -> list[Sample]:
    """Images of 4 x 4 random pixels; sample i has class i % 5."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Sample(f"s/{i}", i % len(CLASSES), pixels[i]) for i in range(count)]


def make_records(path: Path, samples: Sequence[Sample], class_names: Sequence[str] = CLASSES) -> Records:
    write_records(path, samples, class_names, kind="test")
    return Records(path)


def identity_of(records: Records, codec: str = "f32", batch: int = 64, seed: int = 0, **teacher: Any) -> dict[str, Any]:
    """The identity of a cache of these records; keyword arguments change fields of the teacher."""
    view = view_identity(records, RECIPE, seed, "reference")
    return cache_identity(view, TEACHER | teacher, codec, batch)


def wanted_of(records: Records, seed: int = 0, weights: str | None = None) -> Wanted:
    return Wanted(view_identity(records, RECIPE, seed, "reference"), records.rows(), weights)


def logits_of(keys: np.ndarray, view: int) -> np.ndarray:
    """float32 [n, 5] between -8 and 8."""
    phase = (keys % 100_003)[:, None] * np.arange(1, len(CLASSES) + 1) + 0.7 * view
    return (8 * np.sin(phase)).astype(np.float32)


def prints_of(keys: np.ndarray, view: int) -> Fingerprints:
    hashes = ((keys * 31 + view) & 0xFFFFFFFF).astype(np.uint32)
    thumbs = ((keys[:, None] >> np.arange(16)) + view & 0xFF).astype(np.uint8)
    return Fingerprints(hashes, thumbs)


def write_cell(writer: CacheWriter, cell: Cell) -> None:
    keys = writer.rows["key"][writer.block_rows(cell[1])]
    writer.write(cell, logits_of(keys, cell[0]), prints_of(keys, cell[0]))


def fill(writer: CacheWriter, views: int) -> None:
    """Write the missing blocks of the first `views` views, and declare them complete."""
    for cell in writer.missing(views):
        write_cell(writer, cell)
    writer.finish(views, {"host": "here"})


def make_cache(parent: Path, records: Records, views: int = 2, **identity: Any) -> Path:
    """A complete cache; keyword arguments are those of `identity_of`."""
    writer = CacheWriter(parent, "t", identity_of(records, **identity), records.rows())
    fill(writer, views)
    return writer.folder


def cache_files(folder: Path) -> dict[str, bytes]:
    """The files whose bytes depend only on the identity."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".lc", ".bin") or path.name == "identity.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
