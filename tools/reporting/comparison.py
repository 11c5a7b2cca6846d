"""Runs side by side, for tools/compare.py: figures over seeds, the gain over the teacher, the accuracy of named classes.

Owns which run is whose teacher, and the bars; overview.py has the table of figures, entries.py what counts as one line.
Invariant: a gain is the difference of two runs that were both given, of a student and of the very weights that it was distilled
from.
Accuracies are in percent where people read them, gains in percentage points.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pipelines.errors import printable
from tools.paper.outcomes import Spread, spread
from tools.reporting import overview
from tools.reporting.embeddings import label_named
from tools.reporting.entries import Entry, entries_of
from tools.reporting.runs import Run
from tools.reporting.scores import FIGURES, class_accuracies, scores
from tools.reporting.section import DASH, GROUPS, WIDE, plot
from tools.reporting.style import COLOURS, shown, verbatim
from tools.reporting.tables import Table, latex, markdown
from tools.reporting.together import notes_on_checkpoints, notes_on_counts, notes_on_records

SHOWN = ("top1", *GROUPS)
TITLE = "Runs side by side"
STEM = "compare"


class Gain(NamedTuple):
    """By how much the students of an entry exceed their teachers, in percentage points, over the pairs that were given."""

    teachers: list[str]
    "titles, in the order of the students"
    spreads: dict[str, Spread]
    "top1, many, medium, few"


class Compared(NamedTuple):
    """gains: by the entry's title, None where no teacher of it was given; classes: labels in the order they were named."""

    entries: list[Entry]
    split: str
    gains: dict[str, Gain | None]
    classes: list[int]
    unknown: list[str]
    "students whose teacher was not given"
    elsewhere: list[str]
    "students whose teacher was evaluated on other records"


# ---- measuring ----


def measure(runs: Sequence[Run], split: str, classes: Sequence[str] = ()) -> Compared:
    """classes: names or labels. UserError for a class that there is not."""
    names = list(runs[0].predictions.class_names)
    labels = list(dict.fromkeys(label_named(one, names) for one in classes))
    given = {(run.predictions.weights, run.predictions.records): run for run in runs if run.predictions.weights}
    weights = {run.predictions.weights for run in runs}
    entries, unknown, elsewhere = entries_of(runs), [], []
    gains: dict[str, Gain | None] = {}
    for entry in entries:
        pairs = []
        for run in entry.runs:
            taught_by = _teachers(run)
            teacher = given.get((taught_by[0], run.predictions.records)) if len(taught_by) == 1 else None
            if teacher is not None:
                pairs.append((run, teacher))
            elif len(taught_by) == 1 and taught_by[0] in weights:
                elsewhere.append(run.title)
            elif taught_by:
                unknown.append(run.title)
        gains[entry.title] = _gain(pairs) if pairs else None
    return Compared(entries, split, gains, labels, unknown, elsewhere)


def _teachers(run: Run) -> list[str]:
    """The hashes of the weights that a run was distilled from."""
    return [str(teacher.get("weights")) for teacher in run.json("model.json").get("teachers", [])]


def _gain(pairs: Sequence[tuple[Run, Run]]) -> Gain:
    def of(name: str) -> Spread:
        values = [(_percent(run, name), _percent(teacher, name)) for run, teacher in pairs]
        return spread([None if own is None or before is None else own - before for own, before in values])

    return Gain([teacher.title for _, teacher in pairs], {name: of(name) for name in SHOWN})


def _percent(run: Run, name: str) -> float | None:
    value = scores(run.predictions)[name]
    return None if value is None else 100 * value


def _of_class(label: int) -> Callable[[Run], float | None]:
    def accuracy(run: Run) -> float | None:
        value = float(class_accuracies(run.predictions)[label])
        return None if np.isnan(value) else 100 * value

    return accuracy


# ---- showing ----


