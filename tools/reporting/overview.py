"""The report's first section: what the runs are, and how well they do.

Owns the table of results and what is told of each run; scores.py computes the figures. Invariant: all figures are of the same
split, from the predictions of each run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.errors import printable
from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.scores import FIGURES, scores
from tools.reporting.section import DASH, Material, Section
from tools.reporting.tables import Table
from tools.reporting.together import notes_on_checkpoints, notes_on_records
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE
from train.run.lock import status_of

_HEADINGS = [shown.heading for shown in FIGURES.values()]


def section(material: Material) -> Section:
    several = any(len(entry.runs) > 1 for entry in material.entries)
    tables = [results(material.entries, material.split, several)]
    if several:
        tables.append(
            Table("Results of each run", ["run", *_HEADINGS], [[run.title, *_cells([run])] for run in material.runs])
        )
    described, same = _descriptions(material.runs, material.split)
    tables += described
    notes = [
        *same,
        *_of_seeds(material.entries),
        *(f"{note}." for note in (*notes_on_checkpoints(material.runs), *notes_on_records(material.runs))),
        *_of_trainings(material),
    ]
    return Section(title="Runs", intro=_intro(material), tables=tables, notes=notes)


def _intro(material: Material) -> str:
    sizes = sorted({len(run.predictions.labels) for run in material.runs})
    return (
        f"Figures are of the {material.split} split ({' or '.join(f'{size:,}' for size in sizes)} images), from the logits of "
        "each run. “all” is the share of images classified rightly; many, medium and few are means over the classes with more "
        f"than {MANY_ABOVE}, with {FEW_BELOW} to {MANY_ABOVE} and with fewer than {FEW_BELOW} training images; balanced is the "
        "mean over all classes."
    )


def results(entries: Sequence[Entry], split: str, several: bool) -> Table:
    """All figures, mean ± standard deviation of the runs of an entry; several: with a column for their seeds."""
    rows = []
    for entry in entries:
        seeds = [", ".join(map(str, entry.seeds)) or DASH] if several else []
        rows.append([printable(entry.title), *seeds, *_cells(entry.runs)])
    return Table(f"Results on the {split} split", ["run", *(["seeds"] if several else []), *_HEADINGS], rows)


def _cells(runs: Sequence[Run]) -> list[str]:
    entry = Entry(title="", runs=runs, varies=(), colour="", line="")
    cells = []
    for name, shown in FIGURES.items():
        found = entry.spread(lambda run, name=name, by=shown.factor: _times(scores(run.predictions)[name], by))
        cells.append(DASH if found.mean is None else found.text(shown.decimals))
    return cells


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


# ---- what they are ----


def _descriptions(runs: Sequence[Run], split: str) -> tuple[list[Table], list[str]]:
    """(a table of what differs, a note on what is the same in all runs); each is empty where there is nothing"""
    rows = [_described(run, split) for run in runs]
    same = [name for name in rows[0] if len(runs) > 1 and len({row[name] for row in rows}) == 1]
    shown = [name for name in rows[0] if name not in same]
    cells = [[run.title, *(row[name] for name in shown)] for run, row in zip(runs, rows, strict=True)]
    tables = [Table("What they are", ["run", *shown], cells)] * bool(shown)
    told = "; ".join(f"{name} {rows[0][name]}" for name in same if rows[0][name] != DASH)
    return tables, [f"The same in all: {told}."] * bool(told)


def _described(run: Run, split: str) -> dict[str, str]:
    config, result, record = run.config, run.json("result.json"), run.json("run.json")
    found = {"method": run.predictions.method or DASH}
    names = (
        "network",
        "operations per image",
        "experts used",
        "trained for",
        "trained on",
        "training images",
        "date",
        "device",
        "state",
    )
    if config is None:
        state = "predictions" if run.predictions.weights else "predictions of another program"
        return found | dict.fromkeys(names, DASH) | {"training images": _images(run), "state": state}
    sessions: list[dict[str, Any]] = record.get("sessions", [])
    devices = dict.fromkeys(str(one["environment"].get("device", DASH)) for one in sessions)
    days = [str(one["started"])[:10] for one in sessions]
    values = (
        config.model.name,
        *_cost(result.get(split) or run.json(f"evaluation_{split}.json")),
        _length(run, result),
        config.data.train or DASH,
        _images(run),
        " to ".join(dict.fromkeys([*days[:1], *days[-1:]])) or DASH,
        ", ".join(devices) or DASH,
        _state(run, record),
    )
    return found | dict(zip(names, values, strict=True))


def _length(run: Run, result: dict[str, Any]) -> str:
    assert run.config is not None
    if run.step is not None:
        return f"{run.step:,} steps so far"
    epochs = result.get("epochs", run.config.schedule.epochs)
    parts = [f"{epochs:g} epochs"] if epochs is not None else []
    return ", ".join([*parts, *([f"{result['steps']:,} steps"] if "steps" in result else [])]) or DASH


def _cost(figures: dict[str, Any]) -> tuple[str, str]:
    """(operations for an image, of a network with routers of the mean image; how many of its experts answered)"""
    routed, used = figures.get("flops_routed"), figures.get("experts_used")
    total = f"{figures['flops'] / 1e9:.4g} GFLOP" if "flops" in figures else DASH
    operations = total if routed is None else f"{routed / 1e9:.4g} GFLOP, {total} where all experts answer"
    if used is None:
        return operations, DASH
    groups = {name: figures.get(f"experts_used_{name}") for name in ("many", "medium", "few")}
    told = ", ".join(f"{name} {DASH if value is None else f'{value:.2f}'}" for name, value in groups.items())
    return operations, f"{used:.2f} of {len(figures['expert_shares'])} ({told})"


def _images(run: Run) -> str:
    counts = run.predictions.train_counts
    return (
        DASH if counts is None else f"{counts.sum():,} of {len(counts)} classes, {counts.max():,} to {counts.min():,}"
    )


def _state(run: Run, record: dict[str, Any]) -> str:
    if not record:
        return "export"
    assert run.folder is not None
    return status_of(run.folder, str(record.get("status", DASH)))


# ---- notes ----


def _of_seeds(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        if len(entry.runs) > 1:
            yield (
                f"{entry.title} is {len(entry.runs)} runs: mean ± standard deviation (n − 1) over the seeds "
                f"{', '.join(map(str, entry.seeds))}. The settings that differ among them: {', '.join(entry.varies)}."
            )


def _of_trainings(material: Material) -> Iterator[str]:
    """Where the evaluation at the end of the training counted a few images otherwise."""
    ended = []
    for run in material.runs:
        own = (run.json("result.json").get(material.split) or {}).get("top1")
        if own is not None and own != scores(run.predictions)["top1"]:
            ended.append(f"{run.title} {100 * own:.2f}")
    if ended:
        yield (
            f"result.json, from the end of the training, has another “all”: {', '.join(ended)}. The same weights round otherwise "
            "when they are compiled, in another precision, on another device or decoded by another backend."
        )
