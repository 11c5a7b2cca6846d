"""The figures of an evaluation, from what each sample was answered.

Owns the definition of every figure: many-, medium- and few-shot (by TRAINING images) and a group's accuracy, the unweighted mean
of the accuracies of its classes; top-5 and balanced accuracy, negative log-likelihood, calibration error. Plain numpy in, plain
numbers out; accuracies are fractions from 0 to 1.
Invariants: what cannot be computed (an empty group, a class without test images) is None, never 0; no figure depends on the order
of the samples, not even in its last digit.
Shapes: C classes, n samples.
"""

import math
from typing import NamedTuple, TypedDict

import numpy as np

MANY_ABOVE = 100  # training images; many > 100, medium 20..100, few < 20 (Liu et al. 2019, arXiv 1904.05160)
FEW_BELOW = 20
BINS = 15  # of the confidence, as in Guo et al. 2017, arXiv 1706.04599


class Accuracies(TypedDict):
    top1: float | None
    balanced_accuracy: float | None
    many: float | None
    medium: float | None
    few: float | None
    classes: list[float | None]
    classes_without_test_images: int


class Figures(Accuracies):
    top5: float | None
    nll: float | None
    ece: float | None
    samples: int


class Answers(NamedTuple):
    """What the figures need of each sample, in any order (counting.py computes it from logits)."""

    labels: np.ndarray
    "int64 [n]"
    ranks: np.ndarray
    "int64 [n]: how many classes came before that of the label; 0 is a right answer"
    nll: np.ndarray
    "float64 [n]: minus the logarithm of the label's softmax probability"
    confidence: np.ndarray
    "float64 [n]: the softmax probability of the predicted class"


def figures(answers: Answers, train_counts_C: np.ndarray) -> Figures:
    """All figures; ValueError for labels outside of 0..C-1."""
    classes, right = len(train_counts_C), answers.ranks == 0
    total_C = np.bincount(answers.labels, minlength=classes)
    correct_C = np.bincount(answers.labels[right], minlength=classes)
    accuracies = group_accuracies(correct_C, total_C, train_counts_C)
    return {
        "top1": accuracies["top1"],  # in the order of the screen
        "top5": _mean(answers.ranks < 5) if classes > 5 else None,
        "nll": _mean(answers.nll),
        "ece": calibration_error(answers.confidence, right),
        **accuracies,
        "samples": len(answers.labels),
    }


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """bool[C] of many, medium, few, from the training images per class; every class is in exactly one."""
    counts = np.asarray(class_counts)
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def group_accuracies(correct_C: np.ndarray, total_C: np.ndarray, train_counts_C: np.ndarray) -> Accuracies:
    """Accuracies from the numbers of correct and of all test images per class: top1 over samples, the others over classes.

    Classes without test images are left out of the means and counted in `classes_without_test_images`.
    ValueError when the three arguments disagree.
    """
    correct, total = np.asarray(correct_C, dtype=np.int64), np.asarray(total_C, dtype=np.int64)
    groups = shot_groups(train_counts_C)
    if not correct.shape == total.shape == groups["many"].shape:
        raise ValueError(f"classes: {correct.shape} correct, {total.shape} total, {groups['many'].shape} train counts")
    if (correct < 0).any() or (correct > total).any():
        raise ValueError("correct must be from 0 to total in every class")
    tested = total > 0
    accuracy = correct / np.maximum(total, 1)

    def mean(group: str) -> float | None:
        members = groups[group] & tested
        return float(accuracy[members].mean()) if members.any() else None

    return Accuracies(
        top1=float(correct.sum() / total.sum()) if tested.any() else None,
        balanced_accuracy=float(accuracy[tested].mean()) if tested.any() else None,
        many=mean("many"),
        medium=mean("medium"),
        few=mean("few"),
        classes=[float(a) if seen else None for a, seen in zip(accuracy, tested, strict=True)],
        classes_without_test_images=int((~tested).sum()),
    )


def calibration_error(confidence_n: np.ndarray, right_n: np.ndarray, bins: int = BINS) -> float | None:
    """Expected calibration error: the mean of |accuracy - mean confidence| over bins, weighted by their samples.

    confidence: from 0 to 1; right: bool. The bins are equally wide; each holds its upper edge and not its lower one.
    """
    if not len(confidence_n):
        return None
    upper = np.arange(1, bins + 1) / bins
    bin_n = np.searchsorted(upper, confidence_n, side="left")
    excess_n = confidence_n - right_n
    # A bin's share of the samples times the difference of its two means is the difference of its two sums over all samples.
    gaps = [abs(math.fsum(excess_n[bin_n == one].tolist())) for one in range(bins)]
    return math.fsum(gaps) / len(confidence_n)


def _mean(values_n: np.ndarray) -> float | None:
    """Of the exact sum, rounded once, so that the order does not matter."""
    return math.fsum(values_n.tolist()) / len(values_n) if len(values_n) else None
