"""Writing a file so that it is either the old one or the whole new one.

Owns the four steps that make a write survive a kill or a power cut: a temporary file in the same folder,
fsync, rename, fsync of the folder. Knows nothing of what is written. Invariant: a visible name is a complete
file; what a killed writer leaves behind has a name that `is_temporary` recognises.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import UserError

_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """A fresh name in the folder of `path`, unique among threads, processes and hosts that write there."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether the name is one that `temporary_path` gives."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder (creations, renames, removals) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durable(path: Path, data: bytes) -> None:
    """A new file, on the disk when this returns. Visible while it grows: only for temporary folders."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` (replacing what is there) if the block succeeds."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """`path` holds exactly `data`, or what it held before."""
    with atomic_writer(path) as file:
        file.write(data)


def write_json_atomic(path: Path, value: Any) -> None:
    """`value` as indented ASCII JSON (names need not be UTF-8). NaN and infinities, which are no JSON, are a ValueError."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError when it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from error
