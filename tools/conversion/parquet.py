"""A source of images: Parquet files of the Hugging Face hub, a row for each image with its bytes, its file's name and its label.

Owns the choice of columns, the names made from rows, and reading the rows one after another, so that a row group is read once. Of
its images a page is held, up to 1024 rows as pyarrow writes them, not the whole group. Invariant: names depend on the rows and
their order, not on the names of the files.
"""

import functools
import json
import posixpath
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError, first_line, quoted
from tools.conversion.images import Forward, Images, InTurn, in_words, refuse_git_lfs, refuse_repeated

ROWS = 64  # read at a time: some MB of photos
BUFFER = 1 << 20  # bytes read at a time of a row group, which may be larger than the memory
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
WITH_WNID = re.compile(r"(.+)_(n\d{8})(\.\w+)")  # the hub's ImageNet: n01440764_10026_n01440764.JPEG


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; type: bash tools/setup.sh parquet") from error
    return pyarrow


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one line."""
    raised = (_pyarrow().ArrowException, OSError, UnicodeError)
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give Parquet files, such as data/train-*.parquet") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the files in it, such as {path}/train-*.parquet") from None
    except raised as error:
        why = quoted(first_line(error), 160)
        raise UserError(f"{path}: not a readable Parquet file, or damaged ({why}); download it again") from None


def _opened(path: Path) -> Any:
    with _reading(path):
        with open(path, "rb") as file:
            refuse_git_lfs(path, file.read(100))
        return _pyarrow().parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True
        )


@dataclass(frozen=True)
class Columns:
    """What the columns of a file mean."""

    image: str
    in_struct: bool  # {bytes, path}, not bytes alone
    label: str | None
    class_names: list[str] | None


def _features(schema: Any, path: Path) -> dict[str, Any]:
    """The hub's description of the columns, which it keeps in the schema; empty where there is none."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its entry 'huggingface' describes no features; write the file again") from None


