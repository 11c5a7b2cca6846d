"""What the offline programs' command lines share: option types, how a command ends.

Owns no command. Invariant: a user's mistake gives one line on stderr and exit code 2.
"""

import argparse
import difflib
import math
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipelines.errors import UserError, quoted
from train.run.endings import exit_code
from train.values import path_text


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit; a misspelt option is named, with the nearest."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        words = list(sys.argv[1:] if args is None else args)
        try:
            return super().parse_args(words, namespace)
        except UserError as error:  # often that a required option is missing, because it is misspelt
            if said := self._misspelt(words):
                raise UserError(f"{said}; --help explains") from error
            raise

    def _misspelt(self, words: Sequence[str]) -> str:
        """What to say of the first option that neither this parser nor that of the command knows; empty: there is none."""
        commands = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        parsers = [self, *(choices[word] for choices in commands for word in words if word in choices)]
        known = [option for parser in parsers for option in parser._option_string_actions]
        for option in (word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2):
            if not any(one.startswith(option) for one in known):
                near = difflib.get_close_matches(option, known, n=1)
                return "; ".join([f"unknown option {quoted(option)}", *(f"nearest: {one}" for one in near)])
        return ""

    def error(self, message: str) -> NoReturn:
        # argparse repeats what was given, however long.
        message = " ".join(quoted(word) for word in message.split(" "))
        raise UserError(f"{message}; --help explains")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low`, at most `high` and always below 2**63."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= (2**63 - 1 if high is None else high):
            raise argparse.ArgumentTypeError(f"{quoted(text)} given, {low}..{'' if high is None else high} allowed")
        return value

    return integer


def number(text: str) -> float:
    """An argparse type: a number; not a number (nan) is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def path(text: str) -> Path:
    """An argparse type: a file or folder, its `~` expanded, which no shell does in `--out=~/x`."""
    try:
        return Path(path_text(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{quoted(text)!r}: {error}") from error


def apart_from_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words of a command line, its KEY=VALUE settings), wherever these stand."""
    settings = [word for word in argv if re.match(r"[a-z][a-z_.]*=", word)]
    return [word for word in argv if word not in settings], settings


def run_with_settings(
    build: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None, interrupted: str
) -> int:
    """`run_command` for a command line with KEY=VALUE settings, which `run` finds in args.settings.

    build: makes the parser; a UserError of it, such as for a package that is missing, is a user's mistake too.
    """
    words, settings = apart_from_settings(sys.argv[1:] if argv is None else argv)

    def work() -> int | None:
        parser = build()
        parser.set_defaults(settings=settings)
        args = parser.parse_args(words)
        return args.run(args)

    return exit_code(work, f"interrupted; {interrupted}")


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, interrupted: str) -> int:
    """Call the function that the chosen command has set as `run`; exit code 2 for a user's mistake, 130 after Ctrl-C.

    interrupted: completes the message after Ctrl-C ("interrupted; ...").
    """

    def work() -> int | None:
        args = parser.parse_args(argv)
        return args.run(args)

    return exit_code(work, f"interrupted; {interrupted}")


def exit_cleanly_when_terminated() -> None:
    """Turn SIGTERM into an exit, which cleans up; only for a program that runs on its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
