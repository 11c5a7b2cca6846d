"""The exclusive right to write in a run folder."""

import fcntl
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import UserError


def now() -> str:
    return text_of(datetime.now(UTC))


def text_of(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


class Lock:
    """The exclusive right to write in a run folder, for as long as this process lives or until `release`.

    It is a POSIX record lock: the kernel drops it when the process dies, however it dies, and forked workers do not
    inherit it, so an orphan of a killed run blocks no other run. It does not exclude a second lock within one
    process: `_held` does.
    """

    NAME = "lock"
    _held: set[Path] = set()

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        if self._folder in Lock._held:
            raise self._refusal(holder_line())
        try:
            handle = os.open(folder / Lock.NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}; give another run=NAME") from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 1000, 0).decode(errors="replace").strip()
            os.close(handle)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise self._refusal(holder or "another process") from error
            raise UserError(
                f"cannot lock {folder}: {error.strerror}; give a run=FOLDER on another file system"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder_line().encode(), 0)
        self._handle = handle
        Lock._held.add(self._folder)

    def _refusal(self, holder: str) -> UserError:
        return UserError(
            f"run {self._folder.name} is in use by {holder}; stop it, wait for it, or give another run=NAME"
        )

    def release(self) -> None:
        """Release the lock."""
        Lock._held.discard(self._folder)
        os.close(self._handle)


def holder_line() -> str:
    """A line that names this process, for those that find its lock."""
    return f"process {os.getpid()} on {platform.node()} since {now()}"
