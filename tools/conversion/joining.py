"""Finds the image of each line of a list, in a folder or among the images of archives, and reports what was not found.

Owns the rule by which a path in a list names an image, and the check of class order against names. Invariant: no image is given
to two lines, and none to a line whose path could mean another.
"""

import errno
import functools
import os
import posixpath
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError, printable, quoted
from pipelines.folders import Identity, folder_files, is_image
from pipelines.records.workers import Sample
from tools.conversion.images import Images
from tools.conversion.listing import MAX_CLASSES, Line, label_of

SHOWN = 3  # names of each kind in the report
EDITIONS = {  # (images, classes): the list of that size (docs/method.md)
    (115_846, 1000): "ImageNet-LT's training list",
    (20_000, 1000): "ImageNet-LT's validation list",
    (50_000, 1000): "ImageNet-LT's test list (ImageNet's validation set)",
    (437_513, 8142): "iNaturalist 2018's training list",
    (24_426, 8142): "iNaturalist 2018's validation list",
    (62_500, 365): "Places-LT's training list",
    (7_300, 365): "Places-LT's validation list",
    (36_500, 365): "Places-LT's test list",
}
NEAR = 0.02  # a list that differs by this share of an edition's images is compared with it
# Publishers gave these files names that occur once, whatever the folder: ImageNet's and Places' validation and test sets.
UNIQUE = re.compile(r"(?:ILSVRC20\d\d|Places365)_(?:val|test)_\d{8}\.\w+")
PLACES = re.compile(r"(?:.*/)?(?:data|val|test)_(?:256|large)/(?:[a-z]/)?(.+)/([^/]+)")


def spellings(file: str) -> Iterator[str]:
    """A list's path, then what it is called in other copies of the same data set."""
    file = posixpath.normpath(file)
    yield file
    folder, base = posixpath.split(file)
    if UNIQUE.fullmatch(base):
        yield base
    if places := PLACES.fullmatch(file):  # Places' easyformat: data_256/a/arch/door/1.jpg is train/arch-door/1.jpg
        yield f"{places[1].replace('/', '-')}/{places[2]}"


def _ends_alike(one: str, other: str) -> bool:
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


def _stem(path: str) -> str:
    """A path up to the first dot of its file's name."""
    folder, base = posixpath.split(path)
    return posixpath.join(folder, base.split(".")[0])


def _end(path: str) -> str:
    """The last folder and the file of a path: nearly unique, where files of every class are called 00000001.jpg."""
    return "/".join(path.rsplit("/", 2)[-2:])


class Finder:
    """Images by the ends of their paths: a line names the image whose path ends as the line's, as far as the shorter one goes."""

    def __init__(self, names: Sequence[str], by_stem: bool = False) -> None:
        self._key: Callable[[str], str] = _stem if by_stem else posixpath.normpath
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_end[_end(self._key(name))].append(name)

    @functools.cached_property
    def _by_base(self) -> dict[str, list[str]]:
        """For lines without a folder."""
        found: dict[str, list[str]] = defaultdict(list)
        for end, names in self._by_end.items():
            found[posixpath.basename(end)] += names
        return found

    def _near(self, wanted: str) -> list[str]:
        if "/" not in wanted:
            return self._by_base.get(wanted, [])
        return [*self._by_end.get(_end(wanted), []), *self._by_end.get(posixpath.basename(wanted), [])]

    def find(self, line: Line) -> str | None:
        for spelling in spellings(line.file):
            wanted = self._key(spelling)
            found = [name for name in self._near(wanted) if _ends_alike(self._key(name), wanted)]
            found = [name for name in found if self._key(name) == wanted] or found
            if len(found) > 1:
                raise UserError(
                    f"{line.where}: {quoted(line.file)} may be {quoted(found[0])} or {quoted(found[1])}; give a --root that "
                    "holds one of them alone"
                )
            if found:
                return found[0]
        return None


