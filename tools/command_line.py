"""What the offline programs' command lines have in common: types of options, a progress bar, how a command ends.

Owns no command. Invariant: a mistake of the user's is one line on stderr and exit code 2.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low`, at most `high`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} given, {low}..{'' if high is None else high} allowed")
        return value

    return integer


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, interrupted: str) -> int:
    """Call the function that the chosen command has set as `run`; exit code 2 for a mistake of the user's, 130 after Ctrl-C.

    interrupted: what Ctrl-C has left undone.
    """
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


def exit_cleanly_when_terminated() -> None:
    """For a script of its own: an exit cleans up, a plain SIGTERM does not."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call once per image done: a bar on a terminal, else a line at each tenth; on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

        yield count
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda: progress.advance(task)


def megabytes(size: int) -> str:
    """Of so many bytes."""
    return f"{size / 1e6:.1f} MB"
