"""The CIFAR reader: old and new pickles, packed or not, only arrays accepted; and the long-tailed draw."""

import builtins
import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cifar_archives import (
    FORMS,
    cifar10,
    cifar100,
    member,
    pack,
    python2_pickle,
)

from pipelines.errors import UserError
from tools.conversion.cifar import Cifar, draw, draw_long_tail, long_tail_counts, read_cifar


def check_cifar100(cifar: Cifar) -> None:
    assert cifar.kind == "cifar100" and cifar.class_names[42] == "kind_42"
    for split, name, expected in (
        (cifar.train, "train", member(300, 100, 1)),
        (cifar.test, "test", member(200, 100, 2)),
    ):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        assert split.labels.tolist() == expected["fine_labels"]
        planes = expected["data"].reshape(-1, 3, 32, 32)
        for channel in range(3):
            assert (split.images[..., channel] == planes[:, channel]).all()
        label = expected["fine_labels"][7]
        assert split.names[7] == f"{name}/kind_{label}/{expected['filenames'][7]}"


@pytest.mark.parametrize("form", FORMS)
def test_old_and_new_pickles(tmp_path: Path, form: str) -> None:
    check_cifar100(read_cifar(pack(tmp_path / "cifar.tar", cifar100(FORMS[form]))))


def test_the_forms_differ_as_the_official_archives_do() -> None:
    content = member(100, 100, 1)
    old, new = (FORMS[form](content) for form in ("python 2", "protocol 4, bytes"))
    assert old[:2] == b"\x80\x02" and b"cnumpy.core.multiarray\n_reconstruct\n" in old
    assert b"numpy._core.multiarray" in new and b"numpy._core" not in old
    assert b"numpy._core" not in FORMS["numpy 1"](content) and b"_frombuffer" in FORMS["protocol 5"](content)
    assert pickle.loads(old, encoding="bytes")[b"filenames"][0] == b"photo_s_100000.png"


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("a", "w")])
def test_packed_archives(tmp_path: Path, name: str, mode: str) -> None:
    check_cifar100(read_cifar(pack(tmp_path / name, cifar100(), mode)))
    assert os.listdir(tmp_path) == [name], "nothing is unpacked to disk"


@pytest.mark.parametrize("inner", ["", "cifar-100-python", "deep/er"])
def test_unpacked_folder(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    for name, data in cifar100().items():
        (tmp_path / inner / name).write_bytes(data)
    (tmp_path / "file.txt~").write_bytes(b"")
    check_cifar100(read_cifar(tmp_path))


def test_cifar10_joins_its_parts_in_order(tmp_path: Path) -> None:
    members = dict(sorted(cifar10().items(), reverse=True))
    cifar = read_cifar(pack(tmp_path / "a.tar", members))
    assert cifar.kind == "cifar10" and cifar.class_names[9] == "kind_9"
    parts = b"".join(members[f"data_batch_{part}"] for part in range(1, 6))
    assert cifar.train_md5 == hashlib.md5(parts).hexdigest()
    labels = [label for part in range(1, 6) for label in member(20, 10, part, "labels")["labels"]]
    assert cifar.train.labels.tolist() == labels and len(cifar.test.labels) == 30
    assert cifar.train.names[20].endswith("/photo_s_200000.png")
    assert (cifar.train.images[99].transpose(2, 0, 1).ravel() == member(20, 10, 5)["data"][19]).all()


def test_without_meta_and_file_names(tmp_path: Path) -> None:
    train, test = member(300, 100, 1), member(200, 100, 2)
    del train["filenames"]
    cifar = read_cifar(pack(tmp_path / "a.tar", {"train": python2_pickle(train), "test": python2_pickle(test)}))
    assert cifar.class_names[:2] == ["class_000", "class_001"]
    assert cifar.train.names[7] == f"train/class_{train['fine_labels'][7]:03d}/00007"
    assert cifar.test.names[7].endswith("/photo_s_200007.png")


# What is refused


class Evil:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    note = tmp_path / "note"
    evil = {"data": Evil(os.system, f"touch {note}")}
    members = cifar100() | {"train": pickle.dumps(evil, protocol=protocol)}
    with pytest.raises(UserError, match=r"train: its pickle asks for (posix|os)\.system, and numpy arrays alone"):
        read_cifar(pack(tmp_path / "a.tar", members))
    assert not note.exists()
    pickle.loads(members["train"])
    assert note.exists(), "the same pickle does run in an ordinary unpickler"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(builtins.eval, "1"), "builtins.eval"),
        (Evil(getattr, "x", "upper"), "builtins.getattr"),
        (Evil(np.fromfile, "x"), "numpy.fromfile"),
        (Evil(np.random.RandomState, 1), "RandomState"),
        (Evil(Path, "x"), "pathlib"),
        (bytearray(b"x"), "builtins.bytearray"),
        ({1, 2}, "builtins.set"),
    ],
)
def test_every_other_global_is_named_and_refused(tmp_path: Path, value: Any, name: str) -> None:
    members = cifar100() | {"meta": pickle.dumps({"fine_label_names": value}, protocol=2)}
    with pytest.raises(UserError, match="meta: its pickle asks for ") as caught:
        read_cifar(pack(tmp_path / "a.tar", members))
    assert name in str(caught.value).replace("__builtin__", "builtins")  # Python 2's name of the module


def test_attributes_of_admitted_classes_are_refused(tmp_path: Path) -> None:
    pickled = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(UserError, match=r"asks for numpy\.ndarray\.tofile"):
        read_cifar(pack(tmp_path / "a.tar", cifar100() | {"train": pickled}))


