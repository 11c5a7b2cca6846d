"""The tables of tools/reproduce.py, as Markdown for people and JSON for programs: paper against ours, and the studies.

Owns the paper's figures and the layout; ours come from reproduce_outcomes.py. Invariant: what was not run has a row that says
so. Accuracies are in percent.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.files import read_json
from tools.reproduce_jobs import Ending, clock
from tools.reproduce_outcomes import (
    GROUPS,
    CacheFacts,
    Outcome,
    Spread,
    cache_facts,
    environment_facts,
    gains,
    outcome,
    spread,
    total_images_per_s,
)
from tools.reproduce_plan import IMBALANCES, METHODS, STUDIES, Task, views_of
from train.metrics import FEW_BELOW, MANY_ABOVE

# Top-1 in percent on CIFAR-100-LT, ResNet-32, 200 epochs: (method, imbalance).
PAPER_SOURCE = "He, Wu, Wei, ICCV 2021 (arXiv 2103.15042), Table 1"
PAPER = {
    **{("ce", 100): 38.35, ("ce", 50): 42.41, ("ce", 10): 56.51},
    **{("bsce", 100): 42.39, ("bsce", 50): 47.60, ("bsce", 10): 58.38},
    **{("dive", 100): 45.35, ("dive", 50): 51.13, ("dive", 10): 62.00},
}
PUBLIC_CODE = {("dive", 100): 45.52, ("dive", 50): 50.83}  # what the group's published code reports
NAMES = {"ce": "CE", "bsce": "BSCE", "dive": "DiVE"}


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Report(NamedTuple):
    """facts: what the figures belong to, by name; notes: sentences below the tables; data: all of it for a program."""

    title: str
    facts: dict[str, str]
    tables: list[Table]
    notes: list[str]
    data: dict[str, Any]


# ---- table 1 ----


def table_report(
    tasks: Sequence[Task], out: Path, endings: dict[str, Ending], facts: dict[str, str], notes: Sequence[str]
) -> Report:
    """Paper against ours. facts, notes: what only the command line knows."""
    runs = [outcome(task, out, endings.get(task.name)) for task in tasks if task.is_run]
    caches = [cache_facts(task, out) for task in tasks if task.kind == "cache"]
    rows = [_table_row(method, imbalance, runs) for imbalance in IMBALANCES for method in METHODS]
    total = total_images_per_s(runs)
    if total is not None:
        facts = facts | {"images/s in total": f"{total:,.0f}, evaluations included, while at least one run was at work"}
    facts = environment_facts(runs) | facts
    public = ", ".join(f"{value:.2f} at {imbalance}" for (_, imbalance), value in PUBLIC_CODE.items())
    notes = [
        *notes,
        *_verdicts(rows),
        f"Paper: {PAPER_SOURCE}. The group's published code reports {public} for DiVE.",
        *common_notes(runs),
    ]
    tables = [_main_table(rows), runs_table(runs), *cache_table(caches)]
    data = {"rows": rows, "total_images_per_s": total}
    return Report("CIFAR-100-LT: Table 1 of the paper", facts, tables, notes, data | _common_data(runs, caches, facts))


def _table_row(method: str, imbalance: int, runs: Sequence[Outcome]) -> dict[str, Any]:
    own = [run for run in runs if (run.task.role, run.task.imbalance) == (method, imbalance)]
    finished = [run for run in own if run.state == "finished"]
    paper = PAPER[method, imbalance]
    row: dict[str, Any] = {"imbalance": imbalance, "method": method, "paper": paper}
    row |= {"seeds": len(own), "finished": len(finished), "state": _state(own)}
    row |= {group: spread([run.accuracy[group] for run in finished])._asdict() for group in GROUPS}
    row["difference"] = None if row["top1"]["mean"] is None else row["top1"]["mean"] - paper
    row["paper_gain"] = paper - PAPER["bsce", imbalance] if method == "dive" else None
    row["gain"] = spread(gains(finished, runs) if method == "dive" else [])._asdict()
    row["wall_s"] = spread([run.wall_s for run in finished])._asdict()
    row["killed_sessions"] = sum(run.killed for run in finished)
    row["images_per_s"] = spread([run.images_per_s for run in finished])._asdict()
    return row


def _state(runs: Sequence[Outcome]) -> str:
    """In words what is missing of a row; empty when nothing is."""
    missing = [run for run in runs if run.state != "finished"]
    if len(missing) == len(runs):
        states = dict.fromkeys(run.status for run in missing)
        return "; ".join(states) or "not run"
    return f"{len(runs) - len(missing)} of {len(runs)} seeds" if missing else ""


def _main_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("imbalance", "method", "paper", "ours", "difference", "many", "medium", "few")
    columns += ("gain over its teacher: paper", "ours", "seeds", "wall time of a run", "images/s of a run")
    lines = []
    for row in rows:
        start = [str(row["imbalance"]), NAMES[row["method"]], f"{row['paper']:.2f}"]
        if not row["finished"]:
            lines.append([*start, row["state"], *[""] * (len(columns) - 4)])
            continue
        groups = [Spread(**row[group]).text() for group in GROUPS]
        dive = row["method"] == "dive"
        gain = [f"{row['paper_gain']:+.2f}", Spread(**row["gain"]).text()] if dive else ["", ""]
        seeds = str(row["finished"]) + (f" ({row['state']})" if row["state"] else "")
        wall = clock(row["wall_s"]["mean"]) + _killed(row["killed_sessions"])
        speed = Spread(**row["images_per_s"]).text(0)
        lines.append([*start, groups[0], f"{row['difference']:+.2f}", *groups[1:], *gain, seeds, wall, speed])
    return Table("Paper against ours", columns, lines)


def _killed(sessions: int) -> str:
    return f" + {sessions} killed" if sessions else ""


def _verdicts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each imbalance factor of which everything was run."""
    for imbalance in IMBALANCES:
        means = {row["method"]: row["top1"]["mean"] for row in rows if row["imbalance"] == imbalance}
        if None in means.values():
            continue
        ordered = means["ce"] < means["bsce"] < means["dive"]
        figures = ", ".join(f"{NAMES[method]} {means[method]:.2f}" for method in METHODS)
        yield f"Imbalance {imbalance}: {figures}: {'in' if ordered else 'NOT in'} the paper's order, CE < BSCE < DiVE."


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
    caches = [cache_facts(task, out) for task in tasks if task.kind == "cache"]
    rows = []
    for role in ("bsce", *STUDIES):
        own = [run for run in runs if run.task.role == role]
        if own:
            rows.append(_study_row(role, own, [by_name[name] for name in own[0].task.needs if name in by_name], out))
    if given is not None:
        facts = facts | {"teacher": _given_teacher(given)}
    facts = environment_facts(runs) | facts
    notes = [
        *notes,
        "One setting differs from row to row; teacher, seed, recipe and schedule are the same. A cache is written once and "
        "serves any number of students: the time to write it stands beside a student's own and is not in it.",
        *common_notes(runs),
    ]
    tables = [_study_table(rows), runs_table(runs), *cache_table(caches)]
    title = "CIFAR-100-LT, imbalance 100: sources of targets, and temperatures"
    return Report(title, facts, tables, notes, {"rows": rows} | _common_data(runs, caches, facts))


