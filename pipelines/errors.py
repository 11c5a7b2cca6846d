"""The one exception that is shown to users, and how a message quotes what it was given.

Raised wherever input from outside (a file, a setting, a cache) is not what it must be. Its message is one line that says
what was given, what is allowed and what to type; entry scripts print it without a traceback and exit with code 2.
"""

import difflib
import os
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can correct; `str(error)` is the whole explanation."""


def printable(text: str) -> str:
    """A message as one line of printable characters: what it quotes, such as a file's name, may hold any others."""
    return _escaped(" ".join(text.splitlines()))


def first_line(error: BaseException) -> str:
    """What another library says of an error, in one line; the kind of the error where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def quoted(text: object, longest: int = 80) -> str:
    """At most `longest` characters of what was given, for messages; what a terminal would not show, or obey, is escaped."""
    line = _escaped(str(text))
    return line if len(line) <= longest else f"{line[: longest - 20]}... ({len(line):,} characters)"


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def where_to_look(path: Path, fits: Callable[[str], bool] = lambda _: True) -> list[str]:
    """For a message on a path that is not there: the nearest name beside it, or else from where a relative path was followed.

    Words of one part of the message, or none. fits: which names may be meant.
    """
    try:
        names = sorted(filter(fits, os.listdir(path.parent)))
    except OSError:
        names = []
    if near := difflib.get_close_matches(path.name, names, n=1):
        return [f"nearest: {path.parent / near[0]}"]
    return [] if path.is_absolute() else [f"looked for from {Path.cwd()}"]
