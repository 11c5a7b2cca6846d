"""What a section of the report consists of, and what all sections are made from.

Owns these types and the small plot that sections share; page.py turns sections into HTML. Invariant: every text here is plain
text, as it came from a run; it is escaped where the page is written.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.style import GROUP_COLOURS
from tools.reporting.tables import Table
from train.evaluation.metrics import shot_groups

DASH = "–"
GROUPS = tuple(GROUP_COLOURS)  # many, medium, few
SMALL = (4.2, 2.9)  # inches: a plot as wide as a telephone; two of them stand side by side on a wide screen
WIDE = (8.6, 3.6)


class Material(NamedTuple):
    """What sections are made from; entries: the same runs, those that differ in seed alone as one."""

    runs: Sequence[Run]
    entries: Sequence[Entry]
    split: str


class Key(NamedTuple):
    """One entry of a legend, which stands above the plots as text: names in plots would need escapes of another kind."""

    label: str
    colour: str
    line: str = ""
    "a line style of matplotlib, or empty for an area"


class Picture(NamedTuple):
    """A figure of a section."""

    figure: Figure
    caption: str
    alt: str
    "what it shows, for readers who do not see it"
    wide: bool = False
    "as wide as the page"
    pixels: bool = False
    "as PNG, on a white card"
    legend: Sequence[Key] = ()
    "its own, beside that of the section"


class Section(NamedTuple):
    """intro and notes are paragraphs; a note says what is left out and why."""

    title: str
    intro: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    legend: Sequence[Key] = ()


Maker = Callable[[Material], Section]  # UserError: the section does not apply, and why


def plot(size: tuple[float, float] = SMALL) -> tuple[Figure, Axes]:
    """A figure with one axes in the report's manner."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, plain(figure.subplots())


def plain(axes: Axes) -> Axes:
    """Without the frame's upper and right side, with small ticks and quiet grid lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_alpha(0.5)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(alpha=0.18, linewidth=0.6)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_label().set_fontsize(8.5)
    return axes


def bars(axes: Axes, heights: Sequence[Sequence[float | None]], colours: Sequence[str], labels: Sequence[str]) -> None:
    """Grouped bars: heights[i][j] of series i at label j; None leaves a gap."""
    width = 0.8 / max(len(heights), 1)
    for i, (row, colour) in enumerate(zip(heights, colours, strict=True)):
        places = np.arange(len(labels)) + (i - (len(heights) - 1) / 2) * width
        axes.bar(places, [np.nan if height is None else height for height in row], width * 0.92, color=colour)
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(False, axis="x")


def legend_of(entries: Sequence[Entry], areas: bool = False) -> list[Key]:
    """areas: of bars, not lines."""
    return [Key(entry.title, entry.colour, "" if areas else entry.line) for entry in entries]


def decimal(value: float | None, decimals: int) -> str:
    """A number for a table; a dash for what is not known."""
    return DASH if value is None or not np.isfinite(value) else f"{value:,.{decimals}f}"


def legend_of_groups() -> list[Key]:
    return [Key(group, colour) for group, colour in GROUP_COLOURS.items()]


def groups_of(run: Run) -> dict[str, np.ndarray]:
    """bool[C] of many, medium and few, by the training images of the run; empty where those are not known."""
    counts = run.predictions.train_counts
    return {} if counts is None else shot_groups(counts)


def with_groups(material: Material) -> tuple[list[Entry], list[str]]:
    """(entries whose training images per class are known, a note on the others)"""
    known = [entry for entry in material.entries if entry.runs[0].predictions.train_counts is not None]
    others = [entry.title for entry in material.entries if entry not in known]
    notes = [
        f"Of {', '.join(others)} the training images per class are not known, so there are no shot groups."
    ] * bool(others)
    return known, notes
