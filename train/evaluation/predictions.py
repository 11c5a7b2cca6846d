"""The predictions of a network on a split, as one file: what the tables and figures of finished runs are made from.

Owns the file (numpy .npz, without pickle): for each sample its key, label, name and logits, and what is known of the network.
Files of other programs need labels and logits alone. Invariant: what is read fits together, shape by shape, or is refused.
Shapes: n samples, C classes, D features.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic
from pipelines.records.reader import Records
from train.evaluation.counting import Kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Rows in any order; `positions` gives the order of the list that the records were made from."""

    keys: np.ndarray
    "int64 [n]"
    labels: np.ndarray
    "int64 [n]"
    logits: np.ndarray
    "[n, C], float16, or float32 where float16 would overflow or change a prediction"
    positions: np.ndarray
    "int64 [n]: the place of each sample in its record file"
    names: np.ndarray
    "text [n]: the name of each sample"
    class_names: np.ndarray
    "text [C]"
    train_counts: np.ndarray | None = None
    "int64 [C]: the training images of each class; None: not known"
    method: str = ""
    "the method it was trained by, as in distill.method; empty: not known"
    weights: str = ""
    "their hash (networks/weights.py); empty: not known"
    records: str = ""
    "digest of the records"
    features: np.ndarray | None = None
    "float32 [n, D]: the input of the last layer"

    @property
    def by_list(self) -> np.ndarray:
        """The rows, int64 [n], in the order of the list."""
        return np.argsort(self.positions, kind="stable")

    @property
    def answers(self) -> np.ndarray:
        """Predicted classes, int64 [n]."""
        return self.logits.argmax(axis=1)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; what is not known is left out."""
        known: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if value is not None and not (isinstance(value, str) and not value)
        }
        buffer = io.BytesIO()
        np.savez(buffer, **known)
        write_bytes_atomic(path, buffer.getvalue())


def describe(kept: Kept, records: Records, train_counts: np.ndarray, method: str, weights: str) -> Predictions:
    """What an evaluation on `records` kept, with all that is known beside it."""
    places = np.argsort(records.keys)
    positions = places[np.searchsorted(records.keys, kept.keys, sorter=places)]
    return Predictions(
        keys=kept.keys,
        labels=kept.labels,
        logits=kept.logits,
        positions=positions,
        names=np.array([records.name(int(position)) for position in positions]),
        class_names=np.array(records.class_names),
        train_counts=np.asarray(train_counts, np.int64),
        method=method,
        weights=weights,
        records=records.digest,
        features=kept.features,
    )


def read(path: Path) -> Predictions:
    """The predictions in a file of this program, or of another one that holds at least `labels` and `logits`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{path}: no file of predictions, or a damaged one ({error}); train/evaluate.py writes one by predictions=FILE"
        ) from error
    for name in ("labels", "logits"):
        if name not in found:
            raise UserError(
                f"{path}: holds no `{name}`; a file of predictions needs labels int64 [n] and logits [n, C]"
            )
    labels, logits = found["labels"], found["logits"]
    n = len(labels) if labels.ndim else -1
    if labels.ndim != 1 or logits.ndim != 2 or len(logits) != n:
        raise UserError(f"{path}: labels {labels.shape} and logits {logits.shape} do not fit; [n] and [n, C] expected")
    classes = logits.shape[1]
    numbered = np.arange(n)
    defaults: dict[str, Any] = {
        "keys": numbered,
        "positions": numbered,
        "names": np.array([f"sample {i}" for i in range(n)]),
        "class_names": np.array([str(label) for label in range(classes)]),
    }
    texts: dict[str, Any] = {name: str(found.pop(name)) for name in ("method", "weights", "records") if name in found}
    known = {name: value for name, value in found.items() if name in Predictions.__dataclass_fields__}
    whole = Predictions(**(defaults | known | texts))
    lengths = {"keys": n, "positions": n, "names": n, "class_names": classes, "train_counts": classes, "features": n}
    for name, length in lengths.items():
        value = getattr(whole, name)
        if value is not None and len(value) != length:
            raise UserError(f"{path}: {name} has {len(value)} rows, {length} expected, for logits {logits.shape}")
    if n and (labels.min() < 0 or labels.max() >= classes):
        raise UserError(
            f"{path}: labels from {labels.min()} to {labels.max()}, 0..{classes - 1} expected, for logits {logits.shape}"
        )
    if not np.isfinite(logits).all():
        raise UserError(f"{path}: some logits are not finite")
    return whole
