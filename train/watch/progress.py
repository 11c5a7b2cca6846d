"""A progress bar, the same for trainings, caches and tools. Where the output is not a terminal there is no bar, and the caller
prints plain lines at its own pace. Invariant: a text is shown as it is, including any brackets.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """BEFORE ---- done/total AFTER; without a terminal `shown` is False, and the bar does nothing.

    more: columns to add at the end.
    """

    def __init__(
        self, total: int, console: Console, *more: ProgressColumn, done: int = 0, before: str = "", after: str = ""
    ):
        self._progress: Progress | None = None
        if not console.is_terminal:
            return
        columns: list[ProgressColumn] = [BarColumn(), MofNCompleteColumn()]
        if before:
            columns.insert(0, TextColumn("{task.fields[before]}", markup=False))
        if after:
            columns.append(TextColumn("{task.fields[after]}", markup=False))
        self._progress = Progress(*columns, *more, console=console, refresh_per_second=4)
        self._task = self._progress.add_task("", total=total, completed=done, before=before, after=after)
        self._progress.start()

    @property
    def shown(self) -> bool:
        return self._progress is not None

    def update(self, done: int, after: str | None = None) -> None:
        """Show `done` and `after`; None keeps the last `after`, which is shown only if the bar began with one."""
        if self._progress is not None:
            fields: dict[str, Any] = {} if after is None else {"after": after}
            self._progress.update(self._task, completed=done, **fields)

    def close(self) -> None:
        """Release the terminal; may be called twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Gives a function to be told of finished items, one or more at a time; a bar on a terminal, else a line at each tenth.

    On stderr.
    """
    done = 0
    with Bar(total, Console(stderr=True), TimeRemainingColumn(), before=what) as bar:

        def count(finished: int = 1) -> None:
            nonlocal done
            before, done = done, done + finished
            if bar.shown:
                bar.update(done)
            elif done * 10 // total > before * 10 // total:
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

        yield count