def changed(**entries: Any) -> bytes:
    content = member(300, 100, 1) | entries
    return python2_pickle({key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (b"", "train: not a readable pickle"),
        (b"no pickle", "train: not a readable pickle"),
        (changed()[:5000], "train: not a readable pickle"),
        (python2_pickle([1]), "train: a dict expected, list found"),
        (changed(data=None), r"train: 'data' uint8\[N, 3072\] expected"),
        (changed(data=np.zeros((300, 3071), np.uint8)), r"train: 'data' uint8\[N, 3072\] expected"),
        (changed(fine_labels=None), "train: a list of 300 integers expected in 'fine_labels'"),
        (changed(fine_labels=[1] * 299), "train: a list of 300 integers expected"),
        (changed(fine_labels=["1"] * 300), "train: a list of 300 integers expected"),
        (changed(fine_labels=[100] * 300), r"train: labels in 0\.\.99 expected, 100\.\.100 found"),
        (changed(fine_labels=[-1] * 300), r"train: labels in 0\.\.99 expected, -1\.\.-1 found"),
        (changed(filenames=["a"]), "train: a list of 300 names expected"),
    ],
)
def test_odd_members_are_named(tmp_path: Path, train: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_cifar(pack(tmp_path / "a.tar", cifar100() | {"train": train}))


def test_missing_and_foreign_archives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder; give the CIFAR python archive"):
        read_cifar(tmp_path / "none.tar.gz")
    with pytest.raises(UserError, match=r"train and test \(CIFAR-100\).* none of them found"):
        read_cifar(tmp_path)
    with pytest.raises(UserError, match="expected, train found"):
        read_cifar(pack(tmp_path / "a.tar", {"train": b"", "file.txt": b""}))
    (tmp_path / "text").write_bytes(b"no archive at all" * 100)
    with pytest.raises(UserError, match="text: not a readable tar archive"):
        read_cifar(tmp_path / "text")
    with pytest.raises(UserError, match="a list of 100 fine_label_names expected"):
        read_cifar(pack(tmp_path / "a.tar", cifar100() | {"meta": python2_pickle({"fine_label_names": ["a"]})}))


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar", "w")])
def test_truncated_archives(tmp_path: Path, name: str, mode: str) -> None:
    path = pack(tmp_path / name, cifar100(), mode)
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match=rf"{name}: (not a readable tar archive|no CIFAR python archive)"):
            read_cifar(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train").write_bytes(b"")
    with pytest.raises(UserError, match="holds two files named train"):
        read_cifar(tmp_path)


def test_links_and_folders_in_an_archive_are_no_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("x/train", tarfile.DIRTYPE), ("x/test", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "../../etc/passwd"
            archive.addfile(entry)
    with pytest.raises(UserError, match="none of them found"):
        read_cifar(path)


# The long tail


@pytest.mark.parametrize(
    ("head", "classes", "imbalance", "total"),
    [
        (500, 100, 100, 10_847),
        (500, 100, 50, 12_608),
        (500, 100, 10, 19_573),
        (5000, 10, 100, 12_406),
        (5000, 10, 50, 13_996),
        (5000, 10, 10, 20_431),
        (500, 100, 1, 50_000),
    ],
)
def test_totals_of_the_papers(head: int, classes: int, imbalance: int, total: int) -> None:
    counts = long_tail_counts(head, classes, imbalance)
    assert sum(counts) == total and counts[0] == head and counts[-1] == head // imbalance


def test_counts_of_the_first_classes() -> None:
    assert long_tail_counts(500, 100, 100)[:4] == [500, 477, 455, 434]


def test_the_draw_is_the_papers() -> None:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(4), 8))
    drawn = draw_long_tail(labels, 4, 8)
    assert (np.diff(drawn) > 0).all() and drawn.dtype == np.int64
    np.random.seed(0)  # the papers' code shuffles with the global generator
    expected = []
    for label, keep in enumerate((8, 4, 2, 1)):
        positions = np.where(labels == label)[0]
        np.random.shuffle(positions)
        expected += positions[:keep].tolist()
    assert drawn.tolist() == sorted(expected)


@pytest.mark.slow
def test_the_whole_of_cifar100(shared_data: Path) -> None:
    archive = shared_data / "cifar-100-python.tar.xz"
    if not archive.exists():
        pytest.skip(f"no {archive.name} in the data folder")
    cifar = read_cifar(archive)
    assert cifar.train.images.shape == (50_000, 32, 32, 3) and cifar.test.images.shape == (10_000, 32, 32, 3)
    assert cifar.class_names[0] == "apple" and len(set(cifar.train.names + cifar.test.names)) == 60_000
    assert (np.bincount(cifar.test.labels) == 100).all()
    for imbalance, total, groups in (
        (100, 10_847, (35, 35, 30)),
        (50, 12_608, (41, 41, 18)),
        (10, 19_573, (69, 31, 0)),
    ):
        drawn = draw_long_tail(cifar.train.labels, 100, imbalance)
        counts = np.bincount(cifar.train.labels[drawn], minlength=100)
        assert len(set(drawn.tolist())) == len(drawn) == total
        assert ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()) == groups


def test_a_folder_that_cannot_be_read_is_no_part_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", failing)
    with pytest.raises(UserError, match="not a readable tar archive or folder, .*Permission denied"):
        read_cifar(tmp_path)


def test_the_draw_of_some_classes() -> None:
    """One generator for all, in the order given; what is kept with fewer images is part of what is kept with more."""
    labels = np.random.default_rng(0).integers(0, 4, 200)
    generator, expected = np.random.RandomState(0), []
    for label, images in ((3, 20), (1, 5)):
        positions = np.flatnonzero(labels == label)
        generator.shuffle(positions)
        expected += positions[:images].tolist()
    assert draw(labels, {3: 20, 1: 5}).tolist() == sorted(expected)
    assert set(draw(labels, {3: 10, 1: 2}).tolist()) < set(expected)
