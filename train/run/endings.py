"""How a single-process program ends: exit codes, one line for a mistake, and silence when its output is no longer read.

Needs no torch, so that small tools start at once; train/run/exits.py does this for trainings, with their stops and ranks.
Invariant: an exit code is 0 only if the work was done.
"""

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError, printable, quoted

_LONGEST = 200  # characters of a path that are shown
_NO_READER = 128 + signal.SIGPIPE


def script(main: Callable[[list[str]], int | None]) -> int:
    """The exit code of `main(argv)`, for `sys.exit`.

    When the reader of the output is gone (`| head`), the program ends at once and silently, with the code of SIGPIPE.
    """
    _make_output_safe()
    try:
        try:
            return main(sys.argv[1:]) or 0
        finally:
            _flush()  # while a closed pipe can still be handled, also after --help
    except _OutputLost as lost:
        _to_stderr(
            f"error: the output cannot be written: {lost}; the work itself may be done, make room and run it again"
        )
        return 2
    except BrokenPipeError:
        if not _drop_closed_pipes():
            raise  # another pipe, such as a worker's
        return _NO_READER
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        return _NO_READER  # rich found the closed pipe and exited with 1


class _OutputLost(Exception):
    """Standard output did not take what was printed, for example on a full disk."""


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again when it ends
        raise _OutputLost(error.strerror) from error


def _make_output_safe() -> None:
    """Let no print fail for its letters (in the locale C), nor because the program was started with a closed output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def exit_code(
    work: Callable[[], int | None], interrupted: str = "interrupted", say: Callable[[str], None] = _to_stderr
) -> int:
    """Do the work, or print in one line why it was not done. Code: 0 or the work's own, 2 for a user's mistake, 130 after Ctrl-C.

    A file or folder that the system refuses is the user's to mend, like any UserError. Every other error is a fault of the
    program: it keeps its traceback, which then says so.

    interrupted: the message after Ctrl-C; say: prints the line.
    """
    try:
        _require_a_current_folder()
        return work() or 0
    except UserError as error:
        say(f"error: {printable(str(error))}")
        return 2
    except KeyboardInterrupt:
        _to_stderr(interrupted)
        return 130
    except Exception as error:
        if words := _passing_trouble(error):
            _to_stderr(f"error: {words}: run the same command again")
            return 2
        if words := _place(error):
            say(f"error: {words}")
            return 2
        if not isinstance(error, BrokenPipeError):
            error.add_note(
                "This is a fault of the program, not of what you typed: please report it with the lines above."
            )
        raise


def _require_a_current_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder does not exist any more; change to one that does: cd FOLDER") from error


def _place(error: Exception) -> str | None:
    """The file or folder that the system refused, and why; None for an error without a path."""
    if not isinstance(error, OSError) or error.filename is None or isinstance(error.filename, int):
        return None
    path = quoted(os.fsdecode(error.filename), _LONGEST)
    return f"{path}: {error.strerror}; give another file or folder, or make this one usable"


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


def _passing_trouble(error: Exception) -> str | None:
    """What went wrong and how it was or can be put right, for errors that are not the program's fault; else None."""
    if torn := _torn_library(error):
        torn.unlink(missing_ok=True)
        return f"{torn}, compiled by torch, was left half-written by a process that was killed; it is deleted"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written: set one by TMPDIR=FOLDER in front of the command"
    if "can't start new thread" in str(error) or _cannot_fork(error):
        return (
            "no more processes or threads may be started (ulimit -u, or the container's limit): raise it or stop others"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.strerror} ({error.filename or 'a file that is open'}); what was saved before is intact; make room"
        )
    return None


def _cannot_fork(error: Exception) -> bool:
    """Whether the system refused a process; the same number also says that a pipe is full, after some of the characters."""
    refused = isinstance(error, OSError) and error.errno == errno.EAGAIN and error.filename is None
    return refused and not hasattr(error, "characters_written")


def _torn_library(error: BaseException) -> Path | None:
    """The file of torch.compile's cache that does not load: torch writes there without a temporary name."""
    found = re.search(r"(/\S+\.so): (?:file too short|invalid ELF header)", str(error))
    return Path(found[1]) if found and Path(found[1]).is_file() else None
