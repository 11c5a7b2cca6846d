"""The predictions of a network on a split, as one file: what the tables and figures of finished runs are made from.

Owns the file (numpy .npz, without pickle): for each sample its key, label, name and logits, and what is known of the network.
Files of other programs need labels and logits alone. Invariant: what is read fits together, shape by shape, or is refused.
Shapes: n samples, C classes, D features.
"""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError, quoted
from pipelines.files import atomic_writer
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
    "float32 [n, C]; float16 in files of earlier versions and of other programs"
    positions: np.ndarray
    "int64 [n]: the place of each sample in its record file"
    names: np.ndarray
    "str [n], as objects: the name of each sample"
    class_names: np.ndarray
    "str [C], as objects"
    train_counts: np.ndarray | None = None
    "int64 [C]: the training images of each class; None: not known"
    method: str = ""
    "the method it was trained by, as in distill.method; empty: not known, or not such that its name says what its logits hold"
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
        known = {name: value for name, value in vars(self).items() if value is not None and not _is_empty(value)}
        for name in _TEXTS:
            known |= _packed(name, known.pop(name))
        with atomic_writer(path) as file:
            np.savez(file, **known)  # pyright: ignore[reportArgumentType]


def describe(kept: Kept, records: Records, train_counts: np.ndarray, method: str, weights: str) -> Predictions:
    """What an evaluation on `records` kept, with all that is known beside it; method: as `compensation.named_method` says."""
    places = np.argsort(records.keys)
    positions = places[np.searchsorted(records.keys, kept.keys, sorter=places)]
    return Predictions(
        keys=kept.keys,
        labels=kept.labels,
        logits=kept.logits,
        positions=positions,
        names=_texts(records.name(int(position)) for position in positions),
        class_names=_texts(records.class_names),
        train_counts=np.asarray(train_counts, np.int64),
        method=method,
        weights=weights,
        records=records.digest,
        features=kept.features,
    )


def read(path: Path) -> Predictions:
    """The predictions in a file of this program, or of another one that holds at least `labels` and `logits`.

    UserError where an array is missing, of another kind or shape, out of range or not finite. Other arrays are not looked at.
    """
    found = _load(path)
    for name in ("labels", "logits"):
        if name not in found:
            raise UserError(
                f"{path}: holds no `{name}`; a file of predictions needs labels int64 [n] and logits [n, C]"
            )
    logits = _numbers(path, found, "logits")
    n, classes = logits.shape
    known: dict[str, Any] = {
        "keys": np.arange(n),
        "positions": np.arange(n),
        "names": _texts(f"sample {i}" for i in range(n)),
        "class_names": _texts(map(str, range(classes))),
        "logits": logits,
        "labels": _whole(path, found, "labels", n, below=classes),
    }
    for name, least in (("keys", _INT64.min), ("positions", 0)):
        if name in found:
            known[name] = _whole(path, found, name, n, least)
    for name, length in (("names", n), ("class_names", classes)):
        if name in found:
            known[name] = _unpacked(path, found, name, length)
    if "train_counts" in found:
        known["train_counts"] = _whole(path, found, "train_counts", classes)
    if "features" in found:
        features = _numbers(path, found, "features")
        _require_rows(path, "features", features, n)
        known["features"] = features.astype(np.float32, copy=False)
    for name in ("method", "weights", "records"):
        if name in found:
            known[name] = _strings(path, found, name, 0)
    return Predictions(**known)


# ---- the arrays of a file ----