def tables(compared: Compared) -> list[Table]:
    """Figures; gains, where a teacher was given; named classes, where there are some."""
    several = any(len(entry.runs) > 1 for entry in compared.entries)
    made = [overview.results(compared.entries, compared.split, several)]
    rows = [
        [printable(title), printable(", ".join(dict.fromkeys(gain.teachers))), *map(_signed, gain.spreads.values())]
        for title, gain in compared.gains.items()
        if gain is not None
    ]
    if rows:
        made.append(Table("Gain over the teacher, percentage points", ["run", "teacher", "all", *GROUPS], rows))
    if compared.classes:
        first = compared.entries[0].runs[0].predictions
        rows = []
        for label in compared.classes:
            images = DASH if first.train_counts is None else f"{first.train_counts[label]:,}"
            cells = [_or_dash(entry.spread(_of_class(label))) for entry in compared.entries]
            rows.append([printable(str(first.class_names[label])), images, *cells])
        columns = ["class", "training images", *(printable(entry.title) for entry in compared.entries)]
        made.append(Table("Accuracy of single classes, %", columns, rows))
    return made


def _or_dash(found: Spread) -> str:
    return DASH if found.mean is None else found.text(1)


def _signed(found: Spread) -> str:
    return DASH if found.mean is None else f"{'+' if found.mean > 0 else ''}{found.text(2)}"


def notes(compared: Compared) -> list[str]:
    """How the tables are to be read, and what is missing."""
    found = [
        f"All figures are of the {compared.split} split. Runs that differ in their seed alone are one line: mean ± standard "
        "deviation (n - 1). “all” is the share of images classified rightly; many, medium and few are means over the classes "
        "of a shot group; ECE has 15 bins."
    ]
    if any(compared.gains.values()):
        found.append(
            "A gain is the mean over pairs of a student and its own teacher, ± its standard deviation over the pairs; a teacher "
            "is known by the hash of its weights."
        )
    if compared.unknown:
        found.append(
            f"The teacher of {', '.join(compared.unknown)} is not among these runs, or there are several; name it beside them "
            "to have the gain."
        )
    if compared.elsewhere:
        found.append(
            f"The teacher of {', '.join(compared.elsewhere)} was evaluated on other records; evaluate both on the same to have "
            "the gain."
        )
    runs = [run for entry in compared.entries for run in entry.runs]
    found += [f"{note}." for note in (*notes_on_checkpoints(runs), *notes_on_records(runs))]
    return [printable(note) for note in (*found, *(f"In tables, {note}." for note in notes_on_counts(runs)))]


def draw(compared: Compared) -> Figure:
    """Bars by shot group; lines show the standard deviation over seeds."""
    figure, axes = plot(WIDE)
    labels = ("all", *GROUPS)
    width = 0.8 / len(compared.entries)
    for i, entry in enumerate(compared.entries):
        found = [entry.spread(lambda run, name=name: _percent(run, name)) for name in SHOWN]
        heights = [np.nan if one.mean is None else one.mean for one in found]
        errors = [0.0 if one.std is None else one.std for one in found]
        places = np.arange(len(labels)) + (i - (len(compared.entries) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.92, color=entry.colour, label=shown(entry.title))
        if any(errors):
            axes.errorbar(places, heights, errors, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
        if i >= len(COLOURS):  # they begin again
            for bar in bars:
                bar.set_hatch("//")
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(False, axis="x")
    axes.set_ylabel("accuracy, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    verbatim(figure)
    return figure


def page(compared: Compared) -> str:
    """The tables as Markdown, with the picture."""
    return markdown(TITLE, tables(compared), notes(compared), [f"{STEM}.svg"])


def as_latex(compared: Compared) -> str:
    """The same tables, each a tabular of booktabs."""
    return "\n".join(map(latex, tables(compared)))


def as_json(compared: Compared) -> dict[str, Any]:
    """For a program: `figures` are as in result.json, accuracies from 0 to 1; gains are in points, `classes` in percent."""
    first = compared.entries[0].runs[0].predictions
    lines = []
    for entry in compared.entries:
        gain = compared.gains[entry.title]
        lines.append(
            {
                "run": entry.title,
                "runs": [run.title for run in entry.runs],
                "seeds": entry.seeds,
                "figures": {
                    name: entry.spread(lambda run, name=name: scores(run.predictions)[name])._asdict()
                    for name in FIGURES
                },
                "gain_points": None if gain is None else {n: one._asdict() for n, one in gain.spreads.items()},
                "teachers": [] if gain is None else gain.teachers,
                "classes": [
                    {"label": label, "class": str(first.class_names[label]), **entry.spread(_of_class(label))._asdict()}
                    for label in compared.classes
                ],
            }
        )
    return {"split": compared.split, "lines": lines}
