"""What the runs of one report have in common: the images, and how often each class was trained.

Owns which rows of different predictions are the same image. Invariant: rows that are compared have the same label; anything
else is refused.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.errors import UserError
from tools.reporting.runs import Run
from train.evaluation.metrics import shot_groups
from train.evaluation.predictions import Predictions


def same_images(runs: Sequence[Run]) -> list[np.ndarray]:
    """For each run its rows, int64 [n], so that row i is the same image in all of them: the list order of the first.

    Images are told by their keys; in files of other programs, which may hold none, by their place in the list.
    """
    first = runs[0].predictions
    rows = [first.by_list]
    for run in runs[1:]:
        found = run.predictions
        if np.array_equal(np.sort(found.keys), np.sort(first.keys)):
            order = np.argsort(found.keys, kind="stable")
            rows.append(order[np.searchsorted(found.keys[order], first.keys[rows[0]])])
        elif _numbered(found) or _numbered(first):
            rows.append(found.by_list)
        else:
            raise _others(run, runs[0], "other images than")
        if not np.array_equal(found.labels[rows[-1]], first.labels[rows[0]]):
            raise _others(run, runs[0], "other images than, or other labels than,")
    return rows


def _numbered(found: Predictions) -> bool:
    """Whether the samples have numbers in place of keys."""
    return np.array_equal(found.keys, np.arange(len(found.keys)))


def _others(run: Run, first: Run, what: str) -> UserError:
    return UserError(f"{run.title} holds predictions of {what} {first.title}; evaluate both on the same records")


def known_counts(runs: Sequence[Run]) -> np.ndarray | None:
    """Training images of each class, int64 [C], of the first run that knows them; None where no run does."""
    return next((run.predictions.train_counts for run in runs if run.predictions.train_counts is not None), None)


def notes_on_checkpoints(runs: Sequence[Run]) -> list[str]:
    """Which runs were still in training when they were evaluated."""
    return [
        f"{run.title} is unfinished: its figures are those of its newest checkpoint, after step {run.step:,}"
        for run in runs
        if run.step is not None
    ]


def notes_on_records(runs: Sequence[Run]) -> list[str]:
    """What readers must know of runs that were evaluated on different records."""
    digests = {run.title: run.predictions.records for run in runs}
    if len(set(digests.values())) < 2:
        return []
    told = ", ".join(f"{title} {digest[:12] or 'not known'}" for title, digest in digests.items())
    return [
        f"These runs were not evaluated on the same records, or it is not known (digests: {told}); compare with care"
    ]


def notes_on_counts(runs: Sequence[Run]) -> list[str]:
    """What readers must know of runs that were trained on different numbers of images."""
    knowing = [(run.title, counts) for run in runs if (counts := run.predictions.train_counts) is not None]
    others = [title for title, counts in knowing[1:] if not np.array_equal(counts, knowing[0][1])]
    if not others:
        return []
    return [f"training images and shot groups are those of {knowing[0][0]}; trained on others: {', '.join(others)}"]


def group_of_each(counts: np.ndarray | None, classes: int) -> list[str]:
    """many, medium or few for each class; empty where the training images are not known."""
    if counts is None:
        return [""] * classes
    groups = shot_groups(counts)
    return [next(name for name, members in groups.items() if members[label]) for label in range(classes)]
