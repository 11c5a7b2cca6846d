"""CIFAR-10 and CIFAR-100 from the official python archives, and subsets of them: long-tailed ones, and pairs of classes.

Owns reading the pickles without running code in them, and the draw of the subsets (docs/method.md).
Writes nothing; an archive is read in memory and never unpacked to disk.
Invariant: a pickle can make numpy arrays, lists, dicts, numbers, str and bytes, and nothing else.
"""

import hashlib
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError

# Members by base name. The meta file may be absent; CIFAR-10's training set is in five parts, in this order.
TRAIN = {"cifar100": ["train"], "cifar10": [f"data_batch_{part}" for part in range(1, 6)]}
TEST = {"cifar100": "test", "cifar10": "test_batch"}
META = {"cifar100": "meta", "cifar10": "batches.meta"}
LABELS = {"cifar100": "fine_labels", "cifar10": "labels"}
LABEL_NAMES = {"cifar100": "fine_label_names", "cifar10": "label_names"}
CLASSES = {"cifar100": 100, "cifar10": 10}
WANTED = {"train", "test", "meta", *TRAIN["cifar10"], "test_batch", "batches.meta"}
SIDE = 32  # pixels


@dataclass(frozen=True)
class Split:
    """One part of a data set, in the archive's order (N images)."""

    images: np.ndarray  # uint8[N, 32, 32, 3], RGB
    labels: np.ndarray  # int64[N]
    names: list[str]  # split/class/filename


@dataclass(frozen=True)
class Cifar:
    kind: str  # cifar10 or cifar100
    class_names: list[str]
    train: Split
    test: Split
    train_md5: str  # of the training members' bytes, independent of how they are packed


class _ArrayUnpickler(pickle.Unpickler):
    """Builds only what the archives hold, as written by numpy 1 and 2, pickle protocols 0 to 5."""

    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (f"numpy.{core}.{module}", function): np.empty(0).__reduce_ex__(protocol)[0]
            for core in ("core", "_core")
            for module, function, protocol in (
                ("multiarray", "_reconstruct", 2),
                ("numeric", "_frombuffer", 5),
            )
        },
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.ALLOWED[module_name, global_name]
        except KeyError:
            raise UserError(
                f"its pickle asks for {module_name}.{global_name}, and numpy arrays alone are admitted; "
                "download the archive again from its official place"
            ) from None


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    """The dict in one member; Python 2's strings become str by latin-1, which keeps numpy's raw data intact."""
    try:
        content = _ArrayUnpickler(BytesIO(data), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle may raise nearly any exception
        raise UserError(f"{where}: not a readable pickle ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: a dict expected, {type(content).__name__} found; is it a CIFAR archive?")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _archive_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(base name, bytes) of the wanted files, in one pass: seeking back in .xz would decompress everything again."""
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = os.path.basename(member.name)
            if name in WANTED and member.isfile():
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                yield name, file.read()


def _raise(error: OSError) -> None:
    raise error  # os.walk leaves a folder that cannot be read out


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    for folder, _, files in sorted(os.walk(path, onerror=_raise)):
        for name in sorted(WANTED.intersection(files)):
            yield name, Path(folder, name).read_bytes()


def _members(path: Path) -> dict[str, bytes]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the CIFAR python archive, packed or unpacked")
    members: dict[str, bytes] = {}
    try:
        for name, data in _folder_members(path) if path.is_dir() else _archive_members(path):
            if name in members:
                raise UserError(f"{path}: holds two files named {name}; give one CIFAR archive alone")
            members[name] = data
    except (tarfile.TarError, EOFError, LZMAError, zlib.error, OSError) as error:
        raise UserError(f"{path}: not a readable tar archive or folder, or truncated ({error})") from None
    return members


def _kind(path: Path, members: dict[str, bytes]) -> str:
    for kind in CLASSES:
        if {*TRAIN[kind], TEST[kind]} <= members.keys():
            return kind
    found = ", ".join(sorted(members)) or "none of them"
    raise UserError(
        f"{path}: no CIFAR python archive: train and test (CIFAR-100), or data_batch_1 to 5 and test_batch "
        f"(CIFAR-10) expected, {found} found"
    )


def _class_names(path: Path, kind: str, members: dict[str, bytes]) -> list[str]:
    """The names in the meta file, or class_000, class_001 and so on without one."""
    if META[kind] not in members:
        return [f"class_{label:03d}" for label in range(CLASSES[kind])]
    where = f"{path}: {META[kind]}"
    names = _unpickle(members[META[kind]], where).get(LABEL_NAMES[kind])
    if not isinstance(names, list) or len(names) != CLASSES[kind]:
        raise UserError(f"{where}: a list of {CLASSES[kind]} {LABEL_NAMES[kind]} expected")
    return [_text(name) for name in names]


def _part(where: str, kind: str, data: bytes) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Images uint8[N, 32, 32, 3], labels int64[N] and, if the member has them, file names of one member."""
    content = _unpickle(data, where)
    pixels, labels, names = content.get("data"), content.get(LABELS[kind]), content.get("filenames")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"{where}: 'data' uint8[N, {3 * SIDE * SIDE}] expected")
    if not isinstance(labels, list) or len(labels) != len(pixels) or {type(label) for label in labels} - {int}:
        raise UserError(f"{where}: a list of {len(pixels)} integers expected in {LABELS[kind]!r}")
    if labels and not 0 <= min(labels) <= max(labels) < CLASSES[kind]:
        raise UserError(f"{where}: labels in 0..{CLASSES[kind] - 1} expected, {min(labels)}..{max(labels)} found")
    if names is not None and (not isinstance(names, list) or len(names) != len(pixels)):
        raise UserError(f"{where}: a list of {len(pixels)} names expected in 'filenames'")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return images, np.array(labels, np.int64), None if names is None else [_text(name) for name in names]


