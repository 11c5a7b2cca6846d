"""The course of each training: loss and its parts, learning rate, and the accuracies of its evaluations.

Owns reading metrics.jsonl of finished and unfinished runs. Invariant: a curve has at most POINTS points; a longer one is shown by
the means of equal stretches.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.errors import UserError
from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.section import DASH, Material, Picture, Section, legend_of, plot
from tools.reporting.tables import Table

POINTS = 400
_NOT_PARTS = {
    *(
        "step",
        "epoch",
        "lr",
        "loss",
        "images_per_s",
        "ceiling_images_per_s",
        "of_ceiling",
        "data_wait",
        "peak_memory_gb",
    ),
    "first_step_s",
}


class Curve(NamedTuple):
    """Values [n] over epochs [n]."""

    epochs: np.ndarray
    values: np.ndarray

    @property
    def marker(self) -> str:
        """A line through one point would not be seen."""
        return "o" if len(self.values) == 1 else ""


def lines_of(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file. The last line of a killed run may be cut off."""
    path = None if run.folder is None else run.folder / "metrics.jsonl"
    if path is None or not path.is_file():
        return []
    texts = path.read_text(errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise UserError(f"{path} is damaged: line {number} is not JSON") from error
    return [line for line in lines if isinstance(line, dict)]


def curve(lines: Sequence[dict[str, Any]], name: str) -> Curve | None:
    """A figure of the logging steps; None where it is never there."""
    found = [(line["epoch"], line[name]) for line in lines if line.get(name) is not None and "epoch" in line]
    if not found:
        return None
    epochs, values = np.array(found, float).T
    if len(epochs) > POINTS:
        stretch = np.arange(len(epochs)) * POINTS // len(epochs)
        sizes = np.bincount(stretch)
        epochs, values = (np.bincount(stretch, row) / sizes for row in (epochs, values))
    return Curve(epochs, values)


def section(material: Material) -> Section:
    lines = {run.title: lines_of(run) for run in material.runs}
    if not any(lines.values()):
        raise UserError("no run has a metrics.jsonl: exports and files of predictions have none")
    entries = material.entries
    logged = list(
        dict.fromkeys(
            name
            for one in lines.values()
            for line in one
            if "loss" in line  # else an evaluation
            for name in line
            if name not in _NOT_PARTS
        )
    )
    figures = []
    for name, words in {
        "loss": "Training loss",
        **{part: f"Part of the loss: {part}" for part in logged},
        "lr": "Learning rate",
    }.items():
        picture = _picture(entries, lines, name, words)
        figures += [picture] if picture else []
    evaluated = _evaluations(material, lines)
    if evaluated is not None:
        figures.append(_accuracy_picture(entries, evaluated))
    absent = [title for title, one in lines.items() if not one]
    return Section(
        title="Curves",
        intro="Losses of different methods are different quantities: their shapes compare, their heights do not.",
        tables=[
            _last(material.runs, lines, ["loss", *logged, "lr"]),
            *([] if evaluated is None else [_table(material.runs, evaluated)]),
        ],
        figures=figures,
        notes=[f"No metrics.jsonl: {', '.join(absent)}."] * bool(absent),
        legend=legend_of([entry for entry in entries if any(lines[run.title] for run in entry.runs)]),
    )


def _picture(entries: Sequence[Entry], lines: dict[str, list[dict[str, Any]]], name: str, words: str) -> Picture | None:
    figure, axes = plot()
    drawn: list[str] = []
    for number, entry in enumerate(entries):
        for run in entry.runs:
            found = curve(lines[run.title], name)
            if found is None:
                continue
            # Equal schedules lie on top of each other: the lower lines are wider.
            width = 1.2 + (3 * (len(entries) - 1 - number) if name == "lr" else 0)
            line = {"linestyle": entry.line, "linewidth": min(width, 8), "solid_capstyle": "butt"}
            axes.plot(*found, color=entry.colour, marker=found.marker, **line)
            drawn.append(f"{run.title} from {found.values[0]:.4g} to {found.values[-1]:.4g}")
    if not drawn:
        return None
    axes.set_xlabel("epoch")
    if name == "lr":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return Picture(figure, words, f"{words} over epochs: {'; '.join(drawn)}")


class Evaluations(NamedTuple):
    """split: val or test; found: run's title -> {epoch: top-1 as a fraction}."""

    split: str
    found: dict[str, dict[float, float]]


def _evaluations(material: Material, lines: dict[str, list[dict[str, Any]]]) -> Evaluations | None:
    """Of the split that most runs were evaluated on in training, and at the end."""
    best: Evaluations | None = None
    for split in ("val", "test"):
        found = {}
        for run in material.runs:
            during = {line["epoch"]: line[split]["top1"] for line in lines[run.title] if split in line}
            result = run.json("result.json")
            last = (result.get(split) or {}).get("top1")
            end = round(float(result.get("epochs") or 0), 4)  # as the lines have it
            if during and last is not None and end > max(during):
                during[end] = last
            if during := {epoch: top1 for epoch, top1 in during.items() if top1 is not None}:
                found[run.title] = during
        if found and (best is None or len(found) > len(best.found)):
            best = Evaluations(split, found)
    return best


def _accuracy_picture(entries: Sequence[Entry], evaluated: Evaluations) -> Picture:
    figure, axes = plot()
    drawn = []
    for entry in entries:
        for run in entry.runs:
            if found := evaluated.found.get(run.title):
                epochs, top1 = list(found), [100 * value for value in found.values()]
                axes.plot(epochs, top1, entry.line, color=entry.colour, linewidth=1.4, marker="o", markersize=3.5)
                drawn.append(f"{run.title} ends at {top1[-1]:.2f} %")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1, %")
    words = f"Top-1 on the {evaluated.split} split"
    return Picture(figure, words, f"{words} over epochs: {'; '.join(drawn)}")


def _last(runs: Sequence[Run], lines: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> Table:
    rows = []
    for run in runs:
        logged = [line for line in lines[run.title] if "loss" in line]
        last = logged[-1] if logged else {}
        cells = [DASH if last.get(name) is None else f"{last[name]:.4g}" for name in names]
        rows.append([run.title, f"{last['epoch']:g}" if last else DASH, *cells])
    return Table("The last logging step", ["run", "epoch", *names], rows)


def _table(runs: Sequence[Run], evaluated: Evaluations) -> Table:
    shown = [run.title for run in runs if run.title in evaluated.found]
    epochs = sorted({epoch for found in evaluated.found.values() for epoch in found})
    rows = [
        [
            f"{epoch:g}",
            *(DASH if (top1 := evaluated.found[title].get(epoch)) is None else f"{100 * top1:.2f}" for title in shown),
        ]
        for epoch in epochs
    ]
    return Table(f"Top-1 on the {evaluated.split} split, %", ["epoch", *shown], rows)
