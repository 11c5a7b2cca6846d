"""A source of images: a folder whose sub-folders are the classes.

pipelines/folders.py reads the folders. Invariant: names and labels depend on the paths inside the folder, not on the order in
which the file system lists them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines import class_names as class_lists
from pipelines.errors import UserError, quoted
from pipelines.folders import IMAGE_SUFFIXES, Identity, folder_files, hidden, is_image, listed, visit
from pipelines.records.writing import Sample
from tools.conversion.names import stripped

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}


def class_folders(root: Path) -> list[str]:
    names = [
        entry.name for entry in listed(root, "give the folder whose sub-folders are the classes") if entry.is_folder
    ]
    if not names:
        raise UserError(f"{root}: no sub-folders found; every class needs its own, with its images in it")
    for name in names:
        if why := class_lists.unfit(name):
            raise UserError(f"{root}: the folder {name!r} cannot name a class ({why} in a class list); rename it")
    return names


def refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Refuse a folder of train/ and val/, whose sub-folders in turn are the classes."""
    if all(name.lower() in SPLITS and any(entry.is_folder for entry in listed(root / name)) for name in names):
        raise UserError(
            f"{root}: holds splits ({', '.join(names)}), not classes; convert each, such as --images {root / names[0]}, "
            "or name these folders in --classes if they are classes"
        )


def folder_samples(root: Path, class_names: Sequence[str], prefix: str) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = {name: label for label, name in enumerate(class_names)}
    if len(labels) < len(class_names):
        raise UserError("--classes names a class twice; every folder needs one label")
    samples: list[Sample] = []
    identities: list[Identity] = []
    others: list[str] = []
    seen: dict[Identity, Path] = {}
    visit(root, seen)
    for folder in class_folders(root):
        if folder not in labels:
            spaced = any(name.strip() == folder for name in labels)
            why = "; the list has spaces around this name" if spaced else ""
            raise UserError(f"{root / folder}: this class is not in the class list{why}")
        for file, identity in folder_files(root / folder, seen):
            name = f"{folder}/{file}"
            if hidden(os.path.basename(file)) or not is_image(file):
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), labels[folder], str(root / name)))
            identities.append(identity or (0, 0))
    if others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        print(f"note: {len(others)} files left out (not {known}), such as {quoted(others[0])}", file=sys.stderr)
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