def _split(path: Path, kind: str, split: str, members: dict[str, bytes], class_names: list[str]) -> Split:
    parts = TRAIN[kind] if split == "train" else [TEST[kind]]
    read = [_part(f"{path}: {part}", kind, members[part]) for part in parts]
    images = np.ascontiguousarray(np.concatenate([images for images, _, _ in read]))
    labels = np.concatenate([labels for _, labels, _ in read])
    files = [name for _, _, names in read for name in names or ()]
    if len(files) != len(labels):
        files = [f"{index:05d}" for index in range(len(labels))]
    names = [f"{split}/{class_names[label]}/{file}" for label, file in zip(labels, files, strict=True)]
    return Split(images, labels, names)


def read_cifar(path: Path) -> Cifar:
    """CIFAR-10 or CIFAR-100 from a .tar, .tar.gz or .tar.xz archive or a folder, members by base name."""
    members = _members(path)
    kind = _kind(path, members)
    class_names = _class_names(path, kind, members)
    train, test = (_split(path, kind, split, members, class_names) for split in ("train", "test"))
    train_md5 = hashlib.md5(b"".join(members[part] for part in TRAIN[kind]), usedforsecurity=False).hexdigest()
    return Cifar(kind, class_names, train, test, train_md5)


def long_tail_counts(head: int, classes: int, imbalance: float) -> list[int]:
    """Images kept per class in label order: int(head * mu^(i / (classes - 1))), mu = 1 / imbalance."""
    mu = 1 / imbalance
    return [int(head * mu ** (label / (classes - 1))) for label in range(classes)]


def draw_long_tail(labels: np.ndarray, classes: int, imbalance: float) -> np.ndarray:
    """Positions of the images kept, int64, ascending; that of the official archive is the papers' subset."""
    head = int(np.bincount(labels, minlength=classes).max())
    return draw(labels, dict(enumerate(long_tail_counts(head, classes, imbalance))))


def draw(labels: np.ndarray, keep: Mapping[int, int]) -> np.ndarray:
    """Positions of the images kept, int64, ascending: the subset stays in the archive's order. keep: {label: images}.

    One RandomState(0) shuffles the positions of each class, in the order of `keep`; the first of each are kept. So the subset
    depends on the archive's order, and a smaller draw of a class is part of a larger one.
    """
    generator = np.random.RandomState(0)
    kept = []
    for label, images in keep.items():
        positions = np.flatnonzero(labels == label)
        generator.shuffle(positions)
        kept.append(positions[:images])
    return np.sort(np.concatenate(kept))
