"""A source of images: shards of a WebDataset, tar archives in which the files of one sample have one key.

Owns the key, a path up to the first dot of its file's name, and reading labels. Invariant: samples come in the order of the
shards and of the images in them.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError, quoted
from pipelines.records.encoding import Lazy
from pipelines.records.workers import Streamed
from tools.conversion.archives import SUFFIXES, entries
from tools.conversion.images import Entry, Images, in_words, refuse_repeated

PARTS = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key and extension, as WebDataset splits a path
IMAGES = {"jpg", "jpeg", "png", "webp"}
FIELD = "label"  # of .json, where no other is named and there is no .cls


class Shard(NamedTuple):
    """The files of one shard that matter, by key."""

    images: dict[str, Entry]
    labels: dict[str, int]


def _bytes(path: Path, entry: Entry) -> bytes:
    reader = entry.reader
    if reader is None:
        raise UserError(f"{path}: {quoted(entry.name)} is a link; write the shard with files alone")
    try:
        return reader.read() if isinstance(reader, Streamed) else bytes(reader())
    except OSError as error:
        raise UserError(f"{path}: {quoted(entry.name)} cannot be read ({error}); copy the shard again") from None


def _class_number(data: bytes) -> object:
    return int(data.decode("ascii"))


def _json_field(field: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        return json.loads(data)[field]

    return read


def _label(path: Path, entry: Entry, data: bytes, read: Callable[[bytes], object], wanted: str) -> int:
    try:
        label = read(data)
    except (ValueError, KeyError, TypeError):  # what is no number, no JSON, or lacks the field
        label = None
    if type(label) is not int or label < 0:
        text = quoted(data.decode("utf-8", "replace"))
        raise UserError(f"{path}: {quoted(entry.name)} holds {text}; {wanted} from 0 up expected")
    return label


def _read_shard(path: Path, field: str | None) -> Shard:
    """Labels: from the .json field asked for, else from .cls, else from the .json field `label`."""
    shard = Shard({}, {})
    described: dict[str, Entry] = {}
    for entry in entries(path):
        parts = PARTS.fullmatch(entry.name)
        key, extension = (parts[1], parts[2].lower()) if parts else ("", "")
        if extension in IMAGES:
            if key in shard.images:
                first = quoted(shard.images[key].name)
                raise UserError(f"{path}: {first} and {quoted(entry.name)} have one key; every sample needs one image")
            shard.images[key] = entry
        elif extension == "cls" and field is None:
            shard.labels[key] = _label(path, entry, _bytes(path, entry), _class_number, "a label")
        elif extension == "json":
            described[key] = entry
    wanted = field or FIELD
    for key, entry in described.items():
        if key in shard.labels:
            continue
        data = _bytes(path, entry)  # once: a compressed shard is read forward
        if field or f'"{FIELD}"'.encode() in data:  # else a description of the image
            shard.labels[key] = _label(path, entry, data, _json_field(wanted), f"a label in the field {wanted!r}")
    return shard


def _names(paths: Sequence[Path], shards: Sequence[Shard]) -> list[str]:
    """A name for each image: its path in the shard, behind the shortest name of the shard that makes them different."""
    for own in _shard_names(paths):
        names = [
            f"{name}/{entry.name}" for name, shard in zip(own, shards, strict=True) for entry in shard.images.values()
        ]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{in_words(paths)}: two shards of one name have images of one name; give each shard once")


def _shard_names(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Names of the shards, from short to long: of train-v1.0-0000.tar train-v1, and only where that is not enough the rest."""
    yield [path.name.split(".")[0] for path in paths]
    yield [_without_suffix(path.name) for path in paths]
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    yield [_without_suffix(os.path.relpath(path, common)) for path in paths]


def _without_suffix(name: str) -> str:
    suffix = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
    return name[: len(name) - len(suffix)]


def read_shards(paths: Sequence[Path], field: str | None = None) -> Images:
    """The images of all shards of a split, with their labels, -1 for none. field: of .json, that holds the label."""
    refuse_repeated(paths, "shard")
    if folder := next((path for path in paths if path.is_dir()), None):
        raise UserError(f"{folder} is a folder; give the shards in it, such as {folder}/*.tar")
    shards = [_read_shard(path, field) for path in paths]
    keys = [key for shard in shards for key in shard.images]
    if not keys:
        known = ", ".join(f".{extension}" for extension in sorted(IMAGES))
        raise UserError(f"{in_words(paths)}: no images in it; WebDataset shards of {known} files expected")
    repeated = len(set(keys)) < len(keys)
    if repeated:
        print("note: shards have keys in common, so names begin with the shard's name", file=sys.stderr)
    readers: list[Lazy | Streamed] = []
    labels = []
    for path, shard in zip(paths, shards, strict=True):
        for key, entry in shard.images.items():
            if entry.reader is None:
                raise UserError(f"{path}: {quoted(entry.name)} is a link; write the shard with files alone")
            readers.append(entry.reader)
            labels.append(shard.labels.get(key, -1))
    names = _names(paths, shards) if repeated else [entry.name for shard in shards for entry in shard.images.values()]
    labelled = any(label >= 0 for label in labels)
    return Images(
        where=in_words(paths),
        found=dict(zip(names, readers, strict=True)),
        labels=labels if labelled else None,
        numbered=repeated or all(key.isdigit() for key in keys),
        by_stem=True,
    )
