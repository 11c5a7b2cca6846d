"""Which classes are taken for which: between shot groups, and the pairs of classes that are confused most.

Images are pooled over the runs of an entry. Invariant: the shares of a row are of all images of that row, and add up to one.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Rectangle

from pipelines.errors import UserError
from tools.reporting.entries import Entry
from tools.reporting.section import DASH, GROUPS, Material, Picture, Section, groups_of, plot, with_groups
from tools.reporting.style import COLOURS
from tools.reporting.tables import Table

PAIRS = 8  # per entry


class Confusion(NamedTuple):
    """groups: float64 [3, 3], true group -> predicted group, NaN for a group without images; right: float64 [3], to the class."""

    groups: np.ndarray
    right: np.ndarray
    images: np.ndarray
    "int64 [3]"


class Pair(NamedTuple):
    """share: of the images of the true class."""

    true: str
    predicted: str
    images: int
    share: float


def between_groups(entry: Entry) -> Confusion:
    counts, right = np.zeros((3, 3)), np.zeros(3)
    for run in entry.runs:
        found = run.predictions
        group = np.argmax(np.stack(list(groups_of(run).values())), axis=0)  # of each class
        np.add.at(counts, (group[found.labels], group[found.answers]), 1)
        right += np.bincount(group[found.labels[found.labels == found.answers]], minlength=3)
    images = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return Confusion(counts / images[:, None], right / images, images.astype(np.int64))


def pairs(entry: Entry, most: int = PAIRS) -> list[Pair]:
    """The pairs (true, predicted) with the most images; ties in the order of the classes."""
    first = entry.runs[0].predictions
    classes = len(first.class_names)
    labels = np.concatenate([run.predictions.labels for run in entry.runs])
    answers = np.concatenate([run.predictions.answers for run in entry.runs])
    wrong = labels != answers
    both, images = np.unique(labels[wrong] * classes + answers[wrong], return_counts=True)
    of_class = np.bincount(labels, minlength=classes)
    plain = list(map(str, first.class_names))
    times = Counter(plain)
    names = [name if times[name] == 1 else f"{name} (label {label})" for label, name in enumerate(plain)]
    found = []
    for place in np.argsort(-images, kind="stable")[:most]:
        true, predicted = divmod(int(both[place]), classes)
        found.append(Pair(names[true], names[predicted], int(images[place]), images[place] / of_class[true]))
    return found


def section(material: Material) -> Section:
    if not any(len(run.predictions.labels) for run in material.runs):
        raise UserError("there are no images in the split")
    entries, notes = with_groups(material)
    measured = {entry.title: between_groups(entry) for entry in entries}
    tables = [_group_table(measured)] if entries else []
    return Section(
        title="Confusion",
        intro=(
            "A row is the true shot group, a column the group of the predicted class; “right” is the share that is given its own "
            "class, a part of its own group. Balanced predictions have a strong diagonal; a network that favours frequent "
            "classes has a strong first column."
            if entries
            else ""
        ),
        tables=[*tables, *(_pair_table(entry) for entry in material.entries)],
        figures=[_picture(title, found) for title, found in measured.items()],
        notes=notes,
    )


def _picture(title: str, found: Confusion) -> Picture:
    figure, axes = plot((4.2, 2.6))
    for row in range(3):
        for column in range(3):
            share = found.groups[row, column]
            if not np.isnan(share):
                place = (column + 0.03, row + 0.04)
                axes.add_patch(
                    Rectangle(place, 0.94, 0.92, facecolor=COLOURS[0], alpha=0.04 + 0.56 * share, linewidth=0)
                )
            text = DASH if np.isnan(share) else f"{100 * share:.0f} %"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, 3), ylim=(3, 0), xlabel="predicted group", ylabel="true group")
    axes.set_xticks(np.arange(3) + 0.5, GROUPS)
    axes.set_yticks(np.arange(3) + 0.5, GROUPS)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    told = [
        f"{true} as {predicted} {100 * found.groups[i, j]:.0f} %"
        for i, true in enumerate(GROUPS)
        for j, predicted in enumerate(GROUPS)
        if not np.isnan(found.groups[i, j])
    ]
    return Picture(figure, title, f"Confusion of {title} between shot groups: {', '.join(told)}")


def _group_table(measured: dict[str, Confusion]) -> Table:
    rows = []
    for title, found in measured.items():
        for i, group in enumerate(GROUPS):
            if found.images[i]:
                shares = [f"{100 * share:.1f}" for share in (*found.groups[i], found.right[i])]
                rows.append([title, group, f"{found.images[i]:,}", *shares])
    columns = ["run", "true group", "images", *(f"as {group}, %" for group in GROUPS), "right, %"]
    return Table("Confusion between shot groups", columns, rows)


def _pair_table(entry: Entry) -> Table:
    rows = [[pair.true, pair.predicted, f"{pair.images:,}", f"{100 * pair.share:.0f}"] for pair in pairs(entry)]
    return Table(f"Most confused by {entry.title}", ["true", "predicted as", "images", "% of class"], rows)
