"""A source of images: a folder whose sub-folders are the classes.

pipelines/folders.py reads the folders. Invariant: names and labels depend on the paths inside the folder, not on the order in
which the file system lists them.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipelines import class_names as class_lists
from pipelines.errors import UserError, quoted
from pipelines.folders import IMAGE_SUFFIXES, Identity, folder_files, hidden, is_image, listed, visit
from pipelines.records.writing import Sample
from tools.conversion.names import class_order, stripped

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}


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
    visit(root, seen)
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
