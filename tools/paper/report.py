"""The tables of tools/reproduce.py, as Markdown for people and JSON for programs: paper against ours, and the studies.

Owns the layout; the paper's figures come from datasets.py, ours from outcomes.py. Invariant: a run that was not made has a row
that says so. Accuracies are in percent.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.files import read_json
from tools.paper.datasets import METHODS, MORE, PAPER_SOURCE, RIDE_SOURCE, ROWS, Dataset
from tools.paper.jobs import Ending
from tools.paper.outcomes import (
    GROUPS,
    CacheFacts,
    Outcome,
    Spread,
    cache_facts,
    draw_of_images,
    environment_facts,
    gains,
    outcome,
    spread,
)
from tools.paper.plan import ANY_SAMPLES, STUDIES, STUDIES_DATASET, Task
from tools.reporting.tables import Table
from train.data import views_of
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE
from train.watch.text import clock, markdown_table, percent

NAMES = {name: row.title for name, row in ROWS.items()}


class Figure(NamedTuple):
    """A drawing beside the page. words: what it shows; draw: writes it as STEM.svg and STEM.png; suffix: of the page's stem."""

    words: str
    draw: Callable[[Path], object]
    suffix: str = ""


class Report(NamedTuple):
    """facts: what the figures belong to, by name; notes: sentences below the tables; data: all of it for a program."""

    title: str
    facts: dict[str, str]
    tables: list[Table]
    notes: list[str]
    data: dict[str, Any]
    figures: Sequence[Figure] = ()


class Row(NamedTuple):
    """The runs of one row, of several seeds. state: in words what is missing; empty when nothing is. accuracy: by group.

    cost: of answering for an image, as far as the runs tell it: `experts_used`, `flops`.
    """

    runs: int
    finished: int
    state: str
    accuracy: dict[str, Spread]
    wall_s: Spread
    images_per_s: Spread
    cost: dict[str, Spread]

    @property
    def groups(self) -> list[str]:
        """Accuracies as text: overall, many, medium, few, or whatever the groups are."""
        return [value.text() for value in self.accuracy.values()]

    def as_json(self) -> dict[str, Any]:
        spreads = self.accuracy | {"wall_s": self.wall_s, "images_per_s": self.images_per_s} | self.cost
        counts = {"runs": self.runs, "finished": self.finished, "state": self.state}
        return counts | {name: value._asdict() for name, value in spreads.items()}


def row_of(runs: Sequence[Outcome], groups: Sequence[str] = GROUPS) -> Row:
    finished = [run for run in runs if run.state == "finished"]
    if len(finished) == len(runs) and runs:
        state = ""
    elif finished:
        state = f"{len(finished)} of {len(runs)} seeds"
    else:
        state = "; ".join(dict.fromkeys(run.status for run in runs)) or "not run"
    accuracy = {group: spread([run.accuracy[group] for run in finished]) for group in groups}
    wall, speed = ([run.wall_s for run in finished], [run.speed.get("images_per_s") for run in finished])
    told = {name for run in finished for name in run.cost}
    cost = {name: spread([run.cost.get(name) for run in finished]) for name in sorted(told)}
    return Row(len(runs), len(finished), state, accuracy, spread(wall), spread(speed), cost)


# ---- table 1 ----


class Line(NamedTuple):
    """A row of the table: a method on a data set, and a student's gain over its own teachers."""

    dataset: Dataset
    method: str
    row: Row
    gain: Spread | None

    @property
    def paper(self) -> float | None:
        return self.dataset.paper.get(self.method)

    @property
    def paper_gain(self) -> float | None:
        teacher = self.dataset.paper.get(ROWS[self.method].teacher or "")
        return None if self.paper is None or teacher is None else self.paper - teacher

    @property
    def difference(self) -> float | None:
        ours = self.row.accuracy["top1"].mean
        return None if self.paper is None or ours is None else ours - self.paper

    def as_json(self) -> dict[str, Any]:
        dataset = self.dataset
        found: dict[str, Any] = {dataset.column: dataset.value, "method": self.method, "paper": self.paper}
        found["difference"] = self.difference
        if self.gain is not None:
            found |= {"paper_gain": self.paper_gain, "gain": self.gain._asdict()}
        return found | self.row.as_json()


