"""Lists of images and their labels: lines `path label`, iNaturalist's JSON, that of the long-tail repositories, Kaggle's CSV.

Owns what a list says; where its images lie is found in joining.py. Invariant: lines come in the list's order, and two that name
one path, however they spell it, are refused.
"""

import csv
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.class_names import unfit
from pipelines.errors import UserError, quoted
from pipelines.folders import listed
from tools.conversion.names import read_lines, stripped

MAX_CLASSES = 1_000_000  # a larger label is a mistake, such as a key in place of the label
KAGGLE = ["ImageId", "PredictionString"]  # the header of LOC_train_solution.csv and LOC_val_solution.csv


class Line(NamedTuple):
    """One image of a list."""

    where: str  # in the list, for messages
    file: str  # its path as the list has it, or below what --list-prefix names
    label: int
    name: str = ""  # of the sample: the path without --strip-prefix, in its shortest spelling


class Listed(NamedTuple):
    """What a list says."""

    lines: list[Line]
    class_names: list[str] | None  # where the list has them


def read_list(
    path: Path,
    prefix: str,
    classes: int | Sequence[str] | None,
    root: Path | None,
    list_prefix: str = "",
) -> Listed:
    """The lines of a list of any kind, which its content tells.

    prefix: left out of names. list_prefix: left out of paths. classes: their names, or how many there are, None = unknown.
    root: the folder of the images, None where an archive holds them.
    """
    if root:
        listed(root, "--root is the folder that the list's paths start from")
    text = read_lines(path, "the list")
    known = classes if isinstance(classes, int) else len(classes) if classes else None
    first = next((line.strip() for line in text if line.strip()), "")
    if first.startswith("{"):
        lines, class_names = _json_lines(path, "\n".join(text), known)
    elif first.split(",") == KAGGLE:
        lines, class_names = _kaggle_lines(path, text, None if isinstance(classes, int) else classes)
    else:
        lines, class_names = _text_lines(path, text, known), None
    found: list[Line] = []
    first_of: dict[str, str] = {}
    for line in lines:
        if list_prefix and not line.file.startswith(list_prefix):
            raise UserError(
                f"{line.where}: {quoted(line.file)} does not start with {list_prefix}, the --list-prefix given"
            )
        line = line._replace(file=line.file.removeprefix(list_prefix))
        name = _name(line, prefix)
        if root:
            _refuse_misread(root, line)
        if name in first_of:
            other = first_of[name].removeprefix(f"{path}, ")
            raise UserError(f"{line.where}: {quoted(name)} is in {other} already; every image needs one line")
        first_of[name] = line.where
        found.append(line._replace(name=name))
    return Listed(found, class_names)


def _text_lines(path: Path, text: Sequence[str], classes: int | None) -> Iterator[Line]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise UserError(f"{where}: 'path label' expected, a label from 0 up, found: {quoted(line.strip())}")
        yield Line(where, parts[0], label_of(parts[1], classes or MAX_CLASSES, where))


def label_of(digits: str, classes: int, where: str) -> int:
    """A label as a number; UserError where it is not below `classes`. where: it stands, for the message."""
    short = digits.lstrip("0") or "0"
    if len(short) > len(str(classes)) or not 0 <= int(short) < classes:  # Python refuses to read thousands of digits
        raise UserError(f"{where}: label {quoted(digits)} is not in 0..{classes - 1}")
    return int(short)


