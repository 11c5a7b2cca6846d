"""The exclusive right to write in a run folder."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import Held, is_locked, lock


def now() -> str:
    return text_of(datetime.now(UTC))


def text_of(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


ENDED_SILENTLY = "ended without a word: it was killed or it crashed"


class Lock:
    """The exclusive right to write in a run folder, for as long as this process lives or until `release`.

    A lock of the process (files.lock): forked workers do not inherit it, so an orphan of a killed run blocks no other
    run. It excludes nothing within one process: `_held` does.
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
            lock(handle, by_process=True, holder=holder_line())
        except Held as held:
            os.close(handle)
            raise self._refusal(str(held) or "another process") from held
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"cannot lock {folder}: {error.strerror}; give a run=FOLDER on another file system"
            ) from error
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


def in_use(folder: Path) -> bool:
    """Whether a process, this one or another, is training in the run folder now."""
    if folder.resolve() in Lock._held:  # to open and close the file here would drop this process's lock
        return True
    try:
        return is_locked(folder / Lock.NAME)
    except OSError:  # no such locks here: believe what run.json says
        return True


def status_of(folder: Path, stored: str) -> str:
    """How the run in `folder` stands, in words; stored: its status in run.json, which a killed process leaves `running`."""
    return ENDED_SILENTLY if stored == "running" and not in_use(folder) else stored


def holder_line() -> str:
    """A line that names this process, for those that find its lock."""
    return f"process {os.getpid()} on {platform.node()} since {now()}"
