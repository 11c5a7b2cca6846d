"""Sources of images: a folder whose sub-folders are the classes, and an archive of one.

pipelines/folders.py reads the folders, archives.py the archives. Invariant: names and labels depend on the paths inside the
folder, not on the order in which the file system lists them.
"""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from pipelines import class_names as class_lists
from pipelines.errors import UserError, quoted
from pipelines.folders import Identity, folder_files, is_image, listed, note_left_out, visit
from pipelines.records.workers import Sample
from tools.conversion.images import Images
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


def _class_names(folders: Collection[str]) -> dict[str, str]:
    """{class folder: name of its class}, in label order: the folder's own name, with its path where folders share a name."""
    own = {path: os.path.basename(path) for path in folders}
    names = own if len(set(own.values())) == len(folders) else {path: path for path in folders}
    path_of = {name: path for path, name in names.items()}
    return {path_of[name]: name for name in class_order(path_of)}


def _classes(where: Path | str, folders: Collection[str]) -> dict[str, str]:
    """As _class_names, of folders that can be classes."""
    if not folders:
        raise UserError(
            f"{where}: no sub-folders found; every class needs its own, with its images in it; "
            "train/predict.py takes images without classes as they are"
        )
    for folder in folders:
        if why := class_lists.unfit(folder):
            raise UserError(f"{where}: the folder {folder!r} cannot name a class ({why} in a class list); rename it")
    return _class_names(folders)


def class_folders(root: Path, depth: int = 1) -> list[str]:
    """The names of the classes in label order."""
    return list(_classes(root, folders_at(root, depth)).values())


def refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Refuse a folder of train/ and val/, whose sub-folders in turn are the classes."""
    if all(name.lower() in SPLITS and any(entry.is_folder for entry in listed(root / name)) for name in names):
        raise _splits(root, names)


def _splits(where: Path | str, names: Sequence[str]) -> UserError:
    return UserError(
        f"{where}: holds splits ({', '.join(names)}), not classes; convert each, such as --images {where}/{names[0]}, "
        "or name these folders in --classes if they are classes"
    )


def _labels(class_names: Sequence[str]) -> dict[str, int]:
    labels = {name: label for label, name in enumerate(class_names)}
    if len(labels) < len(class_names):
        raise UserError("--classes names a class twice; every folder needs one label")
    return labels


def _label(folder: str, labels: dict[str, int], where: Path | str) -> int:
    if folder not in labels:
        spaced = any(name.strip() == folder for name in labels)
        why = "; the list has spaces around this name" if spaced else ""
        raise UserError(f"{where}: this class is not in the class list{why}")
    return labels[folder]


def _note_loose(names: Sequence[str]) -> None:
    """Tell of images that lie beside the class folders."""
    if names:
        print(
            f"note: {len(names)} images left out (beside the class folders), such as {quoted(names[0])}",
            file=sys.stderr,
        )


def _note_deeper(names: Sequence[str], depth: int) -> None:
    """Tell of class folders without images of their own, as iNaturalist's are, whose classes lie a level deeper."""
    if names and all(name.count("/") > depth for name in names):
        print(
            f"note: all images lie in sub-folders of the classes, such as {quoted(names[0])}; if these are the classes, add "
            f"--depth {depth + 1}",
            file=sys.stderr,
        )


def folder_samples(root: Path, class_names: Sequence[str], prefix: str, depth: int = 1) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = _labels(class_names)
    samples: list[Sample] = []
    names: list[str] = []
    identities: list[Identity] = []
    others: list[str] = []
    seen: dict[Identity, Path] = {}
    visit(root, seen)
    for folder, class_name in _classes(root, folders_at(root, depth)).items():
        label = _label(class_name, labels, root / folder)
        for file, identity in folder_files(root / folder, seen):
            name = f"{folder}/{file}"
            if not is_image(file):
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), label, str(root / name)))
            names.append(name)
            identities.append(identity or (0, 0))
    _note_loose([entry.name for entry in listed(root) if is_image(entry.name) and not entry.is_folder])
    note_left_out(others)
    _note_deeper(names, depth)
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


def _folder(name: str, depth: int) -> str:
    """The class folder of a file or folder; "" for one that lies above these."""
    parts = name.split("/")
    return "/".join(parts[:depth]) if len(parts) > depth else ""


def _folders(images: Images, depth: int) -> list[str]:
    """The class folders of an archive, as folders_at has them of a folder: those without images, too."""
    names = (*images.found, *images.others, *images.folders)
    return sorted({folder for name in names if (folder := _folder(name, depth))})


def archive_classes(images: Images, depth: int) -> list[str]:
    """The names of the classes of an archive in label order; depth: as in folders_at."""
    names = {name.split("/")[0] for name in images.found if "/" in name}
    inner = {name.split("/")[0] for name in images.found if name.count("/") > 1}
    if len(names) == 1 and names == inner and depth == 1:
        (name,) = names
        raise UserError(
            f"{images.where}: holds the one folder {name}; if its sub-folders are the classes, type {images.where}/{name}"
        )
    if names and all(name.lower() in SPLITS for name in names) and names == inner:
        raise _splits(images.where, sorted(names))
    return list(_classes(images.where, _folders(images, depth)).values())


def archive_samples(images: Images, class_names: Sequence[str], prefix: str, depth: int) -> list[Sample]:
    """Every image below the class folders, in the order of a folder's, or in that in which they can be read."""
    labels = _labels(class_names)
    folder_of = {name: folder for name in images.found if (folder := _folder(name, depth))}
    loose = [name for name in images.found if depth > 1 and "/" in name and name not in folder_of]
    if loose:
        raise UserError(f"{images.where}/{loose[0]}: lies above the class folders; give another --depth")
    own = _class_names(_folders(images, depth))
    label_of = {folder: _label(name, labels, f"{images.where}/{folder}") for folder, name in own.items()}
    named = list(folder_of)
    if not images.streamed:
        rank = {folder: number for number, folder in enumerate(own)}

        def as_in_a_folder(name: str) -> tuple[int, list[str], str]:
            *inner, file = name.split("/")
            return rank[folder_of[name]], inner, file

        named.sort(key=as_in_a_folder)
    samples = [
        Sample(stripped(name, prefix, images.where), label_of[folder_of[name]], images.found[name]) for name in named
    ]
    _note_loose([name for name in images.found if "/" not in name])
    note_left_out(images.others)
    _note_deeper(named, depth)
    return samples
