"""The most probable classes of images: what a network answers where there are no labels.

Owns the ranking, and the files that hold it (.csv, .parquet). The forward pass is that of evaluations (counting.py).
Invariants: the first class is the one that an evaluation would count, and a file is whole or not there.
Shapes: n images, C classes, k of them are named.
"""

import csv
import importlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pipelines.device import Lead
from pipelines.errors import UserError
from pipelines.files import atomic_writer
from pipelines.loader import Loader
from train.evaluation.counting import forward
from train.finite import FiniteLogits

PARQUET = ".parquet"
_NOT_FINITE = "nothing is written; predict with precision=fp32, or by an earlier checkpoint"


class Ranked(NamedTuple):
    """The first classes of n images."""

    classes: np.ndarray
    "int64 [n, k], the most probable first; of equally probable ones the first in label order, as for argmax"
    probabilities: np.ndarray
    "float64 [n, k]"


@torch.no_grad()
def rank(
    network: nn.Module,
    loader: Loader,
    positions: np.ndarray,
    batch_size: int,
    shift: np.ndarray,
    top: int,
    done: Callable[[int], None],
    place: str,
) -> Ranked:
    """The first `top` classes of the records at int64 positions [n], by the softmax of logits + shift, float64 [C].

    network: in eval mode, on the loader's device. done: is called with the number of images of each batch. place: where the user
    has the images.
    UserError for logits that are not finite.
    """
    added = torch.from_numpy(shift).to(loader.device)
    finite, lead, found = FiniteLogits(), Lead(loader.device), []
    batches = loader.batches(positions, np.zeros(len(positions), np.int32), batch_size)
    try:
        for batch in batches:
            logits, _ = forward(network, batch.images, len(batch.images))
            finite.see(logits, batch.keys)
            found.append(_first(logits.double() + added, top))
            lead.step()
            done(len(logits))
    finally:
        batches.close()
    finite.require(loader.records, "the network", _NOT_FINITE, place=place)
    if not found:  # of a part that other processes have
        return Ranked(np.empty((0, top), np.int64), np.empty((0, top)))
    classes, probabilities = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
    return Ranked(classes, probabilities)


def _first(logits: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(classes int64 [B, k], probabilities float64 [B, k]) of logits [B, C]"""
    # By the logits: probabilities may be equal by rounding.
    classes = logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return classes, logits.softmax(dim=1).gather(1, classes)


# ---- files ----

Write = Callable[[Sequence[str], Ranked], None]


def check_table(path: Path) -> None:
    """UserError where `table` cannot write a file of this name."""
    if path.suffix not in (".csv", PARQUET):
        raise UserError(f"out={path}: a name that ends with .csv or {PARQUET} expected")
    if path.suffix == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"out={path} needs the pyarrow package; type: bash tools/setup.sh parquet, or out={path.with_suffix('.csv')}"
        )


@contextmanager
def table(path: Path, class_names: Sequence[str], top: int) -> Iterator[Write]:
    """Gives a function that writes rows (names of n images, their first classes); the file appears when the block succeeds.

    Columns: file, label (the number of the class, from 0), class and probability, then class_2, probability_2 and so on.
    """
    columns = ["file", "label", "class", "probability"]
    for place in range(2, top + 1):
        columns += [f"class_{place}", f"probability_{place}"]
    with atomic_writer(path) as file, (_parquet if path.suffix == PARQUET else _csv)(file, columns) as rows:

        def write(names: Sequence[str], ranked: Ranked) -> None:
            found: list[Sequence[Any]] = [names, ranked.classes[:, 0].tolist()]
            for place in range(top):
                found.append([class_names[label] for label in ranked.classes[:, place]])
                found.append(ranked.probabilities[:, place].tolist())
            rows(found)

        yield write


@contextmanager
def _csv(file: Any, columns: list[str]) -> Iterator[Callable[[list[Sequence[Any]]], None]]:
    # A name of a file may hold bytes that are not UTF-8, which stay as they are.
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    lines = csv.writer(text, lineterminator="\n")
    # The one above takes no notice of a carriage return, at which readers would end the row.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerow(columns)

    def rows(found: list[Sequence[Any]]) -> None:
        shown = [[f"{value:.9g}" for value in one] if one and isinstance(one[0], float) else one for one in found]
        torn = any("\r" in value for one in shown if one and isinstance(one[0], str) for value in one)
        (quoted if torn else lines).writerows(zip(*shown, strict=True))

    try:
        yield rows
    finally:
        text.detach()  # which writes what is left, and leaves the file open


@contextmanager
def _parquet(file: Any, columns: list[str]) -> Iterator[Callable[[list[Sequence[Any]]], None]]:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    kinds = {"label": arrow.int64()}
    for name in columns:
        kinds.setdefault(name, arrow.float64() if name.startswith("probability") else arrow.string())
    schema = arrow.schema([(name, kinds[name]) for name in columns])
    with parquet.ParquetWriter(file, schema) as writer:

        def rows(found: list[Sequence[Any]]) -> None:
            shown = [[_utf8(value) for value in one] for one in found]
            writer.write_table(arrow.table(dict(zip(columns, shown, strict=True)), schema=schema))

        yield rows


def _utf8(value: Any) -> Any:
    """A text of Parquet is UTF-8: other bytes in a file's name are written as \\xNN."""
    return (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
    )