_TEXTS = ("names", "class_names")
_NULS = "_nuls"  # of names that end with NULs, which numpy's text drops: NAMES_nuls int64 [n] says how many
_INT64 = np.iinfo(np.int64)
_LAST_CHARACTER = 0x10FFFF
_DAMAGED = (  # what numpy, zipfile and its decompressors raise for damaged, encrypted and foreign files
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, MemoryError),
    *(ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError),  # of an array's header
)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays that this file's format knows; another program may keep more, even objects, beside them."""
    names = {*Predictions.__dataclass_fields__, *(f"{name}{_NULS}" for name in _TEXTS)}
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in file.files if name in names}
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = "it holds objects, or is no .npz file" if "pickle" in reason else quoted(reason, 200)
        raise UserError(
            f"{path}: no file of predictions, or a damaged one ({reason}); train/evaluate.py writes one by predictions=FILE"
        ) from error
    return found


def _of_kind(path: Path, found: dict[str, np.ndarray], name: str, kinds: str, words: str, axes: int) -> np.ndarray:
    """The array, in this machine's byte order; UserError for another kind of dtype (numpy's letters) or number of axes."""
    array = found[name]
    if array.dtype.kind not in kinds or array.ndim != axes:
        shape = ("a single value", "[n]", "[n, C]")[axes]
        raise UserError(f"{path}: {name} holds {quoted(array.dtype)} {list(array.shape)}; {words} expected, {shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _strings(path: Path, found: dict[str, np.ndarray], name: str, axes: int) -> Any:
    """Text as Python's own: a list, or of no axes one string."""
    array = _of_kind(path, found, name, "U", "text", axes)
    if array.size and array.itemsize and array.reshape(-1).view(np.uint32).max() > _LAST_CHARACTER:
        raise UserError(f"{path}: {name} is damaged: it holds what is no character")
    return array.tolist()


def _require_rows(path: Path, name: str, array: Sized, rows: int) -> None:
    if len(array) != rows:
        raise UserError(f"{path}: {name} has {len(array)} rows, {rows} expected, as logits has")


def _numbers(path: Path, found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """float16 or float32 [n, more than 0]"""
    array = _of_kind(path, found, name, "f", "float16 or float32", 2)
    if not array.size:
        raise UserError(f"{path}: {name} is empty, {list(array.shape)}; a row for each sample expected")
    with np.errstate(over="ignore"):
        array = array.astype(min(array.dtype, np.dtype(np.float32)), copy=False)
    if bad := int((~np.isfinite(array)).any(axis=1).sum()):
        raise UserError(
            f"{path}: {name} holds NaN, infinity or what is too large for float32 in {bad} of {len(array)} rows"
        )
    return array


def _whole(
    path: Path, found: dict[str, np.ndarray], name: str, rows: int, least: int = 0, below: int = _INT64.max + 1
) -> np.ndarray:
    """int64 [rows], from `least` and `below` a bound, or a UserError."""
    array = _of_kind(path, found, name, "iu", "whole numbers", 1)
    _require_rows(path, name, array, rows)
    low, high = int(array.min()), int(array.max())
    if low < least or high >= below:
        raise UserError(f"{path}: {name} from {low} to {high}; {least}..{below - 1} expected")
    return array.astype(np.int64, copy=False)


def _texts(texts: Iterable[str]) -> np.ndarray:
    """As Python's own strings: numpy's drop NULs at their end."""
    return np.array(list(texts), dtype=object)


def _packed(name: str, texts: np.ndarray) -> dict[str, np.ndarray]:
    """Names as arrays that need no pickle."""
    nuls = np.array([len(text) - len(text.rstrip("\0")) for text in texts], np.int64)
    return {name: np.array(texts.tolist(), dtype=np.str_)} | ({f"{name}{_NULS}": nuls} if nuls.any() else {})


def _unpacked(path: Path, found: dict[str, np.ndarray], name: str, rows: int) -> np.ndarray:
    texts = _strings(path, found, name, 1)
    _require_rows(path, name, texts, rows)
    if (of := f"{name}{_NULS}") in found:
        nuls = _whole(path, found, of, rows, below=1 << 16)
        texts = [text + "\0" * number for text, number in zip(texts, nuls.tolist(), strict=True)]
    return _texts(texts)


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value
