"""Accuracy on shifted test sets, without and with post-compensation: Table 2 of the paper's supplementary, for any runs.

Owns the layout, and what a user has to say of networks that were not trained here; sets and accuracies come from
train/evaluation. Invariant: all runs of a table are measured on the same images.
Accuracies are fractions from 0 to 1, in percent where people read them.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.errors import UserError, printable, quoted
from tools.command_line import path
from tools.reporting.output import check_place, write_all
from tools.reporting.runs import Run, open_runs
from tools.reporting.style import COLOURS, LINES, MARKERS, shown, verbatim
from tools.reporting.tables import Table, markdown
from tools.reporting.together import notes_on_checkpoints
from train.evaluation.compensation import Rule, compensated_answers, read_counts, require_classes
from train.evaluation.shifted import ShiftedAccuracy, ShiftedSet, by_frequency, shifted_accuracy, shifted_sets

IMBALANCES = (50.0, 25.0, 10.0, 5.0, 2.0)  # the paper's
TITLE = "Shifted test sets"


class Line(NamedTuple):
    """A run, with or without post-compensation (PC), on all sets."""

    run: str
    compensated: bool
    accuracies: list[ShiftedAccuracy]

    @property
    def title(self) -> str:
        return f"{self.run} + PC" if self.compensated else self.run


class Shifted(NamedTuple):
    """lines: all runs without, then all with PC; rules: by run; test_counts: int64 [C], of the whole split; notes: on runs."""

    sets: list[ShiftedSet]
    lines: list[Line]
    rules: dict[str, Rule]
    test_counts: np.ndarray
    notes: list[str]


# ---- measuring ----


def measure(
    runs: Sequence[Run],
    imbalances: Sequence[float] = IMBALANCES,
    rules: Mapping[str, Rule] | None = None,
    train_counts: np.ndarray | None = None,
) -> Shifted:
    """All runs on all sets. rules, train_counts: of runs that do not say so themselves, the rules by title.

    UserError where something is not known, or where the runs do not have the same test images or ranks of classes.
    """
    counts = {run.title: _train_counts(run, train_counts) for run in runs}
    own_rules: dict[str, Rule] = {run.title: _rule(run, rules or {}) for run in runs}
    _require_the_same_sets(runs, counts)
    sample = runs[0].predictions
    labels = sample.labels[sample.by_list]
    test_counts = np.bincount(labels, minlength=len(sample.class_names))
    _require_images(runs[0], test_counts)
    sets = shifted_sets(counts[runs[0].title], test_counts, imbalances)
    without, compensated = [], []
    for run in runs:
        rule, train = own_rules[run.title], counts[run.title]
        if rule != "balanced" and train.min() == 0:
            missing = run.predictions.class_names[train.argmin()]
            raise UserError(
                f"{run.title}: class {quoted(missing)} has no training images, so that post-compensation, which divides by "
                "its share of them, is not defined"
            )
        logits = run.predictions.logits[run.predictions.by_list]
        right = run.predictions.answers[run.predictions.by_list] == labels
        without.append(Line(run.title, False, [shifted_accuracy(right, labels, one.counts) for one in sets]))
        with_pc = [compensated_answers(logits, rule, train, one.counts) == labels for one in sets]
        accuracies = [shifted_accuracy(right, labels, one.counts) for right, one in zip(with_pc, sets, strict=True)]
        compensated.append(Line(run.title, True, accuracies))
    return Shifted(sets, [*without, *compensated], own_rules, test_counts, notes_on_checkpoints(runs))


def _train_counts(run: Run, given: np.ndarray | None) -> np.ndarray:
    counts = given if run.predictions.train_counts is None else run.predictions.train_counts
    if counts is None:
        raise UserError(
            f"{run.title} does not say how many training images each class has, which ranks the classes; type "
            "--train-counts FILE, its training records or one number per line"
        )
    if len(counts) != len(run.predictions.class_names):
        raise UserError(f"{run.title} has {len(run.predictions.class_names)} classes, --train-counts {len(counts)}")
    return counts


def _rule(run: Run, given: Mapping[str, Rule]) -> Rule:
    rule = run.rule
    if rule is not None and given.get(run.title, rule) != rule:
        other = "with data.sampling=square_root" if rule == "square_root" else f"so that --{rule} holds"
        how = f"by method {run.predictions.method}" if run.predictions.method else other
        raise UserError(f"{run.title} was trained {how}; leave --{given[run.title]} out")
    rule = rule or given.get(run.title)
    if rule is None:
        raise UserError(
            f"{run.title} does not say how it was trained, or has no rule of its own (margins, class weights, smoothed labels, a "
            f"teacher's targets), on which post-compensation depends; type --balanced {run.title} (balanced softmax: its loss "
            f"adds log prior to the logits) or --softmax {run.title} (plain cross-entropy, of "
            "images as they come: after class-balanced sampling it is --balanced)"
        )
    return rule


def _require_the_same_sets(runs: Sequence[Run], counts: Mapping[str, np.ndarray]) -> None:
    first = runs[0]
    images = first.predictions
    for run in runs[1:]:
        own = run.predictions
        same = np.array_equal(own.labels[own.by_list], images.labels[images.by_list])
        if same and own.records and images.records:
            same = np.array_equal(own.keys[own.by_list], images.keys[images.by_list])
        if not same:
            raise UserError(
                f"{run.title} was evaluated on other images than {first.title}, or in another order; give all the same "
                "data.test, or make a table of each"
            )
        if not np.array_equal(by_frequency(counts[run.title]), by_frequency(counts[first.title])):
            raise UserError(
                f"{run.title} was trained with other frequent classes than {first.title}, so their shifted sets differ; make "
                "a table of each"
            )


def _require_images(run: Run, test_counts: np.ndarray) -> None:
    if len(test_counts) < 2:
        raise UserError(f"{run.title} has one class; a shifted test set needs at least two")
    if test_counts.min() < 2:
        name, has = quoted(run.predictions.class_names[test_counts.argmin()]), int(test_counts.min())
        raise UserError(
            f"the test set has {has or 'no'} image{'s' * (has != 1)} of class {name}; shifted sets need at least 2 of each class"
        )


# ---- showing ----


def tables(measured: Shifted) -> list[Table]:
    """Accuracies of the first images, the expected ones, and the sets."""
    names = [one.name for one in measured.sets]
    first = [[printable(line.title), *(f"{100 * one.first:.2f}" for one in line.accuracies)] for line in measured.lines]
    expected = [[printable(line.title), *map(_with_error, line.accuracies)] for line in measured.lines]
    sets = [
        ["images", *(f"{one.counts.sum():,}" for one in measured.sets)],
        ["most of a class", *(str(one.counts.max()) for one in measured.sets)],
        ["fewest of a class", *(str(one.counts.min()) for one in measured.sets)],
    ]
    return [
        Table("Top-1 on the first images of each class, %", ["run", *names], first),
        Table("Expected top-1 over all choices of as many images, %", ["run", *names], expected),
        Table("The test sets", ["", *names], sets),
    ]


def _with_error(accuracy: ShiftedAccuracy) -> str:
    return f"{100 * accuracy.expected:.2f} ± {100 * accuracy.standard_error:.2f}"


def notes(measured: Shifted) -> list[str]:
    """How the tables are to be read, and what of this test set does not fit."""
    said = {
        "softmax": "argmax(f - log p_train + log p_test)",
        "square_root": "argmax(f - log p_train / 2 + log p_test)",
        "balanced": "argmax(f + log p_test)",
    }
    rules = "; ".join(
        f"{said[rule]} for {', '.join(run for run, own in measured.rules.items() if own == rule)}"
        for rule in said
        if rule in measured.rules.values()
    )
    found = [
        "F50: the test set is long-tailed with imbalance 50 in the order of the training set; B50: in the reverse order; U: "
        "uniform. Class of rank k of C: trunc(n r^(k / (C - 1))) images, at least 1, with r = 1 / imbalance and n the images of "
        "a class in U. Top-1 is over images, so frequent classes count more.",
        "First images: of each class in the order of the list, as others report them. Expected: the mean over all choices of "
        "as many images of each class; ± is the standard deviation over these choices, not over trainings.",
        f"PC, post-compensation: the answer is {rules}.",
    ]
    fewest, most = measured.test_counts.min(), measured.test_counts.max()
    if fewest != most:
        found.append(
            f"The test set is not balanced: {fewest} to {most} images of a class. The sets are made for {fewest} of each; "
            "the expectation is over all."
        )
    short = [one.name for one in measured.sets if one.imbalance > one.counts.max()]
    if short:
        found.append(f"With {fewest} images of a class, the imbalance of {', '.join(short)} is {fewest} at most.")
    return [printable(note) for note in (*found, *(f"{note}." for note in measured.notes))]


def as_json(measured: Shifted) -> dict[str, Any]:
    """Sets and lines for a program; accuracies are fractions."""
    sets = [
        {"name": one.name, "imbalance": one.imbalance, "images": int(one.counts.sum()), "counts": one.counts.tolist()}
        for one in measured.sets
    ]
    names = [one.name for one in measured.sets]
    lines = [
        {
            "run": line.run,
            "rule": measured.rules[line.run],
            "compensated": line.compensated,
            "accuracy": {name: one._asdict() for name, one in zip(names, line.accuracies, strict=True)},
        }
        for line in measured.lines
    ]
    return {"test_images_of_a_class": measured.test_counts.tolist(), "sets": sets, "lines": lines}


def draw(measured: Shifted) -> Figure:
    """Expected accuracy against the shift: a colour for each run, dashed with PC, the error as a band; points: first images."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    x = np.arange(len(measured.sets))
    looks = {
        run: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, run in enumerate(measured.rules)
    }
    for line in measured.lines:
        colour, marker = looks[line.run]
        expected, error, first = (
            100 * np.array([getattr(one, name) for one in line.accuracies])
            for name in ("expected", "standard_error", "first")
        )
        axes.fill_between(x, expected - error, expected + error, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, expected, color=colour, linestyle=LINES[line.compensated], linewidth=1.8)
        face = "white" if line.compensated else colour
        axes.plot(x, first, marker, color=colour, markerfacecolor=face, markersize=5, linestyle="none")
    axes.set_xticks(x, [one.name for one in measured.sets])
    axes.set_xlabel("test set: F as long-tailed as the training set, U uniform, B reversed; number: imbalance")
    axes.set_ylabel("top-1, %")
    runs = [Line2D([], [], color=colour, marker=marker, label=shown(run)) for run, (colour, marker) in looks.items()]
    kinds = [
        Line2D([], [], color="0.3", linestyle=LINES[0], label="without post-compensation"),
        Line2D([], [], color="0.3", linestyle=LINES[1], label="with it (open points)"),
    ]
    axes.legend(handles=[*runs, *kinds], title="lines: expected ± error\npoints: first images", loc="best")
    verbatim(figure)
    return figure