def table_report(
    tasks: Sequence[Task], out: Path, endings: dict[str, Ending], facts: dict[str, str], notes: Sequence[str]
) -> Report:
    """Paper against ours, on the data sets of the tasks. facts, notes: what only the command line knows."""
    datasets = {task.dataset.name: task.dataset for task in tasks}
    runs = [outcome(task, out, endings.get(task.name)) for task in tasks if task.is_run]
    cells = {
        (method, name): [run for run in runs if (run.task.role, run.task.dataset.name) == (method, name)]
        for name in datasets
        for method in ROWS
    }
    lines = [
        Line(datasets[name], method, row_of(own), spread(gains(own, runs)) if ROWS[method].teacher else None)
        for (method, name), own in cells.items()
        if own or method in METHODS
    ]
    public = ", ".join(f"{one.public['dive']:.2f} at {one.value}" for one in datasets.values() if "dive" in one.public)
    notes = [
        draw_of_images(tasks, out),
        *notes,
        *_verdicts(lines),
        f"Paper: {PAPER_SOURCE}. The group's published code reports {public} for DiVE.",
        *([f"Paper of RIDE: {RIDE_SOURCE}."] if any(line.method in MORE for line in lines) else []),
        *([COST] if tells_cost(lines) else []),
        *_notes(runs),
        "The student of seed s learns from the teacher of seed s, through the cache of that teacher.",
    ]
    data = [line.as_json() for line in lines]
    return full_report("CIFAR-100-LT: Table 1 of the paper", tasks, out, runs, facts, notes, [_main_table(lines)], data)


def _main_table(table: Sequence[Line]) -> Table:
    columns = (table[0].dataset.column, "method", "paper", "ours", "difference", "many", "medium", "few")
    columns += ("gain over its teacher: paper", "ours", "seeds", "wall time of a run", "images/s of a run")
    with_cost = tells_cost(table)
    columns += ("experts used", "MFLOPs for an image") if with_cost else ()
    lines = []
    for line in table:
        row = line.row
        start = [str(line.dataset.value), NAMES[line.method], _figure(line.paper, ".2f")]
        if row.accuracy["top1"].mean is None or row.wall_s.mean is None:
            lines.append([*start, row.state, *[""] * (len(columns) - 4)])
            continue
        overall, *groups = row.groups
        gain = ["", ""] if line.gain is None else [_figure(line.paper_gain, "+.2f"), line.gain.text()]
        seeds = str(row.finished) + (f" ({row.state})" if row.state else "")
        rest = [seeds, clock(row.wall_s.mean), row.images_per_s.text(0), *(_cost_cells(row) if with_cost else ())]
        lines.append([*start, overall, _figure(line.difference, "+.2f"), *groups, *gain, *rest])
    return Table("Paper against ours", columns, lines)


def tells_cost(table: Sequence[Line]) -> bool:
    """Whether any row of a network with experts says what an answer costs: others have no columns for it."""
    return any("experts_used" in line.row.cost for line in table)