def _json_lines(path: Path, text: str, classes: int | None) -> tuple[list[Line], list[str] | None]:
    """Both kinds of JSON: iNaturalist's, in COCO's form, and that of the long-tail repositories, whose annotations have paths."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); copy the file again") from None
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise UserError(f"{path}: no annotations in it, so no labels; give the JSON of training or validation")
    read = _coco_lines if isinstance(content.get("images"), list) else _fpath_lines
    try:
        return read(path, content, classes or MAX_CLASSES)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: images with id and file_name, and annotations with image_id and category_id expected, or annotations "
            f"with fpath and category_id; found otherwise ({type(error).__name__}: {quoted(error)})"
        ) from None


def _fpath_lines(path: Path, content: dict[str, Any], classes: int) -> tuple[list[Line], None]:
    lines = []
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path}, annotation {number}"
        lines.append(
            Line(where, annotation["fpath"] + "", label_of(str(int(annotation["category_id"])), classes, where))
        )
    return lines, None


def _coco_lines(path: Path, content: dict[str, Any], classes: int) -> tuple[list[Line], list[str] | None]:
    """Images in their order, joined to their categories by id. Labels are the categories' ranks by id, as numbers."""
    categories = {int(category["id"]): category for category in content.get("categories") or []}
    ranks = {number: rank for rank, number in enumerate(sorted(categories))}
    category_of: dict[Any, int] = {}
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], int(annotation["category_id"])
        if categories and category not in categories:
            raise UserError(f"{path}: image {quoted(image)} has category {category}, which is not among its categories")
        if category_of.setdefault(image, category) != category:
            raise UserError(
                f"{path}: image {quoted(image)} has the categories {category_of[image]} and {category}; every image needs one"
            )
    lines, without = [], []
    for image in content["images"]:
        where = f"{path}, image {quoted(image['id'])}"
        if image["id"] not in category_of:
            without.append(image["file_name"])
            continue
        category = category_of.pop(image["id"])
        lines.append(Line(where, image["file_name"] + "", label_of(str(ranks.get(category, category)), classes, where)))
    if without:
        raise UserError(
            f"{path}: {len(without)} images have no annotation, such as {quoted(without[0])}; give them one"
        )
    if category_of:
        raise UserError(f"{path}: {len(category_of)} annotations are of images that it does not list; copy it again")
    names = [str(categories[number].get("name", number)) for number in sorted(categories)]
    return lines, None if not names or any(map(unfit, names)) else names


def _kaggle_lines(path: Path, text: Sequence[str], class_names: Sequence[str] | None) -> tuple[list[Line], list[str]]:
    """Image ids and boxes, each with the WordNet id of the image's class. Labels are its rank in the class list, or by name."""
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(text), 1) if any(row)][1:]
    except csv.Error as error:
        raise UserError(f"{path}: not readable as CSV ({error}); copy the file again") from None
    for number, row in rows:
        if len(row) != 2 or not row[0] or not row[1].split():
            raise UserError(
                f"{path}, line {number}: 'ImageId,class x y x y ...' expected, found: {quoted(','.join(row))}"
            )
    wnids = list(class_names or sorted({row[1].split()[0] for _, row in rows}))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    lines = []
    for number, (image, boxes) in rows:
        where, wnid = f"{path}, line {number}", boxes.split()[0]
        if wnid not in labels:
            raise UserError(f"{where}: class {quoted(wnid)} is not in the class list")
        folder = "" if image.startswith("ILSVRC2012_val_") else f"{wnid}/"
        lines.append(Line(where, f"{folder}{image}.JPEG", labels[wnid]))
    return lines, wnids


def _name(line: Line, prefix: str) -> str:
    """The sample's name: the path without the prefix, in its shortest spelling."""
    file, where = line.file, line.where
    if file.startswith("/") and not prefix:
        raise UserError(
            f"{where}: {quoted(file)} is an absolute path, and names must not depend on the machine; add --strip-prefix "
            "with the folder that all paths start with, such as --strip-prefix /data/images/, or --list-prefix with the "
            "folder that --root stands for"
        )
    name = posixpath.normpath(stripped(file, prefix, where))
    if name == "." or name == ".." or name.startswith("../"):
        raise UserError(
            f"{where}: {quoted(file)} names no file inside --root; give the folder above all images as --root"
        )
    return name


def _refuse_misread(root: Path, line: Line) -> None:
    """Refuse a path that this system reads in another way than it was meant."""
    file, where = line.file, line.where
    if "\\" in file and not os.path.lexists(root / file) and os.path.lexists(root / file.replace("\\", "/")):
        raise UserError(f"{where}: {quoted(file)} has Windows' separators; write / in place of \\ in the list")
    # After a symbolic link, `..` is not the folder that the shorter spelling means.
    if ".." in file.split("/") and os.path.realpath(root / file) != os.path.realpath(root / posixpath.normpath(file)):
        raise UserError(f"{where}: {quoted(file)} has .. after a symbolic link; write the path without ..")