def _has_bytes(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _has_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _only(found: list[str], given: str | None, option: str, schema: Any, path: Path) -> str | None:
    """The column of one kind: the one named by an option, or the only one there is; None without any."""
    if given is not None:
        if given not in schema.names:
            raise UserError(f"{option} {quoted(given)}: {path} has the columns {', '.join(schema.names)}")
        return given
    if len(found) > 1:
        raise UserError(f"{path}: {' and '.join(found)} may be meant; say which with {option}")
    return found[0] if found else None


def _columns(schema: Any, path: Path, image: str | None, label: str | None) -> Columns:
    """Which columns hold images and labels; image, label: the user's own choice."""
    features, types = _features(schema, path), _pyarrow().types
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    images = images or [name for name in schema.names if _has_bytes(schema.field(name).type)]
    chosen = _only(images, image, "--image-column", schema, path)
    if chosen is None or not _has_bytes(schema.field(chosen).type):
        raise UserError(f"{path}: a column of image bytes expected; its columns are {', '.join(schema.names)}")
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    classes = classes or [name for name in ("label", "labels") if name in schema.names]
    labels = _only(classes, label, "--label-column", schema, path)
    if labels is not None and not types.is_integer(schema.field(labels).type):
        raise UserError(f"{path}: column {labels} holds {schema.field(labels).type}; labels must be whole numbers")
    names = features.get(labels, {}).get("names") if labels else None
    return Columns(chosen, types.is_struct(schema.field(chosen).type), labels, names)


def _check_shards(paths: Sequence[Path]) -> None:
    """Files of several splits are refused; a split of which files are missing is noted."""
    refuse_repeated(paths, "file")
    shards = [shard for path in paths if (shard := SHARD.fullmatch(path.name))]
    splits = sorted({shard[1] for shard in shards})
    if len(splits) > 1:
        raise UserError(f"files of the splits {' and '.join(splits)} are given; convert each split by itself")
    if shards and len(shards) == len(paths) < int(shards[0][3]):
        print(f"note: {len(paths)} of the {int(shards[0][3])} files of {splits[0]} are given", file=sys.stderr)


def _image(value: Any) -> bytes:
    """The image in a row, a scalar of pyarrow; without bytes it counts as an empty file."""
    image = value.as_py()
    return (image["bytes"] if isinstance(image, dict) else image) or b""


def _rows(paths: Sequence[Path], columns: Columns) -> Generator[Callable[[], bytes], None, None]:
    """What reads the image of each row."""
    wanted = [f"{columns.image}.bytes" if columns.in_struct else columns.image]
    for path in paths:
        with _reading(path):
            for batch in _opened(path).iter_batches(ROWS, columns=wanted, use_threads=False):
                for value in batch.column(0):
                    yield functools.partial(_image, value)


def _facts(file: Any, columns: Columns) -> tuple[list[str], list[int | None]]:
    """The file name of each row, "" for none, and its label."""
    image, types = file.schema_arrow.field(columns.image).type, _pyarrow().types
    fields = list(image) if columns.in_struct else []
    texts = [field.name for field in fields if types.is_string(field.type) or types.is_large_string(field.type)]
    has_path = "path" in texts
    wanted = [f"{columns.image}.path"] if has_path else []
    table = file.read([*wanted, *([columns.label] if columns.label else [])], use_threads=False)
    rows = file.metadata.num_rows
    paths = [(row or {}).get("path") or "" for row in table[columns.image].to_pylist()] if has_path else [""] * rows
    return paths, table[columns.label].to_pylist() if columns.label else [None] * rows


def row_name(path: str, class_name: str | None) -> str:
    """A row's path in folders of classes, as its image file had it before it was uploaded, which the hub cuts to the file's name.

    The hub's ImageNet appends the class to the file's name: n01440764_10026_n01440764.JPEG is n01440764/n01440764_10026.JPEG.
    """
    file = posixpath.basename(path)
    if match := WITH_WNID.fullmatch(file):
        return f"{match[2]}/{match[1]}{match[3]}"
    if "/" in path and not path.startswith("/"):
        return posixpath.normpath(path)
    return f"{class_name.strip('/')}/{file}" if class_name else file


def read_parquet(paths: Sequence[Path], image: str | None, label: str | None) -> Images:
    """The images of a split, in the order of the files and rows; image, label: columns, None = found by themselves.

    Labels are None where there is no column of labels. Names are running numbers where the rows have no file names, or not
    different ones.
    """
    _check_shards(paths)
    with _reading(paths[0]):
        columns = _columns(_opened(paths[0]).schema_arrow, paths[0], image, label)
    names, labels = [], []
    for path in paths:
        with _reading(path):
            file = _opened(path)
            if _columns(file.schema_arrow, path, image, label) != columns:
                why = f"its columns or classes are not those of {paths[0]}"
                raise UserError(f"{path}: {why}; give files of one data set")
            its_names, its_labels = _facts(file, columns)
        names += [
            row_name(name, _class_of(value, columns.class_names)) if name else ""
            for name, value in zip(its_names, its_labels, strict=True)
        ]
        labels += its_labels
    numbered = not all(names) or len(set(names)) < len(names)
    if numbered:
        print(
            "note: rows have no file names of their own; they are numbered, and no list can name them", file=sys.stderr
        )
        names = [f"{number:08d}" for number in range(len(names))]
    where = in_words(paths)
    rows = Forward(where, lambda: _rows(paths, columns))
    return Images(
        where=where,
        found={name: InTurn(rows, number) for number, name in enumerate(names)},
        labels=None if columns.label is None else [-1 if value is None else value for value in labels],
        class_names=columns.class_names,
        numbered=numbered,
    )


def _class_of(label: int | None, class_names: list[str] | None) -> str | None:
    return class_names[label] if class_names and label is not None and 0 <= label < len(class_names) else None
