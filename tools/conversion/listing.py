"""A source of images: the files named by the lines `path label` of a list.

Invariant: samples come in the list's order, and two lines that name one path, however they spell it, are refused.
"""

import os
import posixpath
from pathlib import Path

from pipelines.errors import UserError, quoted
from pipelines.folders import listed
from pipelines.records.writing import Sample
from tools.conversion.names import read_lines, stripped

MAX_CLASSES = 1_000_000  # a larger label is a mistake, such as a key in place of the label


def list_samples(root: Path, path: Path, prefix: str, classes: int | None) -> list[Sample]:
    """One sample per `path label` line; the path may contain spaces. Empty lines are skipped."""
    listed(root, "--root is the folder that the list's paths start from")
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "the list"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise UserError(f"{where}: 'path label' expected, a label from 0 up, found: {quoted(line.strip())}")
        file, label = parts[0], _label(parts[1], classes or MAX_CLASSES, where)
        name = _name(root, file, prefix, where)
        if name in lines:
            raise UserError(f"{where}: {quoted(name)} is in line {lines[name]} already; every image needs one line")
        lines[name] = number
        samples.append(Sample(name, label, str(root / file)))
    return samples


def _label(digits: str, classes: int, where: str) -> int:
    short = digits.lstrip("0") or "0"
    if len(short) > len(str(classes)) or int(short) >= classes:  # Python refuses to read thousands of digits
        raise UserError(f"{where}: label {quoted(digits)} is not in 0..{classes - 1}")
    return int(short)


def _name(root: Path, file: str, prefix: str, where: str) -> str:
    """The sample's name: the path without the prefix, in its shortest spelling."""
    if file.startswith("/") and not prefix:
        raise UserError(
            f"{where}: {quoted(file)} is an absolute path, and names must not depend on the machine; add --strip-prefix "
            "with the folder that all paths start with, such as --strip-prefix /data/images/"
        )
    if "\\" in file and not os.path.lexists(root / file) and os.path.lexists(root / file.replace("\\", "/")):
        raise UserError(f"{where}: {quoted(file)} has Windows' separators; write / in place of \\ in the list")
    name = posixpath.normpath(stripped(file, prefix, where))
    if name == "." or name == ".." or name.startswith("../"):
        raise UserError(
            f"{where}: {quoted(file)} names no file inside --root; give the folder above all images as --root"
        )
    # After a symbolic link, `..` is not the folder that the shorter spelling means.
    if ".." in file.split("/") and os.path.realpath(root / file) != os.path.realpath(root / posixpath.normpath(file)):
        raise UserError(f"{where}: {quoted(file)} has .. after a symbolic link; write the path without ..")
    return name