def _given_teacher(folder: Path) -> str:
    result = folder / "result.json"
    if not result.exists():
        return f"{folder.name}, given"
    figures = read_json(result)
    return f"{folder.name}, given: {figures['epochs']} epochs, top-1 {100 * figures['test']['top1']:.2f}"


def _study_row(role: str, own: Sequence[Outcome], needed: Sequence[Task], out: Path) -> dict[str, Any]:
    settings = own[0].task.settings
    finished = [run for run in own if run.state == "finished"]
    cache = next((cache_facts(task, out) for task in needed if task.kind == "cache"), None)
    taus = sorted({run.tau for run in finished if run.tau is not None})
    student = role != "bsce"
    return {
        "role": role,
        "title": STUDIES.get(role, "the teacher"),
        "tau": taus if student else None,
        "p": settings.distill.p if student else None,
        "views": views_of(settings),
        "state": _state(own),
        "finished": len(finished),
        **{group: spread([run.accuracy[group] for run in finished])._asdict() for group in GROUPS},
        "wall_s": spread([run.wall_s for run in finished])._asdict(),
        "killed_sessions": sum(run.killed for run in finished),
        "images_per_s": spread([run.images_per_s for run in finished])._asdict(),
        "cache": cache._asdict() if cache else None,
    }


def _study_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("", "tau", "p", "T = tau / p", "V", "overall", "many", "medium", "few")
    columns += ("wall time of a run", "images/s", "its cache: written in", "size")
    lines = []
    for row in rows:
        power, views = "" if row["p"] is None else f"{row['p']:g}", str(row["views"])
        if not row["finished"]:
            lines.append([row["title"], "", power, "", views, row["state"], *[""] * (len(columns) - 6)])
            continue
        taus = row["tau"] or []
        temperatures = [", ".join(f"{tau:g}" for tau in taus), power, ", ".join(f"{tau / row['p']:g}" for tau in taus)]
        wall = clock(row["wall_s"]["mean"]) + _killed(row["killed_sessions"])
        cache = row["cache"]
        written = [clock(cache["seconds"]), f"{cache['megabytes']:,.0f} MB"] if cache else ["", ""]
        groups = [Spread(**row[group]).text() for group in GROUPS]
        lines.append(
            [row["title"], *temperatures, views, *groups, wall, Spread(**row["images_per_s"]).text(0), *written]
        )
    return Table("Side by side", columns, lines)


