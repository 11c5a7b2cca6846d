"""A progress bar, the same for trainings, caches and tools. Where the output is not a terminal there is no bar, and the caller
prints plain lines at its own pace. Invariant: a text is shown as it is, including any brackets.
"""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


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
