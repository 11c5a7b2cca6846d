"""What tools/bench.py says of its measurements: ratios, what limits, and the table, for people and for programs.

Measures nothing. Invariant: every ratio is the quotient of two figures that stand in the table.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.augment import transforms
from pipelines.cores import usable_cores
from pipelines.loader import default_workers
from pipelines.records.reader import Records
from tools.benchmark.items import Row
from train.config import Config
from train.run.environment import describe_environment, device_name
from train.watch.text import markdown_table

_COLUMNS = ("", "measured", "images/s", "min to max", "cores", "images/s per core", "note")
_RATIO_COLUMNS = ("ratio of the medians", "", "min to max of a round")
_WIDTH = 150  # columns where the output is no terminal


class Ratio(NamedTuple):
    """Quotient of a figure (a property of Timing) of two rows, by their ids: of the medians, and the extremes of the rounds."""

    title: str
    over: str
    under: str
    figure: str
    value: float
    low: float
    high: float


class Report(NamedTuple):
    """All that a bench found. about: what the figures belong to; limit: data, step or transfer, and the sentence why."""

    about: dict[str, str]
    rows: list[Row]
    ratios: list[Ratio]
    limit: tuple[str, str] | None


def ratios(rows: list[Row]) -> list[Ratio]:
    """The quotients that matter, of the rows that were measured."""
    found = {row.id: row for row in rows if row.timings}
    wanted = []
    for loader in ("a.resident", "a.dali", "a.ffcv"):
        name = f"(a) {loader[2:]}"
        wanted += [
            (f"{name} / (f) stock FFCV, images/s", loader, "f.ffcv", "images_per_s"),
            (f"{name} / (f) stock FFCV, images/s per core", loader, "f.ffcv", "images_per_core_s"),
            (f"{name} / (f) DataLoader and PIL, images/s per core", loader, "f.pil", "images_per_core_s"),
            (f"{name} / (f) the same, whole recipe, images/s per core", loader, "f.pil_whole", "images_per_core_s"),
        ]
    wanted += [
        ("(c) training from disk / (b) step", "c.training", "b.step", "images_per_s"),
        ("(d) distillation from a cache / (b) step", "d.cache", "b.step", "images_per_s"),
        ("(d) distillation from a cache / (e) online", "d.cache", "e.online", "images_per_s"),
    ]
    return [
        _ratio(title, found[over], found[under], figure)
        for title, over, under, figure in wanted
        if over in found and under in found
    ]


def _ratio(title: str, over: Row, under: Row, figure: str) -> Ratio:
    each = [getattr(a, figure) / getattr(b, figure) for a, b in zip(over.timings, under.timings, strict=True)]
    return Ratio(title, over.id, under.id, figure, over.median(figure) / under.median(figure), min(each), max(each))


def limits(rows: list[Row], backend: str, on_cpu: bool) -> tuple[str, str] | None:
    """(the part, such as data, step or transfer; the sentence that says why); None when a row it needs was not measured.

    The part with the fewest images/s by itself is the limit. The speed of training checks that against all parts together.
    """
    speed = {row.id: row.median("images_per_s") for row in rows if row.timings}
    names = {"data": f"a.{backend}", "step": "b.step", "finish": "b.finish", "transfer": "b.transfer"}
    alone = {name: speed[row] for name, row in names.items() if row in speed}
    trained = speed.get("c.training")
    if trained is None or not {"data", "step", "finish"} <= alone.keys():
        return None
    figures = ", ".join(f"{name} {value:,.0f}" for name, value in alone.items())
    device = 1 / (1 / alone["step"] + 1 / alone["finish"])  # one after the other on the same device
    if on_cpu:
        promised, how = 1 / (1 / alone["data"] + 1 / device), "loader, finish and step taking turns on the cores"
    else:
        del alone["step"], alone["finish"]
        alone["finish with step"] = device
        promised, how = min(alone.values()), "the slowest of loader, transfer, and finish with step"
    least = min(alone, key=lambda name: alone[name])
    absent = [row.absent for row in rows if row.id == "b.transfer" and row.absent]
    transfer = f" (transfer: {absent[0]})" if absent else ""
    return least, (
        f"What limits: {least}. Images/s of each alone: {figures}{transfer}; training from disk {trained:,.0f}, which is "
        f"{trained / alone[least]:.1%} of {least} alone and {trained / promised:.1%} of what {how} would give."
    )


def facts(config: Config, accelerator: Accelerator, records: Records, pool: np.ndarray, backend: str) -> dict[str, str]:
    """What the figures belong to: machine, versions, records, settings."""
    environment = describe_environment(accelerator)
    revision, changed = environment.pop("git_revision", "unknown"), environment.pop("git_dirty", False)
    del environment["host"], environment["world_size"]
    device, recipe = environment.pop("device"), config.data.recipe
    width, height = np.median(records.stored_widths), np.median(records.stored_heights)
    return {
        "device": device,
        "cpu": f"{device_name(torch.device('cpu')).removeprefix('cpu: ')}, {usable_cores()} cores, "
        f"{torch.get_num_threads()} threads of torch; load average at the start {os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {value}" for name, value in environment.items() if value is not None),
        "code": revision + (" with changes" if changed else ""),
        "records": f"{records.path.name}: {len(records)} {'raw' if records.raw.all() else 'JPEG'} images of "
        f"{records.num_classes} classes, median {width:g}x{height:g}, mean {records.sizes.mean() / 1000:.1f} kB",
        "pass": f"{len(pool)} records, {len(np.unique(pool))} of them distinct; all read before: the page cache is warm",
        "recipe": ", ".join(f"{name} {value}" for name, value in transforms.identity(recipe).items()),
        "loading": f"batch {config.optim.batch}, {config.data.workers or default_workers()} workers, backend {backend}, "
        f"verify {config.data.verify}",
        "training": f"{config.model.spec(records.num_classes).architecture}, {config.distill.method}, "
        f"precision {config.precision}, compile {str(config.compile).lower()}, accumulate {config.optim.accumulate}",
    }


# ---- output ----


def _cells(row: Row) -> tuple[str, ...]:
    """A row as text; what a core yields only for loaders: a step's core may just wait for the GPU."""
    letter = row.id[0]
    if not row.timings:
        return letter, row.title, "-", "", "", "", row.absent or ""
    speeds = [timing.images_per_s for timing in row.timings]
    cores = (f"{row.median('cores'):.2f}", f"{row.median('images_per_core_s'):,.0f}") if letter in "af" else ("", "")
    rounds = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
    return letter, row.title, f"{row.median('images_per_s'):,.0f}", rounds, *cores, row.note