# ---- what both have ----


def common_notes(runs: Sequence[Outcome]) -> list[str]:
    """How the figures are to be read."""
    images = max((run.test_images for run in runs), default=0)
    return [
        f"Accuracies are top-1 in percent on the balanced test set ({images:,} images), last epoch: nothing was selected.",
        f"many, medium, few: classes with more than {MANY_ABOVE}, {FEW_BELOW} to {MANY_ABOVE}, fewer than {FEW_BELOW} training "
        "images; unweighted means of the accuracies of their classes.",
        "± is the standard deviation over seeds (n - 1). `seed` sets initialisation and order of every run; the student of seed "
        "s learns from the teacher of seed s, through the cache of that teacher. `data.seed` (the crops and flips) is the "
        "configurations': 1 for CE and teachers, 0 for students and caches, so that no teacher is asked about the crops it was "
        "trained on.",
        "Wall time: sum of a run's sessions in its run.json, with evaluations and checkpoints, caches apart; a session that was "
        "killed has no end there and is only counted. images/s: of the training steps of the last session.",
    ]


def runs_table(runs: Sequence[Outcome]) -> Table:
    """Each run by itself."""
    columns = ("run", "seed", "overall", "many", "medium", "few", "wall time", "sessions", "images/s")
    lines = []
    for run in runs:
        start = [f"`{run.task.name}`", str(run.task.seed)]
        if run.state != "finished":
            lines.append([*start, run.status, *[""] * (len(columns) - 3)])
            continue
        figures = ["-" if run.accuracy[group] is None else f"{run.accuracy[group]:.2f}" for group in GROUPS]
        speed = "-" if run.images_per_s is None else f"{run.images_per_s:,.0f}"
        sessions = str(len(run.sessions)) + _killed(run.killed)
        lines.append([*start, *figures, clock(run.wall_s), sessions, speed])
    return Table("Runs", columns, lines)


def cache_table(caches: Sequence[CacheFacts | None]) -> list[Table]:
    """Those that are there; no table without any."""
    lines = [
        (f"`{one.name}`", str(one.views), f"{one.megabytes:,.0f} MB", clock(one.seconds))
        for one in caches
        if one is not None
    ]
    return [Table("Caches", ("cache", "views", "size", "written in"), lines)] if lines else []


def _common_data(runs: Sequence[Outcome], caches: Sequence[CacheFacts | None], facts: dict[str, str]) -> dict[str, Any]:
    return {
        "facts": facts,
        "runs": [run.as_json() for run in runs],
        "caches": [one._asdict() for one in caches if one is not None],
    }


def to_markdown(report: Report) -> str:
    """For docs/results."""
    parts = [f"# {report.title}", "\n".join(f"* {name}: {value}" for name, value in report.facts.items())]
    for table in report.tables:
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += ["## How to read this", "\n".join(f"* {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"
