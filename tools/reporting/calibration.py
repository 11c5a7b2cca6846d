"""Whether confidence is the share of right answers: by bins of the confidence, in all and by shot group.

train/evaluation/metrics.py defines bins and error. Samples are pooled over the runs of an entry, the errors are means over its
runs. Invariant: the counts of a group's bins add up to its images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pipelines.errors import UserError
from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.scores import answered
from tools.reporting.section import (
    DASH,
    GROUPS,
    Material,
    Picture,
    Section,
    groups_of,
    legend_of_groups,
    plain,
)
from tools.reporting.style import GROUP_COLOURS
from tools.reporting.tables import Table
from train.evaluation.metrics import BINS, calibration_error, confidence_bins

_ALL = "all"


class Bins(NamedTuple):
    """Of each bin: samples int64 [BINS]; mean confidence and accuracy, float64 [BINS], NaN where it is empty."""

    samples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def _parts(run: Run) -> dict[str, np.ndarray]:
    """bool[n]: all samples, and those of each shot group."""
    labels = run.predictions.labels
    groups = {group: members[labels] for group, members in groups_of(run).items()}
    return {_ALL: np.ones(len(labels), bool), **groups}


def errors(entry: Entry) -> dict[str, str]:
    """The calibration error in percent, in all and by shot group, over the runs of an entry."""

    def of(run: Run, part: str) -> float | None:
        found, members = answered(run.predictions), _parts(run)[part]
        error = calibration_error(found.confidence[members], found.ranks[members] == 0)
        return None if error is None else 100 * error

    spreads = {part: entry.spread(lambda run, part=part: of(run, part)) for part in _parts(entry.runs[0])}
    return {part: DASH if found.mean is None else found.text() for part, found in spreads.items()}


def bins_of(entry: Entry) -> dict[str, Bins]:
    """In all and by shot group, over the samples of all runs of an entry."""
    found: dict[str, Bins] = {}
    for part in _parts(entry.runs[0]):
        sums = np.zeros((3, BINS))
        for run in entry.runs:
            answers, members = answered(run.predictions), _parts(run)[part]
            places = confidence_bins(answers.confidence[members])
            for row, weights in zip(
                sums, (None, answers.confidence[members], answers.ranks[members] == 0), strict=True
            ):
                row += np.bincount(places, weights, BINS)
        with np.errstate(invalid="ignore"):
            found[part] = Bins(sums[0].astype(np.int64), sums[1] / sums[0], sums[2] / sums[0])
    return found


def section(material: Material) -> Section:
    if not any(len(run.predictions.labels) for run in material.runs):
        raise UserError("there are no images in the split")
    measured = {entry.title: bins_of(entry) for entry in material.entries}
    return Section(
        title="Calibration",
        intro=(
            f"ECE is the mean distance between confidence and accuracy over {BINS} equal bins of confidence, weighted by their "
            "images. A point below the diagonal is overconfident. The area of a point grows with its images; below, how many "
            "images each bin has."
        ),
        tables=[_error_table(material.entries), *(_bin_table(title, found) for title, found in measured.items())],
        figures=[_picture(title, found) for title, found in measured.items()],
        legend=legend_of_groups(),
    )


def _picture(title: str, found: dict[str, Bins]) -> Picture:
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    top, bottom = map(plain, figure.subplots(2, 1, height_ratios=[3, 1], sharex=True))
    top.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    shown = {part: one for part, one in found.items() if part != _ALL} or found
    below = np.zeros(BINS)
    centres = (np.arange(BINS) + 0.5) / BINS
    for part, one in shown.items():
        there = one.samples > 0
        colour = GROUP_COLOURS.get(part, "0.4")
        area = 6 + 90 * one.samples[there] / max(one.samples.max(), 1)
        top.plot(one.confidence[there], one.accuracy[there], color=colour, linewidth=1.2)
        top.scatter(one.confidence[there], one.accuracy[there], s=area, color=colour, alpha=0.55, linewidths=0)
        bottom.bar(centres, one.samples, 0.9 / BINS, bottom=below, color=colour)
        below += one.samples
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    bottom.set(xlabel="confidence", ylabel="images")
    words = "; ".join(f"{part}: {_told(one)}" for part, one in shown.items())
    return Picture(figure, title, f"Reliability of {title} by shot group, confidence against accuracy. {words}")


def _told(found: Bins) -> str:
    samples = found.samples.sum()
    if not samples:
        return "no images"
    there = found.samples > 0
    mean = [np.average(values[there], weights=found.samples[there]) for values in (found.confidence, found.accuracy)]
    return f"mean confidence {100 * mean[0]:.1f} %, accuracy {100 * mean[1]:.1f} %"


def _error_table(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        found = errors(entry)
        rows.append([entry.title, *(found.get(part, DASH) for part in (_ALL, *GROUPS))])
    return Table("ECE, %", ["run", _ALL, *GROUPS], rows)


def _bin_table(title: str, found: dict[str, Bins]) -> Table:
    rows = []
    for place in range(BINS):
        cells = []
        for one in found.values():
            empty = not one.samples[place]
            shares = [DASH if empty else f"{100 * values[place]:.1f}" for values in (one.confidence, one.accuracy)]
            cells += [f"{one.samples[place]:,}", *shares]
        rows.append([f"{place / BINS:.3f} to {(place + 1) / BINS:.3f}", *cells])
    columns = [f"{part}: {what}" for part in found for what in ("images", "confidence, %", "accuracy, %")]
    return Table(f"Bins of {title}", ["confidence", *columns], rows)
