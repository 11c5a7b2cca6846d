"""Tables and figures of the supplementary, made of the runs of Table 1: each is one row of FIGURES.

Owns which runs they are made of, and their page. The runs are trained by the same tasks as those of Table 1, in the same folders.
Invariant: only finished runs are shown, and the page says which are missing.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.errors import UserError
from tools.paper.datasets import METHODS
from tools.paper.jobs import Ending
from tools.paper.outcomes import Outcome, draw_of_images, outcome
from tools.paper.plan import Task
from tools.paper.report import NAMES, WALL_TIME, Figure, Report, Table, accuracy_note, full_report
from tools.paper.screen import say
from tools.reporting.runs import Run, open_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


class Made(NamedTuple):
    """One figure: tables, notes on how to read them, the same for a program, and the drawing."""

    tables: Sequence[Table]
    notes: Sequence[str]
    data: dict[str, Any]
    drawing: "Drawing"


class Row(NamedTuple):
    """One row of FIGURES. words: what the picture shows; of_seed: whether it is of the runs of the lowest seed alone."""

    words: str
    make: Callable[[Sequence[Run]], Made]
    of_seed: bool = False


def _shifted(runs: Sequence[Run]) -> Made:
    from tools.reporting import shifted  # matplotlib is for figures alone

    measured = shifted.measure(runs)
    return Made(shifted.tables(measured), shifted.notes(measured), shifted.as_json(measured), shifted.draw(measured))


def _embeddings(runs: Sequence[Run]) -> Made:
    from tools.reporting import embeddings

    measured = embeddings.measure(runs)
    return Made(
        embeddings.tables(measured), embeddings.notes(measured), embeddings.as_json(measured), embeddings.draw(measured)
    )


def _samples(runs: Sequence[Run]) -> Made:
    """What the last method of Table 1, the paper's own, answers right and all others wrong."""
    from tools.reporting import samples

    if len(runs) < 2:
        raise UserError(f"of one finished run of the lowest seed, {runs[0].title}, there is nothing to compare")
    records = runs[-1].records
    assert records is not None
    measured = samples.measure((runs[-1], *runs[:-1]), records)
    return Made(samples.tables(measured), samples.notes(measured), samples.as_json(measured), samples.draw(measured))


FIGURES = {  # by name, which is that of its files: OUT/cifar100_lt_figures_NAME.svg
    "shifted": Row("Table 2: accuracy on shifted test sets, without and with post-compensation", _shifted),
    "embeddings": Row("Figure 2: features of ten classes, from frequent to rare", _embeddings, of_seed=True),
    "samples": Row("Figure 3: test images that the last run alone answers right", _samples, of_seed=True),
}
FILES = (".md", ".json", *(f"_{name}{ending}" for name in FIGURES for ending in (".svg", ".png")))


def report(
    tasks: Sequence[Task], out: Path, endings: dict[str, Ending], facts: dict[str, str], notes: Sequence[str]
) -> Report:
    """All figures on one page, of the runs of one data set."""
    runs = [outcome(task, out, endings.get(task.name)) for task in tasks if task.is_run]
    runs.sort(key=lambda run: METHODS.index(run.task.role))
    made, refused = make_figures(runs, out)
    missing = [f"{run.task.name} ({run.status})" for run in runs if run.state != "finished"]
    notes = [
        *notes,
        *([f"Not shown, because not finished: {', '.join(missing)}."] if missing else []),
        *refused,
        draw_of_images(tasks, out),
        accuracy_note(runs),
        *(note for one in made.values() for note in one.notes),
        WALL_TIME,
    ]
    title = f"CIFAR-100-LT, {tasks[0].dataset.label}: figures of the paper's supplementary"
    tables = [table for one in made.values() for table in one.tables]
    figures = [Figure(FIGURES[name].words, _saved(one.drawing), f"_{name}") for name, one in made.items()]
    found = full_report(title, tasks, out, runs, facts, notes, tables, [], figures=figures)
    del found.data["rows"]  # of Table 1
    return found._replace(data=found.data | {name: one.data for name, one in made.items()})


def make_figures(runs: Sequence[Outcome], out: Path) -> tuple[dict[str, Made], list[str]]:
    """(figures of the finished runs by name, sentences on those that these runs do not allow)."""
    finished = [run.task for run in runs if run.state == "finished"]
    made, refused = dict[str, Made](), list[str]()
    opened = open_finished(finished, out)
    first_seed = [run for run, task in zip(opened, finished, strict=True) if task.seed == min(t.seed for t in finished)]
    for name, row in FIGURES.items() if opened else ():
        try:
            made[name] = row.make(first_seed if row.of_seed else opened)
        except UserError as error:
            refused.append(f"Not shown: {row.words}: {error}.")
    return made, refused


def open_finished(finished: Sequence[Task], out: Path) -> list[Run]:
    """The runs with their predictions, which are computed where they are missing; titles: CE, or CE, seed 0."""
    seeds = {task.seed for task in finished}
    with contextlib.chdir(out):  # the working directory of the runs, whose paths are relative to it
        opened = open_runs([task.name for task in finished], features=True, say=say) if finished else []
    return [
        replace(
            run, title=NAMES[task.role] + (f", seed {task.seed}" if len(seeds) > 1 else ""), folder=out / task.folder
        )
        for run, task in zip(opened, finished, strict=True)
    ]


def _saved(drawing: "Drawing") -> Callable[[Path], object]:
    from tools.reporting.style import save

    return lambda stem: save(drawing, stem)
