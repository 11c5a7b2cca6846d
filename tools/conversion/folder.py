"""A source of images: a folder whose sub-folders are the classes.

Invariants: names and labels depend on the paths inside the folder, not on the order in which the file system lists them. No
folder is read twice, and none is left out because it cannot be read.
"""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines import class_names as class_lists
from pipelines.errors import UserError, quoted
from pipelines.records.writing import Sample
from tools.conversion.names import class_order, stripped

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}

Identity = tuple[int, int]  # device and inode


class Entry(NamedTuple):
    """A file or folder; a symbolic link counts as what it leads to."""

    name: str
    is_folder: bool
    identity: Identity | None  # None for a link that leads nowhere: an image is then reported as unreadable


def listed(folder: Path, advice: str = "make it readable, or remove it") -> list[Entry]:
    """What a folder holds, sorted by name, without hidden folders. UserError if it, or a link in it, cannot be read."""
    try:
        device = os.stat(folder).st_dev
        with os.scandir(folder) as entries:
            found = sorted(_entry(entry, device) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no such folder; {advice}") from None
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read: {error.strerror}; {advice}") from None
    return [entry for entry in found if not (entry.is_folder and hidden(entry.name))]


def _entry(entry: os.DirEntry[str], device: int) -> Entry:
    if not entry.is_symlink():
        return Entry(entry.name, entry.is_dir(), (device, entry.inode()))
    try:
        found = os.stat(entry.path)
    except OSError as error:
        if is_image(entry.name) or hidden(entry.name):
            return Entry(entry.name, False, None)
        raise UserError(f"{entry.path}: this link leads nowhere: {error.strerror}; mend or remove it") from None
    return Entry(entry.name, stat.S_ISDIR(found.st_mode), (found.st_dev, found.st_ino))


def folders_at(root: Path, depth: int) -> list[str]:
    """The class folders, by paths relative to `root`; depth: 1 for its own sub-folders, 2 for those of these, and so on."""
    folders = [""]
    for level in range(depth):
        inner: list[str] = []
        for folder in folders:
            entries = listed(root / folder, "give the folder whose sub-folders are the classes")
            loose = [entry.name for entry in entries if is_image(entry.name) and not entry.is_folder]
            if level and loose:
                raise UserError(
                    f"{root / folder / loose[0]}: lies above the class folders; move it, or give another --depth"
                )
            inner += [os.path.join(folder, entry.name) for entry in entries if entry.is_folder]
        folders = inner
    return folders


def class_names_of(folders: Iterable[str]) -> dict[str, str]:
    """{class folder: name of its class}, in label order: the folder's own name, with its path where folders share a name."""
    paths = list(folders)
    own = {path: os.path.basename(path) for path in paths}
    names = own if len(set(own.values())) == len(paths) else {path: path for path in paths}
    path_of = {name: path for path, name in names.items()}
    return {path_of[name]: name for name in class_order(path_of)}


def _classes(root: Path, depth: int) -> dict[str, str]:
    folders = folders_at(root, depth)
    if not folders:
        raise UserError(f"{root}: no sub-folders found; every class needs its own, with its images in it")
    refuse_unfit(root, folders)
    return class_names_of(folders)


def class_folders(root: Path, depth: int = 1) -> list[str]:
    """The names of the classes in label order."""
    return list(_classes(root, depth).values())


def refuse_unfit(root: Path | str, names: Iterable[str]) -> None:
    for name in names:
        if why := class_lists.unfit(name):
            raise UserError(f"{root}: the folder {name!r} cannot name a class ({why} in a class list); rename it")


def refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Refuse a folder of train/ and val/, whose sub-folders in turn are the classes."""
    if all(name.lower() in SPLITS and any(entry.is_folder for entry in listed(root / name)) for name in names):
        raise UserError(
            f"{root}: holds splits ({', '.join(names)}), not classes; convert each, such as --images {root / names[0]}, "
            "or name these folders in --classes if they are classes"
        )


def hidden(name: str) -> bool:
    return name.startswith(".")  # .ipynb_checkpoints is not a class, ._0001.jpg not an image


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def folder_files(folder: Path, seen: dict[Identity, Path]) -> list[tuple[str, Identity | None]]:
    """All files below a folder, by paths relative to it, in an order that depends only on their names.

    seen: the folders read so far, extended here; UserError for a folder that is reached a second time.
    """
    files: list[tuple[str, Identity | None]] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        _visit(folder / inner, seen)
        entries = listed(folder / inner)
        files += [(os.path.join(inner, entry.name), entry.identity) for entry in entries if not entry.is_folder]
        waiting += [os.path.join(inner, entry.name) for entry in reversed(entries) if entry.is_folder]
    return files


def _visit(folder: Path, seen: dict[Identity, Path]) -> None:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read: {error.strerror}; mend or remove it") from None
    first = seen.setdefault((found.st_dev, found.st_ino), folder)
    if first is not folder:
        raise UserError(f"{folder} is the folder {first} again, whose images would count twice; remove the link")


def labels_of(class_names: Sequence[str]) -> dict[str, int]:
    labels = {name: label for label, name in enumerate(class_names)}
    if len(labels) < len(class_names):
        raise UserError("--classes names a class twice; every folder needs one label")
    return labels


def label_of(folder: str, labels: dict[str, int], where: Path | str) -> int:
    if folder not in labels:
        spaced = any(name.strip() == folder for name in labels)
        why = "; the list has spaces around this name" if spaced else ""
        raise UserError(f"{where}: this class is not in the class list{why}")
    return labels[folder]


def note_others(others: Sequence[str]) -> None:
    """Tell of files that are no images."""
    if others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        print(f"note: {len(others)} files left out (not {known}), such as {quoted(others[0])}", file=sys.stderr)


def note_deeper(names: Sequence[str], depth: int) -> None:
    """Tell of class folders without images of their own, as iNaturalist's are, whose classes lie a level deeper."""
    if names and all(name.count("/") > depth for name in names):
        print(
            f"note: all images lie in sub-folders of the classes, such as {quoted(names[0])}; if these are the classes, add "
            f"--depth {depth + 1}",
            file=sys.stderr,
        )


def folder_samples(root: Path, class_names: Sequence[str], prefix: str, depth: int = 1) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = labels_of(class_names)
    samples: list[Sample] = []
    names: list[str] = []
    identities: list[Identity] = []
    others: list[str] = []
    seen: dict[Identity, Path] = {}
    _visit(root, seen)
    for folder, class_name in _classes(root, depth).items():
        label = label_of(class_name, labels, root / folder)
        for file, identity in folder_files(root / folder, seen):
            name = f"{folder}/{file}"
            if hidden(os.path.basename(file)) or not is_image(file):
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), label, str(root / name)))
            names.append(name)
            identities.append(identity or (0, 0))
    note_others(others)
    note_deeper(names, depth)
    _note_contradictions(samples, identities)
    return samples


def _note_contradictions(samples: Sequence[Sample], identities: Sequence[Identity]) -> None:
    """Tell of files that lie in several classes, as links; two names in one class may be meant as copies."""
    if not samples:
        return
    files = np.array(identities, np.uint64)
    labels = np.array([sample.label for sample in samples])
    order = np.lexsort((labels, files[:, 1], files[:, 0]))
    same = (files[order[1:]] == files[order[:-1]]).all(1) & files[order[1:]].any(1)
    twice = np.flatnonzero(same & (labels[order[1:]] != labels[order[:-1]]))
    if twice.size:
        one, other = (quoted(samples[position].name) for position in order[twice[0] : twice[0] + 2])
        print(f"note: {twice.size} files lie in two classes, such as {one}, which is {other} too", file=sys.stderr)
