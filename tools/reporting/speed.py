"""How fast the runs trained, and how long they took."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.errors import UserError
from tools.reporting.accuracy import seconds
from tools.reporting.curves import curve, lines_of
from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.section import DASH, Material, Picture, Section, legend_of, plot
from tools.reporting.tables import Table
from train.watch.text import clock

_COLUMNS = [
    "run",
    "images/s",
    "waiting for data",
    "share of ceiling",
    "memory",
    "wall time",
    "sessions",
    "processes",
    "device",
]


def section(material: Material) -> Section:
    lines = {run.title: lines_of(run) for run in material.runs}
    trained = [run for run in material.runs if run.json("run.json") or lines[run.title]]
    if not trained:
        raise UserError("no run.json: exports and files of predictions do not hold what the training took")
    others = [run.title for run in material.runs if run not in trained]
    picture = _picture(material.entries, lines)
    return Section(
        title="Speed and time",
        intro=(
            "Images per second, waiting and memory are those of the last session, evaluations and the first step left out; an "
            "unfinished run's are those of its last logging step. The ceiling is the training step alone, on a batch that stays "
            "on the device. Wall time is that of all sessions that have ended."
        ),
        tables=[Table("Speed and time", _COLUMNS, [_row(run, lines[run.title]) for run in trained])],
        figures=[picture] if picture else [],
        notes=[f"Not known of {', '.join(others)}."] * bool(others),
        legend=legend_of(material.entries) if picture else [],
    )


def _row(run: Run, lines: Sequence[dict[str, Any]]) -> list[str]:
    result, record = run.json("result.json"), run.json("run.json")
    logged = [line for line in lines if "images_per_s" in line]
    speed = result.get("speed") or (logged[-1] if logged else {})
    sessions = record.get("sessions", [])
    processes = dict.fromkeys(str(one["environment"].get("world_size", DASH)) for one in sessions)
    devices = dict.fromkeys(str(one["environment"].get("device", DASH)) for one in sessions)
    spent = seconds(run.folder) if run.folder is not None and record else 0
    return [
        run.title,
        _text(speed.get("images_per_s"), "{:,.0f}"),
        _text(speed.get("data_wait"), "{:.1%}"),
        _text(speed.get("of_ceiling"), "{:.0%}"),
        _text(speed.get("peak_memory_gb"), "{:.2f} GB"),
        clock(spent) if spent else DASH,
        str(len(sessions)) if sessions else DASH,
        ", ".join(processes) or DASH,
        ", ".join(devices) or DASH,
    ]


def _text(value: float | None, form: str) -> str:
    return DASH if value is None else form.format(value)


def _picture(entries: Sequence[Entry], lines: dict[str, list[dict[str, Any]]]) -> Picture | None:
    figure, axes = plot()
    drawn = []
    for entry in entries:
        for run in entry.runs:
            if found := curve(lines[run.title], "images_per_s"):
                axes.plot(*found, entry.line, color=entry.colour, linewidth=1.2, marker=found.marker)
                drawn.append(f"{run.title} {np.median(found.values):,.0f} in the median")
    if not drawn:
        return None
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("images/s")
    return Picture(figure, "Images per second", f"Images per second over epochs: {'; '.join(drawn)}")
