"""The file of predictions: what is written is read again, whoever wrote it; what does not fit together is refused in one line."""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.evaluation.counting import Kept
from train.evaluation.predictions import Predictions, describe, read

CLASSES = ["crane", "crane", "caf\udce9", "\u732b \U0001f408\u200d", "ends with NULs\0\0"]
NAMES = [
    "a/0",
    "a/1\0",
    "b/\udcff\udc80.jpg",
    "b/\u732b",
    "c/ ",
    "d/\0\0",
    "a name that is longer than all of the others",
]
LABELS = [0, 1, 2, 3, 4, 0, 1]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("records") / "test.beton"
    image = np.zeros((4, 4, 3), np.uint8)
    write_records(path, [Sample(n, c, image) for n, c in zip(NAMES, LABELS, strict=True)], CLASSES, kind="test")
    return Records(path)


@pytest.fixture(scope="module")
def whole(records: Records) -> Predictions:
    """Everything that an evaluation with features knows."""
    order, rng = np.argsort(records.keys), np.random.default_rng(0)
    logits, features = rng.normal(size=(7, 5)).astype(np.float16), rng.normal(size=(7, 3)).astype(np.float32)
    kept = Kept(records.keys[order], records.labels[order].astype(np.int64), logits, features)
    return describe(kept, records, np.array([9, 6, 4, 3, 2]), "dive", "ab" * 32)


