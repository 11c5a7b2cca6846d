"""The report of `tools/logits.py flatness`: a table, a picture and JSON of a teacher's virtual examples.

Owns how the distribution is shown; pipelines/logits/flatness.py computes it and holds the rule, train/evaluation/metrics.py says
what many-, medium- and few-shot mean. Shapes: C classes, T temperatures.
"""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic, write_json_atomic
from pipelines.logits import LogitCache
from pipelines.logits.codec import certified_loss
from pipelines.logits.flatness import TEMPERATURES, Recommendation, entropy, recommend, tail_to_head, virtual_examples
from pipelines.logits.folder import open_folder
from pipelines.logits.reader import LOSS_BUDGET
from pipelines.records.reader import Records
from train.evaluation.metrics import shot_groups

_WIDTH, _UNLIMITED = 150, 10_000  # columns where the output is no terminal; more than any table has
_DRAWN = (1.0, 3.0, 6.0, 20.0)  # curves per class; more would hide each other


class Report(NamedTuple):
    """virtual: float64 [T, C] at TEMPERATURES; counts: training images, int64 [C]; losses: certified, [T]."""

    cache: LogitCache
    counts: np.ndarray
    virtual: np.ndarray
    losses: list[float]
    recommended: Recommendation
    p: float
    views: int

    @property
    def by_frequency(self) -> np.ndarray:
        """Classes int64 [C] from frequent to rare, ties in label order."""
        return np.argsort(-self.counts, kind="stable")


def measure(cache: LogitCache, records: Records | None, p: float, views: int, device: torch.device) -> Report:
    """The distribution over a student's training records: `records`, or all of the cache's samples."""
    if views > cache.views:
        raise UserError(f"--views {views}: cache {cache.folder} holds {cache.views}; give at most that")
    names = cache.identity["dataset"]["class_names"]
    if records is None:
        rows = open_folder(cache.folder).rows
        keys, counts = rows["key"], np.bincount(rows["label"], minlength=len(names))
    elif records.class_names == names:
        keys, counts = records.keys, records.class_counts
    else:
        raise UserError(f"--data {records.path} has other classes than cache {cache.folder}; name its records")
    virtual = virtual_examples(cache, keys, TEMPERATURES, views, device)
    losses = [certified_loss(cache.certificate, temperature) for temperature in TEMPERATURES]
    return Report(cache, counts, virtual, losses, recommend(virtual, counts), p, views)


