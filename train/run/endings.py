"""How a single-process program ends: exit codes, one line for a mistake, and silence when its output is no longer read.

Needs no torch, so that small tools start at once; train/run/exits.py does this for trainings, with their stops and ranks.
Invariant: an exit code is 0 only if the work was done.
"""

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError

_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_READER = 128 + signal.SIGPIPE


def script(main: Callable[[list[str]], int | None]) -> int:
    """The exit code of `main(argv)`, for `sys.exit`.

    When the reader of the output is gone (`| head`), the program ends at once and silently, with the code of SIGPIPE.
    """
    try:
        try:
            return main(sys.argv[1:]) or 0
        finally:
            sys.stdout.flush()  # while a closed pipe can still be handled, also after --help
    except BrokenPipeError:
        if not _drop_closed_pipes():
            raise  # another pipe, such as a worker's
        return _NO_READER
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        return _NO_READER  # rich found the closed pipe and exited with 1


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def exit_code(
    work: Callable[[], int | None], interrupted: str = "interrupted", say: Callable[[str], None] = _to_stderr
) -> int:
    """Do the work, or print in one line why it was not done. Code: 0 or the work's own, 2 for a user's mistake, 130 after Ctrl-C.

    interrupted: the message after Ctrl-C; say: prints the line.
    """
    try:
        return work() or 0
    except UserError as error:
        say(f"error: {' '.join(str(error).splitlines())}")
        return 2
    except KeyboardInterrupt:
        _to_stderr(interrupted)
        return 130
    except Exception as error:
        if words := _refused_place(error):
            say(f"error: {words}")
            return 2
        words = _passing_trouble(error)
        if words is None:
            raise
        _to_stderr(f"error: {words}: run the same command again")
        return 2


def _drop_closed_pipes() -> bool:
    """Whether standard output or error is a pipe without a reader; further output to it is discarded."""
    found = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (OSError, ValueError):  # not a file
            continue
        poll = select.poll()
        poll.register(number, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            found = True
    return found


def _refused_place(error: Exception) -> str | None:
    """What the file system refused, where the cause is the place that was given: closed, read-only, no folder, a long name."""
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}; give another place, or change its permissions"
    return None


def _passing_trouble(error: Exception) -> str | None:
    """What went wrong and how it was or can be put right, for errors that are not the program's fault; else None."""
    if torn := _torn_library(error):
        torn.unlink(missing_ok=True)
        return f"{torn}, compiled by torch, was left half-written by a process that was killed; it is deleted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.strerror} ({error.filename or 'a file that is open'}); what was saved before is intact; make room"
        )
    return None


def _torn_library(error: BaseException) -> Path | None:
    """The file of torch.compile's cache that does not load: torch writes there without a temporary name."""
    found = re.search(r"(/\S+\.so): (?:file too short|invalid ELF header)", str(error))
    return Path(found[1]) if found and Path(found[1]).is_file() else None