def same(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        found, expected = getattr(one, field.name), getattr(other, field.name)
        assert type(found) is type(expected), field.name
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype and found.tolist() == expected.tolist(), field.name
        else:
            assert found == expected, field.name


def test_what_is_written_is_read(whole: Predictions, tmp_path: Path) -> None:
    whole.save(tmp_path / "p.npz")
    same(read(tmp_path / "p.npz"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:  # as any program reads it
        assert set(file.files) == {field.name for field in fields(Predictions)} | {"names_nuls", "class_names_nuls"}
        assert file["names"].tolist() == [name.rstrip("\0") for name in whole.names]


def test_the_same_predictions_give_the_same_bytes(whole: Predictions, tmp_path: Path) -> None:
    for name in ("a", "b"):
        whole.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_positions_and_names_are_those_of_the_records(whole: Predictions, records: Records) -> None:
    assert whole.records == records.digest and whole.class_names.tolist() == CLASSES
    assert (np.diff(whole.keys) > 0).all() and whole.positions.tolist() != list(range(7))  # there is something to undo
    for key, position, name, label in zip(whole.keys, whole.positions, whole.names, whole.labels, strict=True):
        assert key == records.keys[position] and label == records.labels[position]
        assert name == records.name(int(position)) == NAMES[position]
    assert whole.names[whole.by_list].tolist() == NAMES and whole.labels[whole.by_list].tolist() == LABELS
    assert whole.answers.tolist() == whole.logits.argmax(axis=1).tolist()


def test_a_file_of_another_program(tmp_path: Path) -> None:
    """It holds labels and logits, in any byte order and width of numbers; what is unknown to us is not even looked at."""
    labels, logits = np.array([2, 0], ">u2"), np.array([[0, 1, 2], [3, 2, 1]], ">f8")
    np.savez(tmp_path / "p.npz", labels=labels, logits=logits, paths=np.array([{}, None], dtype=object))
    found = read(tmp_path / "p.npz")
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [2, 0] == found.answers.tolist()
    assert found.logits.dtype == np.float32 and found.logits.tolist() == logits.tolist()
    assert found.keys.tolist() == found.positions.tolist() == [0, 1]
    assert found.names.tolist() == ["sample 0", "sample 1"] and found.class_names.tolist() == ["0", "1", "2"]
    assert (found.train_counts, found.features, found.method, found.weights, found.records) == (None, None, "", "", "")
    found.save(tmp_path / "again.npz")
    same(read(tmp_path / "again.npz"), found)


LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
GOOD: dict[str, Any] = {
    **{"labels": np.array([0, 1, 2, 2]), "logits": LOGITS, "names": np.array(list("abcd"))},
    **{"class_names": np.array(["x", "y", "z"]), "train_counts": np.array([5, 2, 0]), "method": np.array("dive")},
    **{"features": np.ones((4, 2), np.float32), "keys": np.arange(4), "positions": np.arange(4)},
}
NO_CHARACTER = np.array([0x110000, 65, 66], np.uint32).view("=U1")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("labels", None, "holds no `labels`; a file of predictions needs labels int64 [n] and logits [n, C]"),
        ("logits", None, "holds no `logits`"),
        ("labels", np.array([0, 1, 2]), "labels has 3 rows, 4 expected, as logits has"),
        ("labels", np.array([[0, 1, 2, 2]]), "labels holds int64 [1, 4]; whole numbers expected, [n]"),
        ("labels", np.array([0.0, 1, 2, 2]), "labels holds float64 [4]; whole numbers expected, [n]"),
        ("labels", np.array(["0", "1", "2", "2"]), "labels holds <U1 [4]; whole numbers expected"),
        ("labels", np.array([True, False] * 2), "labels holds bool [4]; whole numbers expected"),
        ("labels", np.array([0, 1, 2, 3]), "labels from 0 to 3; 0..2 expected"),
        ("labels", np.array([0, -1, 2, 2]), "labels from -1 to 2; 0..2 expected"),
        ("labels", np.array([0, 2**64 - 1, 1, 1], np.uint64), "labels from 0 to 18446744073709551615; 0..2 expected"),
        ("labels", np.array([0, 1, 2, None]), "it holds objects"),
        ("logits", LOGITS[0], "logits holds float32 [3]; float16 or float32 expected, [n, C]"),
        ("logits", LOGITS.astype(int), "logits holds int64 [4, 3]; float16 or float32 expected, [n, C]"),
        ("logits", LOGITS.astype(str), "logits holds <U32 [4, 3]; float16"),
        ("logits", LOGITS[:0], "logits is empty, [0, 3]; a row for each sample expected"),
        ("logits", LOGITS[:, :0], "logits is empty, [4, 0]"),
        ("logits", np.where(LOGITS > 0, np.nan, LOGITS), "logits holds NaN, infinity or what is too large for float32 in"),
        ("logits", np.where(LOGITS > 0, np.inf, 0)[:, ::-1], "in 4 of 4 rows"),
        ("logits", LOGITS.astype(np.float64) * 1e300, "too large for float32 in 4 of 4 rows"),
        ("features", np.full((4, 2), np.inf, np.float32), "features holds NaN, infinity"),
        ("features", np.ones((3, 2), np.float32), "features has 3 rows, 4 expected"),
        ("features", np.ones(4, np.float32), "features holds float32 [4]; float16 or float32 expected"),
        ("names", np.arange(4), "names holds int64 [4]; text expected, [n]"),
        ("names", np.array([b"a"] * 4), "names holds |S1 [4]; text expected"),
        ("names", np.array(list("abc")), "names has 3 rows, 4 expected"),
        ("names_nuls", np.array([0, 0, 0, 2**40]), "names_nuls from 0 to 1099511627776; 0..65535 expected"),
        ("class_names", np.array(["x", "y"]), "class_names has 2 rows, 3 expected"),
        ("class_names", NO_CHARACTER, "class_names is damaged: it holds what is no character"),
        ("train_counts", np.array([5, -2, 0]), "train_counts from -2 to 5; 0..9223372036854775807 expected"),
        ("train_counts", np.array([5.0, 2, 0]), "train_counts holds float64 [3]; whole numbers expected"),
        ("train_counts", np.array([5, 2]), "train_counts has 2 rows, 3 expected"),
        ("keys", np.array(list("abcd")), "keys holds <U1 [4]; whole numbers expected"),
        ("positions", np.array([0, 1, 2, -1]), "positions from -1 to 2; 0..9223372036854775807 expected"),
        ("method", np.array(["dive", "ce"]), "method holds <U4 [2]; text expected, a single value"),
        ("weights", np.array(7), "weights holds int64 []; text expected"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str, value: Any, words: str) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, **GOOD)
    read(path)
    given = {key: array for key, array in (GOOD | {name: value}).items() if array is not None}
    np.savez(path, allow_pickle=True, **given)
    assert words in refusal(path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < len(str(path)) + 400
    return line


def array_alone(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, LOGITS)


def header(text: bytes) -> Callable[[Path], None]:
    """A whole archive in which the head of one array is this."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("labels.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,  # there is no file
        Path.mkdir,
        Path.touch,
        lambda path: path.write_text("labels,logits\n"),
        lambda path: path.write_bytes(pickle.dumps(GOOD)),
        array_alone,
        header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (4,), (("),
        header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (4, 'x')}"),
        header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
        header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,)}"),
        header(b"{'descr': '|O', 'fortran_order': False, 'shape': (4,)}"),
    ],
)
def test_no_file_of_predictions(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    write(tmp_path / "p.npz")
    assert "no file of predictions, or a damaged one (" in refusal(tmp_path / "p.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_anywhere_is_refused_or_harmless(whole: Predictions, tmp_path: Path, compression: int) -> None:
    """Every fifth byte of a small archive is changed; cut off it is always refused."""
    path = tmp_path / "p.npz"
    whole.save(path)
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist() if name[:6] in ("labels", "logits")}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
    intact = path.read_bytes()
    refused = 0
    for place in range(0, len(intact), 5):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 0x55]) + intact[place + 1 :])
        try:
            found = read(path)
        except UserError:
            refused += 1
        else:  # a byte that nothing reads, such as a time
            assert found.labels.tolist() == whole.labels.tolist() and found.logits.tolist() == whole.logits.tolist()
    assert refused > len(intact) / 20
    for size in range(0, len(intact), 40):
        path.write_bytes(intact[:size])
        refusal(path)
