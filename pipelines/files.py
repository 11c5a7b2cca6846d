"""Atomic file writes (readers see the old file or the whole new one), and locks that keep other processes out.

Owns the four steps that make a write survive a kill or a power cut: a temporary file in the same folder,
fsync, rename, fsync of the folder; and the locks, which the kernel drops when their holder dies, however it dies.
Does not interpret what is written. Invariant: a visible name is a complete file; what a killed writer leaves behind
has a name that `is_temporary` recognises.
"""

import errno
import fcntl
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import UserError, quoted

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
    """Make the names in a folder (creations, renames, removals) survive a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (
            errno.EINVAL,
            errno.EBADF,
            errno.ENOTSUP,
        ):  # some network file systems have no such call for folders
            return
        error.filename = os.fspath(folder)
        raise
    finally:
        os.close(handle)


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file that is on the disk when this returns. It is visible while it grows: only for temporary folders."""
    with _naming(path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append(file: FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file; an OSError names the file.

    A kill leaves all of a line or nothing, as one write is enough; only a disk that fills up takes a part, and refuses the rest.
    """
    rest = memoryview(data)
    with _naming(Path(os.fsdecode(file.name))):
        while rest:
            rest = rest[file.write(rest) :]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of a disk name the file, which the system's own do not once it is open."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` (replacing what is there) if the block succeeds."""
    temporary = temporary_path(path)
    try:
        with _naming(path), open(temporary, "xb") as file:
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


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented ASCII JSON (names need not be UTF-8). NaN and infinities, which JSON lacks, are a ValueError."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError when it cannot be read or is not JSON."""
    return read_json_text(path)[0]


def read_json_text(path: Path) -> tuple[Any, bytes]:
    """The value in a JSON file, and the bytes that it was read from, which another process may have replaced since."""
    try:
        text = path.read_bytes()
        return json.loads(text), text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from error


def is_locked(path: Path) -> bool:
    """Whether another process holds the `by_process` lock of this file; it takes nothing, and so disturbs none that lock."""
    query = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, process
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(handle, fcntl.F_GETLK, query.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(handle)
    return query.unpack(answer)[0] != fcntl.F_UNLCK


def read_object(path: Path, **kinds: type) -> dict[str, Any]:
    """The object in a JSON file; UserError where it is none, or an entry named in `kinds` is missing or of another type."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: an object expected, not {value!r:.40}")
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):
            raise UserError(f"{path} is damaged: {name} is {value.get(name)!r:.40}")
    return value


def check_file_place(path: Path, given: str) -> None:
    """UserError, before the work, where the file `path` could not be written after it; leaves no trace.

    given: what named it, for the message. It may replace a file, and nothing else.
    """
    try:
        reason = "it is no regular file" if path.exists() and not path.is_file() else None
        if reason is None:
            _try_to_write(path)
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise UserError(
            f"{given}: cannot write {quoted(path, 200)}: give a file in a folder that exists and can be written ({reason})"
        )


def check_folder_place(path: Path, given: str) -> None:
    """UserError, before the work, where no file could be written into the folder `path`, once it is made; leaves no trace.

    It makes no folder, not even for a moment: other processes may be about to make or check the same one.
    """
    try:
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        for name in path.parts[len(there.parts) :]:
            (there / name).exists()  # an OSError for a name that no folder can have
        _try_to_write(there / "file")
    except OSError as error:
        raise UserError(
            f"{given}: cannot write in {quoted(path, 200)} ({error.strerror}); give another folder"
        ) from error


def _try_to_write(path: Path) -> None:
    probe = temporary_path(path)
    open(probe, "xb").close()
    probe.unlink()


def write_each(*writes: Callable[[], object]) -> None:
    """Call every one, even where others fail; then one UserError for all OSErrors and UserErrors."""
    failed = []
    for write in writes:
        try:
            write()
        except UserError as error:
            failed.append(str(error))
        except OSError as error:
            failed.append(f"cannot write {error.filename or 'a file'}: {error.strerror}")
    if failed:
        raise UserError("; ".join(failed))


class Held(Exception):
    """Another process has the lock; `str(error)` is the line that it wrote into the file, which may be empty."""


def lock(handle: int, *, by_process: bool = False, wait: bool = False, holder: str | None = None) -> None:
    """Lock an open file or folder exclusively, until it is closed or this process dies.

    by_process: the lock belongs to this process: forked ones do not inherit it, it excludes nothing within the process, and
    closing any other handle of the file drops it. Otherwise it belongs to the handle, and to every process that inherits that.
    wait: wait until it is free. holder: a line for the file (a full disk takes none), shown to processes that are refused.
    Raises Held, or OSError where the file system has no such locks.
    """
    take = fcntl.lockf if by_process else fcntl.flock
    try:
        take(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError) as error:  # which of the two a record lock raises depends on the system
        raise Held(os.pread(handle, 1000, 0).decode(errors="replace").strip() if holder else "") from error
    if holder:
        with suppress(OSError):
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
