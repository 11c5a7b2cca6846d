"""Tables of text, which reports write as Markdown, HTML and LaTeX."""

import re
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


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}"},
}


def latex(table: Table) -> str:
    """A tabular with the rules of booktabs; its title as a comment. Text stands as it is written, numbers to the right."""
    rows = [" & ".join(map(_in_latex, row)) + r" \\" for row in (table.columns, *table.rows)]
    kinds = "l" + "r" * (len(table.columns) - 1)
    lines = [
        f"% {' '.join(table.title.split())}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _in_latex(text: str) -> str:
    found = "".join(_LATEX.get(char, char) for char in " ".join(text.split()))
    # At the start of a line [ and * would be arguments of the command before.
    return re.sub(r"^(?=[\[*])", "{}", re.sub(r"^-(?=[\d.])", "$-$", found))
