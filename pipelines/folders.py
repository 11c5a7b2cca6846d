"""Folders of image files: what a folder holds, and which files in it are images.

Owns the walk through a folder, for whoever turns its files into records (tools/conversion) or predictions (train/predict.py).
Invariants: the order of the files depends on their names alone, not on the file system; no folder is read twice, and none is left
out because it cannot be read.
"""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError, quoted

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}

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


def hidden(name: str) -> bool:
    # .ipynb_checkpoints is not a class, ._0001.jpg not an image; nor is what macOS adds to zips.
    return name.startswith(".") or name == "__MACOSX"


def is_image(path: str) -> bool:
    """Whether a file is one by its name, and is not hidden."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and not hidden(os.path.basename(path))


def note_left_out(others: Sequence[str]) -> None:
    """Tell of files in a folder of images that are hidden, or no images by their names."""
    if others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        print(
            f"note: {len(others)} files left out (hidden, or not {known}), such as {quoted(others[0])}", file=sys.stderr
        )


def folder_files(folder: Path, seen: dict[Identity, Path]) -> list[tuple[str, Identity | None]]:
    """All files below a folder, by paths relative to it, in an order that depends only on their names.

    seen: the folders read so far, extended here; UserError for a folder that is reached a second time.
    """
    files: list[tuple[str, Identity | None]] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        visit(folder / inner, seen)
        entries = listed(folder / inner)
        files += [(os.path.join(inner, entry.name), entry.identity) for entry in entries if not entry.is_folder]
        waiting += [os.path.join(inner, entry.name) for entry in reversed(entries) if entry.is_folder]
    return files


def visit(folder: Path, seen: dict[Identity, Path]) -> None:
    """Note that a folder is read; UserError if it was before, under another name."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read: {error.strerror}; mend or remove it") from None
    first = seen.setdefault((found.st_dev, found.st_ino), folder)
    if first is not folder:
        raise UserError(f"{folder} is the folder {first} again, whose images would count twice; remove the link")
