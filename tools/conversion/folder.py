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


def class_folders(root: Path) -> list[str]:
    names = [
        entry.name for entry in listed(root, "give the folder whose sub-folders are the classes") if entry.is_folder
    ]
    if not names:
        raise UserError(f"{root}: no sub-folders found; every class needs its own, with its images in it")
    refuse_unfit(root, names)
    return class_order(names)


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


def folder_samples(root: Path, class_names: Sequence[str], prefix: str) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = labels_of(class_names)
    samples: list[Sample] = []
    identities: list[Identity] = []
    others: list[str] = []
    seen: dict[Identity, Path] = {}
    _visit(root, seen)
    for folder in class_folders(root):
        label = label_of(folder, labels, root / folder)
        for file, identity in folder_files(root / folder, seen):
            name = f"{folder}/{file}"
            if hidden(os.path.basename(file)) or not is_image(file):
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), label, str(root / name)))
            identities.append(identity or (0, 0))
    note_others(others)
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
