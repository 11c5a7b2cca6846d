"""The flatness study of the paper's appendix A (Figure 1): two classes, and label smoothing of the more frequent one alone.

Owns its data sets, its trainings, the ratio of virtual examples, and the rule by which the page says whether the paper's claim
holds. Invariant: a verdict is of numbers that the page shows, over runs that are all finished. Accuracies are in percent.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from tools.paper.datasets import ROOT, Dataset
from tools.paper.jobs import Ending
from tools.paper.outcomes import Outcome, outcome
from tools.paper.plan import Choice, Task, data_task, teacher_task
from tools.paper.report import WALL_TIME, Figure, Report, Row, Table, accuracy_note, full_report, row_of

COUNTS = ((5000, 500), (5000, 50), (500, 50))  # images of head and tail; each has a configuration
EPSILONS = (0.0, 0.1, 0.2, 0.3, 0.4)
GROUPS = ("head", "tail", "mean")
# The rule of the verdict, in points of accuracy and as a rank correlation: ours, the paper shows curves alone.
HEAD_WITHIN, TAIL_RISES, CORRELATION = 1.0, 1.0, 0.5


class Pair(NamedTuple):
    """Two classes of CIFAR-10 and how many training images of each are kept."""

    head: str
    tail: str
    n_head: int
    n_tail: int

    @property
    def counts(self) -> str:
        return f"{self.n_head}:{self.n_tail}"

    @property
    def name(self) -> str:
        return f"{self.head} {self.n_head}, {self.tail} {self.n_tail}"

    def ratio(self, eps: float) -> float:
        """R, virtual examples of the tail per one of the head: (n_tail + n_head * eps) / (n_head - n_head * eps)."""
        return (self.n_tail + self.n_head * eps) / (self.n_head - self.n_head * eps)

    @property
    def config(self) -> Path:
        """The configuration of the shipped pair with the most similar counts, by their ratios, that of the head before all."""
        head, tail = min(
            COUNTS, key=lambda one: (abs(math.log(one[0] / self.n_head)), abs(math.log(one[1] / self.n_tail)))
        )
        return ROOT / "configs" / "cifar10_pair" / f"ce_{head}_{tail}.yaml"

    @property
    def dataset(self) -> Dataset:
        tag = f"{self.head}_{self.tail}_{self.n_head}_{self.n_tail}"
        name = f"cifar10_{tag}"
        classes = ("--head", self.head, "--tail", self.tail)
        return Dataset(
            name=name,
            tag=tag,
            column="counts",
            value=self.counts,
            convert=("cifar10-pair", *classes, "--counts", str(self.n_head), str(self.n_tail)),
            configs={"ce": self.config},
            settings=tuple(f"data.{split}=data/{name}/{split}.beton" for split in ("train", "test")),
        )


# ---- tasks ----


def training(choice: Choice, dataset: Dataset, eps: float, seed: int) -> Task:
    text = f"{eps:.15g}"  # as it was typed
    smoothing = f"distill.head_smoothing={text}"
    return teacher_task(choice, "ce", dataset, seed, smoothing, variant=f"eps{text}", role=f"eps {text}")


def tasks(choice: Choice, pairs: Sequence[Pair], epsilons: Sequence[float], seeds: Sequence[int]) -> list[Task]:
    """All trainings, seed by seed, so that every point of the figure has a run early."""
    datasets = [pair.dataset for pair in pairs]
    runs = [training(choice, dataset, eps, seed) for seed in seeds for dataset in datasets for eps in epsilons]
    return [*(data_task(choice, dataset) for dataset in datasets), *runs]


def chains(choice: Choice, dataset: Dataset, seeds: Sequence[int], missing: Sequence[Task]) -> list[Task]:
    """One training for each seed: all cost the same."""
    return [training(choice, dataset, 0.0, seed) for seed in seeds]


# ---- the page ----


class Point(NamedTuple):
    """The runs of a pair at one eps."""

    pair: Pair
    eps: float
    runs: list[Outcome]

    @property
    def row(self) -> Row:
        return row_of(self.runs, GROUPS)

    def by_seed(self, group: str) -> dict[int, float]:
        """Accuracy of the finished runs."""
        values = {run.task.seed: run.accuracy[group] for run in self.runs if run.state == "finished"}
        return {seed: value for seed, value in values.items() if value is not None}

    def as_json(self) -> dict[str, Any]:
        pair = self.pair
        classes = {"head_class": pair.head, "tail_class": pair.tail, "n_head": pair.n_head, "n_tail": pair.n_tail}
        return {"counts": pair.counts, "eps": self.eps, "R": pair.ratio(self.eps)} | classes | self.row.as_json()

    def line(self) -> list[str]:
        row, start = self.row, [self.pair.counts, f"{self.eps:g}", f"{self.pair.ratio(self.eps):.3f}"]
        if not row.finished:
            return [*start, row.state, "", "", "0"]
        return [*start, *row.groups, str(row.finished) + (f" ({row.state})" if row.state else "")]


def report(
    tasks: Sequence[Task],
    out: Path,
    endings: dict[str, Ending],
    facts: dict[str, str],
    notes: Sequence[str],
    pairs: Sequence[Pair],
) -> Report:
    """Accuracy of head and tail against R, for each pair of counts."""
    runs = [_by_class(outcome(task, out, endings.get(task.name))) for task in tasks if task.is_run]
    points = _points(runs, pairs)
    verdicts = [verdict(pair, [point for point in points if point.pair == pair]) for pair in pairs]
    notes = [
        *notes,
        *(one["sentence"] for one in verdicts),
        f"The rule of these sentences, ours: the claim holds if, from the smallest eps to the largest, the head changes by at "
        f"most {HEAD_WITHIN:g} point, the tail gains at least {TAIL_RISES:g} point, both as the mean of the differences of runs "
        f"of the same seed, and the rank correlation (Spearman) of the tail's accuracy with eps over all runs is at least "
        f"{CORRELATION:g}.",
        "R = (n_tail + n_head * eps) / (n_head - n_head * eps): virtual examples of the tail per one of the head. eps: "
        "`distill.head_smoothing`, label smoothing of the head alone.",
        "Paper: He, Wu, Wei, ICCV 2021 (arXiv 2103.15042), appendix A, Figure 1: the head hardly changes, the tail rises with "
        "eps. It gives no schedule and no draw of images: those here are ours.",
        "Which images of a class are kept follows from their order in the archive, whose MD5 `tools/convert.py info` shows.",
        f"{accuracy_note(runs)} mean: of head and tail.",
        "± is the standard deviation over seeds (n - 1). `seed` sets initialisation and order of every run; `data.seed` (the "
        "crops and flips) is the configurations'.",
        WALL_TIME,
    ]
    columns = ("head:tail images", "eps", "R", *GROUPS, "seeds")
    table = Table("Accuracy of head and tail", columns, [point.line() for point in points])
    head, tail = pairs[0].head, pairs[0].tail
    figure = Figure(f"Accuracy of {head} (head) and {tail} (tail) against R", lambda stem: _draw(stem, pairs, points))
    title = f"CIFAR-10, {head} and {tail}: label smoothing of the head, appendix A of the paper"
    rows = [point.as_json() for point in points]
    found = full_report(title, tasks, out, runs, facts, notes, [table], rows, GROUPS, [figure])
    found.data["verdicts"] = verdicts
    return found


def _by_class(run: Outcome) -> Outcome:
    """The outcome with the accuracies of this study in place of those of shot groups."""
    if run.state != "finished":
        return run
    head, tail = run.classes
    if head is None or tail is None:
        return replace(run, state="damaged", words="its test split has no image of a class")
    return replace(run, accuracy={"head": head, "tail": tail, "mean": (head + tail) / 2})


def _points(runs: Sequence[Outcome], pairs: Sequence[Pair]) -> list[Point]:
    """In the order of the pairs, and of rising eps."""
    found: dict[tuple[str, float], list[Outcome]] = {}
    for run in runs:
        found.setdefault((run.task.dataset.name, run.task.settings.distill.head_smoothing), []).append(run)
    keys = sorted(found, key=lambda key: key[1])
    return [Point(pair, key[1], found[key]) for pair in pairs for key in keys if key[0] == pair.dataset.name]


def verdict(pair: Pair, points: Sequence[Point]) -> dict[str, Any]:
    """Whether the claim holds for a pair, by the rule: its numbers and a sentence; `holds` is None where it cannot be said."""
    total, finished = (sum(getattr(point.row, name) for point in points) for name in ("runs", "finished"))
    found: dict[str, Any] = {"counts": pair.counts, "holds": None, "finished": finished}
    if finished < total or len(points) < 2:
        why = f"{finished} of {total} runs are finished" if finished < total else "it takes two values of eps"
        return found | {"sentence": f"{pair.name}: not known whether the claim holds: {why}."}
    first, last = points[0], points[-1]
    head, tail = (_change(first, last, group) for group in ("head", "tail"))
    rank = spearman([(point.eps, value) for point in points for value in point.by_seed("tail").values()])
    steady = round(abs(head), 9) <= HEAD_WITHIN  # as differences of decimals, both carry an error of some 1e-14
    rises = round(tail, 9) >= TAIL_RISES and round(rank, 9) >= CORRELATION
    claims = {
        (True, True): "the claim holds",
        (True, False): "the claim holds in part, as the tail does not rise",
        (False, True): "the claim holds in part, as the head is not steady",
        (False, False): "the claim does not hold",
    }
    sentence = (
        f"{pair.name}: {claims[steady, rises]}: from eps {first.eps:g} to {last.eps:g} the head changes by {head:+.2f} points, "
        f"the tail by {tail:+.2f} (seeds: {len(first.runs)}); rank correlation of the tail with eps {rank:+.2f}."
    )
    numbers = {"head_change": head, "tail_change": tail, "spearman": rank, "head_steady": steady, "tail_rises": rises}
    return found | numbers | {"holds": steady and rises, "sentence": sentence}


def _change(first: Point, last: Point, group: str) -> float:
    """The mean of the differences of runs of the same seed."""
    before, after = first.by_seed(group), last.by_seed(group)
    return mean(after[seed] - before[seed] for seed in before)


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """The rank correlation of two columns, equal values having the mean of their ranks; 0 where a column is constant."""
    x, y = (_ranks(np.array(column)) for column in zip(*pairs, strict=True))
    spread_of = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread_of) if spread_of else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2


def _draw(stem: Path, pairs: Sequence[Pair], points: Sequence[Point]) -> None:
    from tools.reporting.flatness import Panel, draw  # matplotlib is for this study alone

    panels = []
    for pair in pairs:
        own = [point for point in points if point.pair == pair]
        rows = [point.row.accuracy for point in own]
        lines = {group: [(row[group].mean, row[group].std) for row in rows] for group in GROUPS}
        panels.append(Panel(pair.name, [pair.ratio(point.eps) for point in own], [point.eps for point in own], lines))
    draw(stem, panels)