def _ratio_cells(ratio: Ratio) -> tuple[str, ...]:
    return ratio.title, f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"


def _tables(report: Report) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]]:
    """(titles, lines, columns of text) of each table that has lines."""
    if report.rows:
        yield _COLUMNS, [_cells(row) for row in report.rows], ("", "measured", "note")
    if report.ratios:
        yield _RATIO_COLUMNS, [_ratio_cells(ratio) for ratio in report.ratios], ("ratio of the medians",)


def show(report: Report) -> None:
    """Print a report on the screen."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for name, value in report.about.items():
        console.print(f"{name}: {escape(value)}", soft_wrap=True)
    for titles, lines, text in _tables(report):
        table = Table()
        for title in titles:
            table.add_column(title, justify="left" if title in text else "right")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
    if report.limit:
        console.print(escape(report.limit[1]), soft_wrap=True)


def to_markdown(report: Report) -> str:
    """Write a report as Markdown, for a page of results."""
    parts = ["\n".join(f"* {name}: {value}" for name, value in report.about.items())]
    for titles, lines, text in _tables(report):
        parts.append(markdown_table(titles, lines, right=set(titles) - set(text)))
    if report.limit:
        parts.append(report.limit[1])
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Every figure."""
    return {
        "about": report.about,
        "rows": [_row_json(row) for row in report.rows],
        "ratios": [ratio._asdict() for ratio in report.ratios],
        "limits": report.limit and {"by": report.limit[0], "sentence": report.limit[1]},
    }


def _row_json(row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {"id": row.id, "title": row.title, "note": row.note, "absent": row.absent}
    if row.timings:
        told |= {name: row.median(name) for name in ("images_per_s", "images_per_core_s", "cores")}
        told["rounds"] = [timing._asdict() for timing in row.timings]
    return told