class Report(NamedTuple):
    """What a join left over."""

    missing: list[str]  # names of lines without an image
    unlisted: list[str]  # images without a line


def _claimed(found: Sequence[str | None], lines: Sequence[Line]) -> set[str]:
    """The images found, after checking that no two lines have the same."""
    claims: dict[str, Line] = {}
    for image, line in zip(found, lines, strict=True):
        if image is not None and claims.setdefault(image, line) is not line:
            raise UserError(
                f"{claims[image].where}, and {line.where.rsplit(', ')[-1]}: {quoted(claims[image].file)} and "
                f"{quoted(line.file)} both end as the image {quoted(image)}; give images with their folders"
            )
    return set(claims)


class _Missing:
    """In place of the image of a line that has none: conversion reports it as it does a file that is not there."""

    def __call__(self) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "no such file or directory")


def joined(lines: Sequence[Line], images: Images) -> tuple[list[Sample], Report]:
    """A sample for each line, in the list's order or, where images can only be read in theirs, in that order."""
    if images.numbered:
        raise UserError(
            f"{images.where}: images are known by running numbers here, which no list can name; convert without --list"
        )
    finder = Finder(list(images.found), images.by_stem)
    found = [finder.find(line) for line in lines]
    claimed = _claimed(found, lines)
    samples = [
        Sample(line.name, line.label, _Missing() if image is None else images.found[image])
        for image, line in zip(found, lines, strict=True)
    ]
    if images.streamed:
        place = {image: number for number, image in enumerate(images.found)}
        order = sorted(range(len(lines)), key=lambda number: place.get(found[number] or "", len(place)))
        samples = [samples[number] for number in order]
    missing = [line.name for image, line in zip(found, lines, strict=True) if image is None]
    return samples, Report(missing, [image for image in images.found if image not in claimed])


def joined_folder(lines: Sequence[Line], root: Path) -> tuple[list[Sample], Report]:
    """A sample for each line, in the list's order: the file below `root` that it names.

    Only where some are not there are all images below `root` looked through, for other spellings of their paths. Images without a
    line are counted in the folders where the list's images were found.
    """
    found: list[str | None] = [line.file if os.path.lexists(root / line.file) else None for line in lines]
    if None in found:
        print(f"note: looking through {root} for {found.count(None):,} images of the list", file=sys.stderr, flush=True)
        finder = Finder(_images_below(root))
        found = [line.file if image else finder.find(line) for image, line in zip(found, lines, strict=True)]
    claimed = _claimed(found, lines)
    missing = [line.name for image, line in zip(found, lines, strict=True) if image is None]
    samples = [
        Sample(line.name, line.label, str(root / (image or line.file)))
        for image, line in zip(found, lines, strict=True)
    ]
    return samples, Report(missing, _unlisted(root, {posixpath.normpath(image) for image in claimed}))


def _images_below(root: Path) -> list[str]:
    seen: dict[Identity, Path] = {}
    files = (file for file, _ in folder_files(root, seen))
    return [file for file in files if is_image(file)]


def _unlisted(root: Path, found: set[str]) -> list[str]:
    unlisted = []
    for folder in sorted({posixpath.dirname(image) for image in found}):
        try:
            names = sorted(os.listdir(root / folder))
        except OSError:
            continue  # the images in it are reported where they are read
        paths = (posixpath.join(folder, name) for name in names if is_image(name))
        unlisted += [path for path in paths if path not in found]
    return unlisted


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(quoted(name) for name in names[:SHOWN]) + more


def edition(lines: int, classes: int) -> str:
    """Which published list has so many lines, in words; "" for none."""
    if (lines, classes) in EDITIONS:
        return f", as {EDITIONS[lines, classes]} has"
    for (images, its_classes), name in EDITIONS.items():
        if classes == its_classes and abs(lines - images) <= images * NEAR:
            return f"; {name} has {images:,}"
    return ""


