"""Human-readable figures and names: durations, sizes, shares, short lists, Markdown tables.

It lies here because trainings use it too, and train/ does not import tools/. Invariant: pure functions; nothing is printed.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def clock(seconds: float) -> str:
    """H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def short_clock(seconds: float) -> str:
    """H:MM:SS, or M:SS for less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return clock(seconds) if minutes >= 60 else f"{minutes}:{rest:02}"


def size_text(size: float) -> str:
    """A number of bytes in a suitable unit."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def megabytes(size: float) -> str:
    """A number of bytes, always in the same unit, for sizes in a column."""
    return f"{size / 1e6:.1f} MB"


def percent(share: float | None, decimals: int = 2) -> str:
    """A share between 0 and 1 in percent; a dash for None."""
    return "-" if share is None else f"{share:.{decimals}%}"


def counted(number: int, what: str) -> str:
    """`1 block`, `1,200 blocks`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short_list(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def markdown_table(titles: Sequence[str], rows: Iterable[Iterable[Any]], right: Collection[str] = ()) -> str:
    """A Markdown table. right: titles of the columns to align right; a cell that is None becomes a dash."""
    rule = ["---:" if title in right else "---" for title in titles]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (titles, rule, *rows))


def _cell(value: Any) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")
