"""Atomic file writes (readers see the old file or the whole new one), and locks that keep other processes out.

Owns the four steps that make a write survive a kill or a power cut: a temporary file in the same folder,
fsync, rename, fsync of the folder; and the locks, which the kernel drops when their holder dies, however it dies.
Does not interpret what is written. Invariant: a visible name is a complete file; what a killed writer leaves behind
has a name that `is_temporary` recognises.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import UserError

NAME_BYTES = 255  # the longest name within a path, on all of Linux's file systems
_SUFFIX = ".tmp"


def home_expanded(path: str) -> str:
    """The path with the home folder in place of a leading `~` or `~USER`; ValueError, worded for users, where there is none."""
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        home = path.partition("/")[0]
        raise ValueError(f"{home} is no home folder here; a file whose name begins with ~ is ./{path}")
    return expanded


def temporary_path(path: Path) -> Path:
    """A fresh name in the folder of `path`, unique among threads, processes and hosts that write there."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether `temporary_path` made this name."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder (creations, renames, removals) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file that is on the disk when this returns. It is visible while it grows: only for temporary folders."""
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
    """Replace the content of `path` by `data`; after a failure it holds what it held before."""
    with atomic_writer(path) as file:
        file.write(data)


def check_output_file(path: Path) -> None:
    """UserError unless a file could be written there, for programs that compute for minutes before they write it."""
    taken = os.path.exists(path) and not os.path.isfile(path)  # a folder, or a device that a rename would replace
    temporary = len(os.fsencode(temporary_path(path).name)) if path.name else 0
    folder, mode = path.parent, os.W_OK | os.X_OK
    writable = os.path.isdir(folder) and os.access(folder, mode, effective_ids=True)
    if taken or not 0 < temporary <= NAME_BYTES or not writable:
        raise UserError(f"cannot write {path}: give a file in a folder that exists and can be written")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented ASCII JSON (names need not be UTF-8). NaN and infinities, which JSON lacks, are a ValueError."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError when it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from error


class Held(Exception):
    """Another process has the lock; `str(error)` is the line that it wrote into the file, which may be empty."""


def lock(handle: int, *, by_process: bool = False, wait: bool = False, holder: str | None = None) -> None:
    """Lock an open file or folder exclusively, until it is closed or this process dies.

    by_process: the lock belongs to this process: forked ones do not inherit it, it excludes nothing within the process, and
    closing any other handle of the file drops it. Otherwise it belongs to the handle, and to every process that inherits that.
    wait: wait until it is free. holder: a line to write into the file, shown to processes that are refused.
    Raises Held, or OSError where the file system has no such locks.
    """
    take = fcntl.lockf if by_process else fcntl.flock
    try:
        take(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError) as error:  # which of the two a record lock raises depends on the system
        raise Held(os.pread(handle, 1000, 0).decode(errors="replace").strip() if holder else "") from error
    if holder:
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(), 0)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Only one process at a time is in the block, where the file system can lock folders; elsewhere there is no limit."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError, Held):
            lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