def group_means(values: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """Mean over the classes of each shot group; None where a group is empty."""
    return {
        group: float(values[members].mean()) if members.any() else None
        for group, members in shot_groups(counts).items()
    }


# ---- table ----


def show(report: Report, classes: bool, console: Console) -> None:
    """Print the table (of every class too, if asked for) and the recommendation."""
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(
        title=f"mean virtual examples per class, p = {report.p:g}",
        caption="tail/head: the rarest third of classes over the most frequent third",
    )
    groups = [f"{group}\n{members.sum()}" for group, members in shot_groups(report.counts).items()]
    for column in ("T =\ntau/p", "tau", *groups, "tail/\nhead", "entropy\nnats", "of\nlog C", "codec\nloses"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("images", "", *_distribution(report.counts.astype(float), report.counts), "")
    for temperature, virtual, loss in zip(TEMPERATURES, report.virtual, report.losses, strict=True):
        style = "bold" if temperature == report.recommended.temperature else ""
        lost = (f"{loss:.3%}" if math.isfinite(loss) else "unknown") + (" !" if loss > LOSS_BUDGET else "")
        tau = f"{temperature * report.p:g}"
        table.add_row(f"{temperature:g}", tau, *_distribution(virtual, report.counts), lost, style=style)
    tables = [table, *([_class_table(report)] if classes else [])]
    for one in tables:
        # A narrower terminal breaks the lines, in which every digit stands.
        least = console.measure(one, options=console.options.update(width=_UNLIMITED)).minimum
        console.width = max(console.width, least)
        console.print(one)
    console.print(f"{report.cache.folder}: " + _summary(report), markup=False, highlight=False, soft_wrap=True)


def _distribution(values: np.ndarray, counts: np.ndarray) -> list[str]:
    """The cells that describe one distribution over classes [C]."""
    means = ["-" if mean is None else f"{mean:.1f}" for mean in group_means(values, counts).values()]
    nats = float(entropy(values))
    return [*means, f"{tail_to_head(values, counts):.3f}", f"{nats:.3f}", f"{_of_log_c(nats, len(counts)):.1%}"]


def _of_log_c(nats: float, classes: int) -> float:
    return nats / math.log(classes) if classes > 1 else 1.0


def _class_table(report: Report) -> Table:
    table = Table(title="virtual examples of every class, at T = tau/p")
    table.add_column("class")
    for column in ("images", *(f"{temperature:g}" for temperature in TEMPERATURES)):
        table.add_column(column, justify="right", no_wrap=True)
    names = report.cache.identity["dataset"]["class_names"]
    for label in report.by_frequency:
        figures = [f"{value:.1f}" for value in report.virtual[:, label]]
        name = names[label].encode("utf-8", "replace").decode()  # as a folder may be named
        table.add_row(escape(name), str(report.counts[label]), *figures)
    return table


def _summary(report: Report) -> str:
    """What was counted, what is recommended in both spellings, and what stands against it."""
    temperature, flat = report.recommended
    spellings = [f"distill.tau={temperature * report.p:g} distill.p={report.p:g}"]
    if report.p != 1:
        spellings.append(f"distill.tau={temperature:g} distill.p=1")
    advice = f"recommended: T = {temperature:g}, that is {' or '.join(spellings)}"
    if not flat:
        ratio = tail_to_head(report.virtual[-1], report.counts)
        advice += (
            f"; no T up to {temperature:g} lifts the rarest third of classes to the most frequent third "
            f"({ratio:.2f} of it there), so this is the largest of the grid"
        )
    notes = [
        f"{report.counts.sum():,} images under {report.views} of {report.cache.views} views",
        advice,
    ]
    over = [f"{t:g}" for t, loss in zip(TEMPERATURES, report.losses, strict=True) if loss > LOSS_BUDGET]
    if over:
        notes.append(
            f"codec {report.cache.identity['codec']} loses more than the {LOSS_BUDGET:.0%} that training allows at T = "
            f"{', '.join(over)} (marked !): for these write a cache with cache.codec=f32"
        )
    return "; ".join(notes)


# ---- files ----


def write_json(report: Report, path: Path) -> None:
    """Every number of the report; a codec's loss beyond what is certified is null."""
    temperature, flat = report.recommended
    rows: list[dict[str, Any]] = []
    for t, virtual, loss in zip(TEMPERATURES, report.virtual, report.losses, strict=True):
        nats = float(entropy(virtual))
        rows.append(
            {
                "T": t,
                "tau": t * report.p,
                **group_means(virtual, report.counts),
                "tail_to_head": float(tail_to_head(virtual, report.counts)),
                "entropy_nats": nats,
                "entropy_of_log_classes": _of_log_c(nats, len(virtual)),
                "certified_loss": loss if math.isfinite(loss) else None,
                "classes": virtual.tolist(),
            }
        )
    value = {
        "cache": report.cache.folder.name,
        "views": report.views,
        "p": report.p,
        "class_names": report.cache.identity["dataset"]["class_names"],
        "images": report.counts.tolist(),
        "distributions": rows,
        "recommended": {"T": temperature, "tau": temperature * report.p, "p": report.p, "flat": flat},
    }
    try:
        write_json_atomic(path, value)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from error


def draw(report: Report, path: Path) -> None:
    """A PNG: virtual examples class by class from frequent to rare, and the bars of many, medium and few."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--png needs matplotlib; type: pip install matplotlib") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    order = report.by_frequency
    left.plot(report.counts[order], color="0.4", linewidth=2, label="images")
    drawn = sorted({*_DRAWN, report.recommended.temperature})
    for temperature in drawn:
        name = f"T = {temperature:g}" + (" (recommended)" if temperature == report.recommended.temperature else "")
        left.plot(report.virtual[TEMPERATURES.index(temperature)][order], label=name, linewidth=1.2)
    left.set_yscale("log")
    left.set_xlabel("classes, from frequent to rare")
    left.set_ylabel("virtual examples")
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    _bars(report, right)
    buffer = io.BytesIO()
    figure.suptitle(f"{report.cache.folder.name}: virtual examples by temperature T = tau/p")
    figure.savefig(buffer, format="png", dpi=130)
    try:
        write_bytes_atomic(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"--png {path}: cannot be written: {error.strerror}") from error


def _bars(report: Report, axes: Any) -> None:
    """Mean virtual examples per class of each shot group, beside the images."""
    names = ["images", *(f"{temperature:g}" for temperature in TEMPERATURES)]
    means = [group_means(values, report.counts) for values in (report.counts, *report.virtual)]
    groups = [group for group, members in shot_groups(report.counts).items() if members.any()]
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        heights = [mean[group] for mean in means]
        axes.bar(np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width, heights, width, label=group)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("T = tau/p")
    axes.set_ylabel("mean per class")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="y")
