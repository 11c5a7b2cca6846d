"""How a program of one process ends: exit codes, one line for a mistake, and silence when its output is not read any more.

Needs no torch, so that small tools start at once; train/run/exits.py is this for trainings, with their stops and ranks.
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

_NO_READER = 128 + signal.SIGPIPE


def script(main: Callable[[list[str]], int | None]) -> int:
    """The exit code of `main(argv)`, for `sys.exit`.

    When whatever read the output has gone (`| head`), the program ends at once and without a word, with the code of SIGPIPE.
    """
    try:
        try:
            return main(sys.argv[1:]) or 0
        finally:
            sys.stdout.flush()  # while a closed pipe can still be answered, after --help too
    except BrokenPipeError:
        if not _drop_closed_pipes():
            raise  # another pipe, such as that of a worker
        return _NO_READER
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        return _NO_READER  # rich has met the closed pipe, and leaves with 1


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def exit_code(
    work: Callable[[], int | None], interrupted: str = "interrupted", say: Callable[[str], None] = _to_stderr
) -> int:
    """Do the work and say in one line why it was not done: 0 or its own code, 2 for a mistake of the user's, 130 after Ctrl-C.

    interrupted: what to say after Ctrl-C; say: takes the line of a mistake.
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
        words = _passing_trouble(error)
        if words is None:
            raise
        _to_stderr(f"error: {words}: run the same command again")
        return 2


def _drop_closed_pipes() -> bool:
    """Whether standard output or error is a pipe without a reader; what is left to be written there goes nowhere."""
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


def _passing_trouble(error: Exception) -> str | None:
    """What went wrong and has been, or must be, put right, if the program is not at fault."""
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
