"""Accuracy of several runs side by side: a table by shot group, pictures of shot groups and of classes against their frequency.

For the demo: titles are the titles of the runs by name, in order; results are their result.json by name. For the report: section.
Shapes: C classes.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as ScreenTable

from tools.reporting.entries import Entry
from tools.reporting.scores import class_accuracies, scores
from tools.reporting.section import (
    DASH,
    GROUPS,
    WIDE,
    Material,
    Picture,
    Section,
    bars,
    decimal,
    groups_of,
    legend_of,
    plain,
    plot,
    with_groups,
)
from tools.reporting.style import COLOURS, DPI
from tools.reporting.tables import Table
from tools.reporting.together import notes_on_counts

COLUMNS = ("top1", *GROUPS)
_POINTS = 500  # classes; of more only the lines are drawn


class Line(NamedTuple):
    """Accuracies in percent [C], NaN for a class without images, and training images [C]."""

    label: str
    colour: str
    accuracy: np.ndarray
    counts: np.ndarray


def seconds(run: Path) -> float:
    """Training time of a run over all its sessions, from its run.json."""
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    times = [(s["started"], s["ended"]) for s in sessions if s["ended"]]
    return sum((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in times)


# ---- the demo ----


def show_table(
    console: Console,
    titles: dict[str, str],
    results: dict[str, dict[str, Any]],
    spent: dict[str, float],
    cache_seconds: float,
) -> None:
    """A table of accuracies in percent on the balanced test set, overall and by shot group."""
    table = ScreenTable(title="top-1 accuracy on the balanced test set, %")
    for column in ("run", "all", *GROUPS, "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, title in titles.items():
        figures = results[name]["test"]
        shown = ["-" if figures[g] is None else f"{100 * figures[g]:.1f}" for g in COLUMNS]
        table.add_row(title, *shown, f"{spent[name]:.0f}")
    table.add_row("the cache, once for both", "", "", "", "", f"{cache_seconds:.0f}")
    console.print(table)


def draw(path: Path, titles: dict[str, str], results: dict[str, dict[str, Any]], counts: np.ndarray) -> None:
    """Draw per-class accuracy against class frequency, frequent classes on the left."""
    lines = [
        Line(
            f"{title}: {100 * results[name]['test']['top1']:.1f} %",
            colour,
            100 * np.array(results[name]["test"]["classes"], float),
            counts,
        )
        for (name, title), colour in zip(titles.items(), COLOURS, strict=False)
    ]
    figure, top = by_frequency(lines, (9, 5.5))
    top.legend(title="all classes", fontsize=9, loc="lower left")
    figure.savefig(path, dpi=DPI)


# ---- pictures ----


def by_frequency(lines: Sequence[Line], size: tuple[float, float] = WIDE) -> tuple[Figure, Axes]:
    """(figure, its upper part): accuracy of the classes from frequent to rare, above their training images."""
    figure = Figure(figsize=size, layout="constrained")
    top, bottom = map(plain, figure.subplots(2, 1, height_ratios=[3, 1], sharex=True))
    near = neighbours(len(lines[0].counts))
    drawn: list[np.ndarray] = []
    for line in lines:
        order = np.argsort(-line.counts, kind="stable")
        x, accuracy, counts = np.arange(len(order)), line.accuracy[order], line.counts[order]
        top.plot(x, running_mean(accuracy, near), label=line.label, color=line.colour, linewidth=1.8)
        if len(order) <= _POINTS:
            top.scatter(x, accuracy, s=9, color=line.colour, alpha=0.4, linewidths=0)
        if not any(np.array_equal(counts, other) for other in drawn):
            bottom.stairs(counts, np.arange(len(order) + 1) - 0.5, baseline=0.5, fill=not drawn, color="0.55")
            drawn.append(counts)
    top.set(ylabel="accuracy, %", xlim=(-1, len(lines[0].counts)))
    top.set_ylim(bottom=0)
    bottom.set_yscale("log")
    bottom.set_ylabel("training\nimages")
    bottom.set_xlabel("classes, from frequent to rare")
    bottom.set_xticks([])
    return figure, top


def neighbours(classes: int) -> int:
    """How many classes a line averages: with few test images per class, single classes are noisy."""
    return max(3, classes // 33 // 2 * 2 + 1)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` neighbours, of those that are there and no NaN; NaN where none is."""
    known = ~np.isnan(values)
    window = np.ones(width)
    padded = np.pad(np.where(known, values, 0), width // 2)
    there = np.pad(known.astype(float), width // 2)
    sums, counts = (np.convolve(row, window, mode="valid") for row in (padded, there))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


# ---- the report ----


def section(material: Material) -> Section:
    entries, notes = with_groups(material)
    tenths = _tenths(entries)
    figures, tables = [], []
    if entries:
        figures += [_group_picture(entries), _class_picture(entries)]
        tables.append(_group_table(entries))
    if tenths:
        figures.insert(1, _tenths_picture(entries, tenths))
        tables.append(_tenths_table(tenths))
    near = neighbours(len(material.runs[0].predictions.class_names))
    return Section(
        title="Accuracy",
        intro=(
            f"Points are classes, lines the mean of {near} neighbours: single classes have few images in the split, so compare "
            "lines and groups. A tenth of the classes is one of ten parts, from the most frequent to the rarest."
            if entries
            else ""
        ),
        tables=[*tables, _class_table(material.entries)],
        figures=figures,
        notes=[*notes, *(f"In tables, {note}." for note in notes_on_counts(material.runs))],
        legend=legend_of(entries),
    )


def _mean_accuracies(entry: Entry) -> np.ndarray:
    return 100 * np.mean([class_accuracies(run.predictions) for run in entry.runs], axis=0)


def _group_picture(entries: Sequence[Entry]) -> Picture:
    figure, axes = plot()
    heights = [[_percent(entry, name) for name in COLUMNS] for entry in entries]
    labels = ("all", *GROUPS)
    bars(axes, heights, [entry.colour for entry in entries], labels)
    axes.set_ylabel("accuracy, %")
    told = [
        f"{entry.title}: "
        + ", ".join(f"{label} {decimal(height, 1)}" for label, height in zip(labels, row, strict=True))
        for entry, row in zip(entries, heights, strict=True)
    ]
    return Picture(figure, "Accuracy by shot group", f"Bars of accuracy in percent by shot group. {'; '.join(told)}")


def _tenths(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """{title: mean accuracy of each tenth of the classes}; empty for fewer classes than two in each tenth."""
    found = {}
    for entry in entries:
        counts, accuracy = entry.runs[0].predictions.train_counts, _mean_accuracies(entry)
        if counts is not None and len(counts) >= 20:
            parts = np.array_split(accuracy[np.argsort(-counts, kind="stable")], 10)
            found[entry.title] = [np.nan if np.isnan(part).all() else float(np.nanmean(part)) for part in parts]
    return found


def _tenths_picture(entries: Sequence[Entry], tenths: dict[str, list[float]]) -> Picture:
    figure, axes = plot()
    for entry in entries:
        means = tenths[entry.title]
        axes.plot(range(1, 11), means, entry.line, color=entry.colour, linewidth=1.6, marker="o", markersize=3.5)
    axes.set(ylabel="accuracy, %", xlabel="tenth of the classes, from frequent to rare", xticks=range(1, 11))
    axes.set_ylim(bottom=0)
    words = "Accuracy by tenth of the classes"
    return Picture(figure, words, f"Lines. {words}, from frequent to rare; the table has the figures.")


def _tenths_table(tenths: dict[str, list[float]]) -> Table:
    rows = [[title, *(decimal(mean, 1) for mean in means)] for title, means in tenths.items()]
    return Table("Accuracy by tenth of the classes, %", ["run", *map(str, range(1, 11))], rows)


def _percent(entry: Entry, name: str) -> float | None:
    found = entry.spread(lambda run: scores(run.predictions)[name]).mean
    return None if found is None else 100 * found


def _class_picture(entries: Sequence[Entry]) -> Picture:
    lines = []
    for entry in entries:
        counts = entry.runs[0].predictions.train_counts
        assert counts is not None
        lines.append(Line(entry.title, entry.colour, _mean_accuracies(entry), counts))
    words = "Accuracy of each class, above its training images"
    return Picture(
        by_frequency(lines)[0],
        words,
        f"Lines and points. {words}, from frequent to rare; the table of every class has the figures.",
        wide=True,
    )


def _group_table(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        members = groups_of(entry.runs[0])
        worst = [np.nanmin(_mean_accuracies(entry)[some], initial=np.inf) for some in members.values()]
        cells = [
            entry.spread(lambda run, name=name: _hundred(scores(run.predictions)[name])).text(1) for name in GROUPS
        ]
        sizes = [str(some.sum()) for some in members.values()]
        for group, size, cell, least in zip(GROUPS, sizes, cells, worst, strict=True):
            rows.append([entry.title, group, size, cell, decimal(least, 1)])
    return Table("Accuracy by shot group, %", ["run", "group", "classes", "mean", "worst class"], rows)


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _class_table(entries: Sequence[Entry]) -> Table:
    """Of every class, frequent ones first."""
    first = entries[0].runs[0].predictions
    counts = first.train_counts
    order = np.arange(len(first.class_names)) if counts is None else np.argsort(-counts, kind="stable")
    accuracies = [_mean_accuracies(entry) for entry in entries]
    rows = []
    for label in order:
        cells = [decimal(values[label], 1) for values in accuracies]
        rows.append([str(first.class_names[label]), DASH if counts is None else f"{counts[label]:,}", *cells])
    return Table("Accuracy of every class, %", ["class", "training images", *(entry.title for entry in entries)], rows)