def page(measured: Shifted, title: str = TITLE, stem: str = "shifted") -> str:
    """The tables as Markdown, with the picture STEM.svg."""
    return markdown(title, tables(measured), notes(measured), [f"{stem}.svg"])


# ---- the command ----


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `shifted` to the commands of tools/figures.py."""
    command = commands.add_parser(
        "shifted", parents=[common], help="accuracy on shifted test sets, without and with post-compensation"
    )
    add = command.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run, an export, or a file of predictions (.npz)")
    add(
        "--imbalances",
        type=_imbalances,
        default=IMBALANCES,
        metavar="N,N,...",
        help="of the forward and backward sets (default: 50,25,10,5,2)",
    )
    for rule, what in (("balanced", "balanced softmax"), ("softmax", "plain softmax cross-entropy")):
        add(
            f"--{rule}",
            action="append",
            default=[],
            metavar="RUN",
            help=f"RUN, predictions of another program, was trained with {what}; may be repeated",
        )
    add(
        "--train-counts",
        type=path,
        metavar="FILE",
        help="training images of each class for predictions of another program: records, or text with a number in each line",
    )
    command.set_defaults(run=run)


def _imbalances(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 < one <= 1e6 for one in found):
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, numbers above 1 with commas between them allowed")
    return found


def run(args: argparse.Namespace) -> None:
    """Measure, and write shifted.md, .json, .svg and .png."""
    check_place(args.out, "shifted")
    given = None if args.train_counts is None else read_counts(args.train_counts, "--train-counts ")
    runs = open_runs(args.runs, args.settings, args.split)
    if args.train_counts is not None:
        if all(one.predictions.train_counts is not None for one in runs):
            raise UserError("--train-counts: every run says its own; leave it out")
        named = runs[0].predictions.class_names.tolist()  # as all runs have them
        if named != [str(label) for label in range(len(named))]:  # of a file that names none
            require_classes(args.train_counts, "--train-counts ", named)
    measured = measure(runs, args.imbalances, _rules(args, runs), given)
    paths = write_all(args.out, "shifted", page(measured), as_json(measured), draw(measured))
    print(f"written: {paths[0]}, {', '.join(one.name for one in paths[1:])}")


def _rules(args: argparse.Namespace, runs: Sequence[Run]) -> dict[str, Rule]:
    """By title; on the command line a run is named by its title, or as it was given."""
    titles = {run.title: run.title for run in runs} | dict(zip(args.runs, [run.title for run in runs], strict=True))
    rules: dict[str, Rule] = {}
    asked: dict[Rule, list[str]] = {"balanced": args.balanced, "softmax": args.softmax}
    for rule, names in asked.items():
        for name in names:
            if name not in titles:
                raise UserError(f"--{rule} {quoted(name)}: not one of the runs given: {', '.join(titles)}")
            if rules.setdefault(titles[name], rule) != rule:
                raise UserError(f"--balanced and --softmax both name {name}; leave one out")
    return rules