def _as_strings(lines: Sequence[Line]) -> str:
    """Folders named by numbers whose labels rise as strings do, 10 before 2, in words; "" where they rise with the numbers."""
    label_of = {posixpath.basename(posixpath.dirname(line.file)): line.label for line in lines}
    if not all(folder.isascii() and folder.isdigit() for folder in label_of):
        return ""
    ordered = sorted(label_of, key=int)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if label_of[one] > label_of[other]:
            return f"{one} with label {label_of[one]} and {other} with label {label_of[other]}"
    return ""


def show_report(path: Path, lines: Sequence[Line], where: str, report: Report) -> None:
    """Print what a list holds, and what it and its images do not have of each other."""
    classes = len({line.label for line in lines})
    notes = [f"{path}: {len(lines):,} lines of {classes:,} classes{edition(len(lines), classes)}"]
    if report.missing:
        notes.append(f"{len(report.missing):,} lines have no image in {where}: {_some(report.missing)}")
    if report.unlisted:
        notes.append(f"{len(report.unlisted):,} images of {where} are in no line: {_some(report.unlisted)}")
    if twisted := _as_strings(lines):
        notes.append(f"labels follow the numbers of folders as strings, such as {twisted}; other lists may not")
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


def check_names(one: Sequence[str], origin: str, other: Sequence[str], where: str) -> None:
    """Refuse two lists of the same class names in different orders; without a name in common they are not compared."""
    if len(one) != len(other):
        raise UserError(
            f"{origin} has {len(one)} classes, {where} has {len(other)}; give the class list of this data set"
        )
    differing = [label for label, names in enumerate(zip(one, other, strict=True)) if names[0] != names[1]]
    if differing and set(one) & set(other):
        names = quoted(one[differing[0]]), quoted(other[differing[0]])
        raise UserError(
            f"class {differing[0]} is {names[0]} in {origin} and {names[1]} in {where}; their class orders differ"
        )


def check_folders(lines: Sequence[Line], class_names: Sequence[str]) -> None:
    """Refuse labels that contradict the folder of their image, where its name is that of a class."""
    known = set(class_names)
    for line in lines:
        folder = posixpath.basename(posixpath.dirname(line.file))
        if folder in known and line.label < len(class_names) and class_names[line.label] != folder:
            raise UserError(
                f"{line.where}: label {line.label} is class {quoted(class_names[line.label])}, but the image lies in "
                f"{quoted(folder)}; the class list has another order than the list"
            )


def check_range(images: Images) -> None:
    """Refuse labels of the images' own file that none of its classes can have, as those of a list are refused."""
    if images.labels and max(images.labels) >= 0:
        largest = max(images.labels)
        name = list(images.found)[images.labels.index(largest)]
        label_of(str(largest), len(images.class_names or ()) or MAX_CLASSES, f"{images.where}: {quoted(name)}")


def check_labels(samples: Sequence[Sample], images: Images, given: Sequence[str] | None) -> None:
    """Refuse labels of a list that are not those which the images' own file gives; where its classes have no names, tell.

    given: the list's class names, by which they are compared if the file has some of them.
    """
    if not images.labels:
        return
    own: dict[object, int] = dict(zip(images.found.values(), images.labels, strict=True))
    names = images.class_names or [str(label) for label in range(max(images.labels) + 1)]
    listed = given if given and set(given) & set(names) else names
    for sample in samples:
        label = own.get(sample.image, -1)
        if label < 0 or (sample.label < len(listed) and names[label] == listed[sample.label]):
            continue
        told = f"{quoted(sample.name)} has label {sample.label} in the list"
        if images.class_names is None:
            print(f"note: {told} and {label} in {images.where}, whose labels do not count here", file=sys.stderr)
            return
        ours = quoted(listed[sample.label]) if sample.label < len(listed) else "no class"
        raise UserError(
            f"{told}, {ours}, and {label} in {images.where}, {quoted(names[label])}; give the class names in the list's order "
            "with --classes, or another list"
        )
