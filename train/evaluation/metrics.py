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


class ExpertsUsed(TypedDict):
    experts_used: float | None
    experts_used_many: float | None
    experts_used_medium: float | None
    experts_used_few: float | None
    expert_shares: list[float | None]


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
    if not correct.shape == total.shape == np.shape(train_counts_C):
        raise ValueError(
            f"classes: {correct.shape} correct, {total.shape} total, {np.shape(train_counts_C)} train counts"
        )
    if (correct < 0).any() or (correct > total).any():
        raise ValueError("correct must be from 0 to total in every class")
    tested = total > 0
    accuracy = correct / np.maximum(total, 1)
    groups = _means_of_groups(accuracy, tested, train_counts_C)
    return Accuracies(
        top1=float(correct.sum() / total.sum()) if tested.any() else None,
        balanced_accuracy=float(accuracy[tested].mean()) if tested.any() else None,
        many=groups["many"],
        medium=groups["medium"],
        few=groups["few"],
        classes=[float(a) if seen else None for a, seen in zip(accuracy, tested, strict=True)],
        classes_without_test_images=int((~tested).sum()),
    )


def experts_used(labels_n: np.ndarray, used_n: np.ndarray, train_counts_C: np.ndarray, experts: int) -> ExpertsUsed:
    """How many of a network's `experts` answered: the mean over the samples, and in each group, as of accuracies, over classes.

    labels, used: int64 [n], used from 1 to `experts`. expert_shares: the share of the samples that each expert ran on.
    """
    classes, samples = len(train_counts_C), len(labels_n)
    total_C = np.bincount(labels_n, minlength=classes)
    used_C = np.bincount(labels_n, weights=used_n, minlength=classes)  # whole numbers, exact in any order
    groups = _means_of_groups(used_C / np.maximum(total_C, 1), total_C > 0, train_counts_C)
    return ExpertsUsed(
        experts_used=_mean(used_n),
        experts_used_many=groups["many"],
        experts_used_medium=groups["medium"],
        experts_used_few=groups["few"],
        expert_shares=[int((used_n > i).sum()) / samples if samples else None for i in range(experts)],
    )


def _means_of_groups(values_C: np.ndarray, tested_C: np.ndarray, train_counts_C: np.ndarray) -> dict[str, float | None]:
    """{many, medium, few: the unweighted mean over their classes with test images}; None where there are none."""
    groups = {name: members & tested_C for name, members in shot_groups(train_counts_C).items()}
    return {name: float(values_C[members].mean()) if members.any() else None for name, members in groups.items()}


def calibration_error(confidence_n: np.ndarray, right_n: np.ndarray, bins: int = BINS) -> float | None:
    """Expected calibration error: the mean of |accuracy - mean confidence| over bins, weighted by their samples.

    confidence: from 0 to 1; right: bool.
    """
    if not len(confidence_n):
        return None
    bin_n = confidence_bins(confidence_n, bins)
    excess_n = confidence_n - right_n
    # A bin's share of the samples times the difference of its two means is the difference of its two sums over all samples.
    gaps = [abs(math.fsum(excess_n[bin_n == one].tolist())) for one in range(bins)]
    return math.fsum(gaps) / len(confidence_n)


def confidence_bins(confidence_n: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int64 [n]: the bin of each confidence; the bins are equally wide, and each holds its upper edge and not its lower one."""
    return np.searchsorted(np.arange(1, bins + 1) / bins, confidence_n, side="left")


def _mean(values_n: np.ndarray) -> float | None:
    """Of the exact sum, rounded once, so that the order does not matter."""
    return math.fsum(values_n.tolist()) / len(values_n) if len(values_n) else None
