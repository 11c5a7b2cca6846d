"""A source of images: a folder whose sub-folders are the classes.

Invariant: names and labels depend on the paths inside the folder, not on the order in which the file system lists them.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.records.writing import Sample
from tools.conversion.names import stripped

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


def class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder whose sub-folders are the classes")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not hidden(entry.name))
    if not names:
        raise UserError(f"{root}: no sub-folders found; every class needs its own, with its images in it")
    return names


def hidden(name: str) -> bool:
    return name.startswith(".")  # .ipynb_checkpoints is not a class, ._0001.jpg not an image


def folder_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, in an order that depends only on their names."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(parent, name), folder)


def folder_samples(root: Path, class_names: Sequence[str], prefix: str) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = {name: label for label, name in enumerate(class_names)}
    if len(labels) < len(class_names):
        raise UserError("--classes names a class twice; every folder needs one label")
    samples: list[Sample] = []
    others: list[str] = []
    for folder in class_folders(root):
        if folder not in labels:
            raise UserError(f"{root / folder}: this class is not in the class list")
        for file in folder_files(root / folder):
            name = f"{folder}/{file}"
            if hidden(os.path.basename(file)) or os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), labels[folder], str(root / name)))
    if others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        print(f"note: {len(others)} files left out (not {known}), such as {others[0]}", file=sys.stderr)
    return samples
