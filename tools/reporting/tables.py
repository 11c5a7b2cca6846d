"""Tables of text, which reports write as Markdown and as HTML."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from train.watch.text import markdown_table


class Table(NamedTuple):
    """title: what it shows, in words; columns: headings; rows: cells as text, as many as columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(title: str, tables: Iterable[Table], notes: Iterable[str], pictures: Iterable[str] = ()) -> str:
    """A page: tables, pictures by file name, and notes on how to read them."""
    parts = [f"# {title}", *(f"![{name}]({name})" for name in pictures)]
    for table in tables:
        parts += [f"## {table.title}", markdown_table(table.columns, table.rows, right=table.columns[1:])]
    noted = "\n".join(f"* {note}" for note in notes)
    return "\n\n".join([*parts, *(["## How to read this", noted] if noted else [])]) + "\n"