def _cost_cells(row: Row) -> list[str]:
    used, flops = (row.cost.get(name) for name in ("experts_used", "flops"))
    return [
        "" if used is None else used.text(),
        "-" if flops is None or flops.mean is None else f"{flops.mean / 1e6:,.1f}",
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _verdicts(table: Sequence[Line]) -> Iterator[str]:
    """A sentence for each data set of which all methods were run with the same seeds."""
    for dataset in {line.dataset.name: line.dataset for line in table}.values():
        own = {line.method: line.row for line in table if line.dataset.name == dataset.name and line.method in METHODS}
        means = [row.accuracy["top1"].mean for row in own.values()]
        known = [value for value in means if value is not None]
        if len(known) < len(means) or any(row.state for row in own.values()):
            continue
        figures = ", ".join(f"{NAMES[method]} {value:.2f}" for method, value in zip(own, known, strict=True))
        ordered = known == sorted(known) and len(set(known)) == len(known)
        verdict = f"{'in' if ordered else 'NOT in'} the paper's order, CE < BSCE < DiVE."
        yield f"{dataset.label.capitalize()}: {figures}: {verdict}"


# ---- the studies ----


def studies_report(
    tasks: Sequence[Task],
    out: Path,
    endings: dict[str, Ending],
    facts: dict[str, str],
    notes: Sequence[str],
    given: Path | None,
) -> Report:
    """Sources of targets and temperatures side by side. given: the folder of a teacher that was not trained here."""
    runs = [outcome(task, out, endings.get(task.name)) for task in tasks if task.is_run]
    by_name = {task.name: task for task in tasks}
    lines, data = [], []
    for role in ("bsce", *STUDIES):
        own = [run for run in runs if run.task.role == role]
        if not own:
            continue
        row, settings = row_of(own), own[0].task.settings
        needed = [by_name[name] for run in own for name in run.task.needs if name in by_name]
        caches = [found for task in needed if task.kind == "cache" and (found := cache_facts(task, out))]
        taus = [] if role == "bsce" else sorted({run.tau for run in own if run.tau is not None})
        power, views, title = settings.distill.p, views_of(settings, ANY_SAMPLES), STUDIES.get(role, "the teacher")
        lines.append(_study_line(title, taus, None if role == "bsce" else power, views, row, caches))
        found = {"role": role, "tau": taus, "p": power, "views": views, "caches": [one._asdict() for one in caches]}
        data.append(found | row.as_json())
    if given is not None:
        facts = facts | {"teacher": _given_teacher(given)}
    notes = [
        draw_of_images(tasks, out),
        *notes,
        "One setting differs from row to row; teacher, seed, recipe and schedule are the same. A cache is written once and "
        "serves any number of students: the time to write it stands beside a student's own and is not in it.",
        *_notes(runs),
    ]
    columns = ("", "tau", "p", "T = tau / p", "V", "overall", "many", "medium", "few")
    columns += ("wall time of a run", "images/s", "its cache: written in", "size")
    tables = [Table("Side by side", columns, lines)]
    title = f"CIFAR-100-LT, {STUDIES_DATASET.label}: sources of targets, and temperatures"
    return full_report(title, tasks, out, runs, facts, notes, tables, data)


def _study_line(
    title: str, taus: Sequence[float], power: float | None, views: int, row: Row, caches: Sequence[CacheFacts]
) -> list[str]:
    texts = ["", "", ""]
    if power is not None:
        total = ", ".join(f"{tau / power:g}" for tau in taus)
        texts = [", ".join(f"{tau:g}" for tau in taus), f"{power:g}", total]
    if row.wall_s.mean is None:
        return [title, *texts, str(views), row.state, *[""] * 7]
    written = spread([cache.seconds for cache in caches]).mean
    size = ["", ""]
    if written is not None:
        bound = "" if all(cache.timed_whole for cache in caches) else "more than "
        size = [bound + clock(written), f"{spread([cache.megabytes for cache in caches]).mean:,.0f} MB"]
    speed = [clock(row.wall_s.mean), row.images_per_s.text(0)]
    return [title, *texts, str(views), *row.groups, *speed, *size]


def _given_teacher(folder: Path) -> str:
    figures = read_json(folder / "result.json")
    tested = f"top-1 {100 * figures['test']['top1']:.2f}" if "test" in figures else "not tested"
    return f"{folder.name}, given: {figures['epochs']} epochs, {tested}"


# ---- what all have ----

WALL_TIME = (
    "Wall time: sum of a run's sessions in its run.json, with evaluations and checkpoints, caches apart; a session that was "
    "killed ends with its last figures. images/s: of the training steps of the last session."
)


COST = (
    "experts used: for the mean test image; all of them where there are no routers. MFLOPs: millions of floating-point "
    "operations of convolutions and matrix products, a multiply-add counting as two; with routers, for the mean test image."
)


def accuracy_note(runs: Sequence[Outcome]) -> str:
    images = max((run.test_images for run in runs), default=0)
    return f"Accuracies are top-1 in percent on the balanced test set ({images:,} images), last epoch: nothing was selected."


def _notes(runs: Sequence[Outcome]) -> list[str]:
    """How the figures of Table 1 and the studies are to be read."""
    return [
        accuracy_note(runs),
        f"many, medium, few: classes with more than {MANY_ABOVE}, {FEW_BELOW} to {MANY_ABOVE}, fewer than {FEW_BELOW} training "
        "images; unweighted means of the accuracies of their classes.",
        "± is the standard deviation over seeds (n - 1). `seed` sets initialisation and order of every run. `data.seed` (the "
        "crops and flips) is the configurations': 1 for CE and teachers, 0 for students and caches, so that no teacher is asked "
        "about the crops it was trained on.",
        WALL_TIME,
    ]


def full_report(
    title: str,
    tasks: Sequence[Task],
    out: Path,
    runs: Sequence[Outcome],
    facts: dict[str, str],
    notes: Sequence[str],
    tables: Sequence[Table],
    rows: Sequence[dict[str, Any]],
    groups: Sequence[str] = GROUPS,
    figures: Sequence[Figure] = (),
) -> Report:
    """The report with what all have: facts of the machine, a table of the runs by themselves, the caches."""
    caches = [found for task in tasks if task.kind == "cache" and (found := cache_facts(task, out))]
    facts = environment_facts(runs) | facts
    data = {"facts": facts, "rows": rows, "runs": [run.as_json() for run in runs]}
    data["caches"] = [cache._asdict() for cache in caches]
    lines = [(f"`{one.name}`", str(one.views), f"{one.megabytes:,.0f} MB", one.written_in) for one in caches]
    cache_tables = [Table("Caches", ("cache", "views", "size", "written in"), lines)] if lines else []
    return Report(title, facts, [*tables, _runs_table(runs, groups), *cache_tables], list(notes), data, figures)


def _runs_table(runs: Sequence[Outcome], groups: Sequence[str]) -> Table:
    """Each run by itself, of those that were begun."""
    names = ["overall" if group == "top1" else group for group in groups]
    columns = ("run", "seed", *names, "wall time", "sessions", "images/s", "of its ceiling", "peak memory")
    lines = []
    for run in runs:
        if run.state == "not run" and not run.words:
            continue
        start = [f"`{run.task.name}`", str(run.task.seed)]
        if run.state != "finished":
            lines.append([*start, run.status, *[""] * (len(columns) - 3)])
            continue
        figures = ["-" if run.accuracy[group] is None else f"{run.accuracy[group]:.2f}" for group in groups]
        speed, share, memory = (run.speed.get(name) for name in ("images_per_s", "of_ceiling", "peak_memory_gb"))
        ends = ["-" if speed is None else f"{speed:,.0f}", percent(share, 0)]
        ends.append("-" if memory is None else f"{memory:.1f} GB")
        lines.append([*start, *figures, clock(run.wall_s), str(len(run.sessions)), *ends])
    return Table("Runs", columns, lines)


def to_markdown(report: Report, stem: str = "") -> str:
    """Write a report as the page that is kept in docs/results; stem: of its file and those of its figures."""
    parts = [f"# {report.title}", "\n".join(f"* {name}: {value}" for name, value in report.facts.items())]
    parts += [f"![{figure.words}]({stem}{figure.suffix}.svg)" for figure in report.figures]
    for table in report.tables:
        parts += [f"## {table.title}", markdown_table(table.columns, table.rows)]
    parts += ["## How to read this", "\n".join(f"* {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"
