"""Accuracy by shot group, from per-class counts.

Owns the definition of many-, medium- and few-shot (by TRAINING images) and of a group's accuracy: the unweighted
mean of the accuracies of its classes. Plain numpy in, plain numbers out; accuracies are fractions from 0 to 1.
Invariant: what cannot be computed (an empty group, a class without test images) is None, never 0.
Shapes: C classes.
"""

from typing import TypedDict

import numpy as np

MANY_ABOVE = 100  # training images; many > 100, medium 20..100, few < 20 (Liu et al. 2019, arXiv 1904.05160)
FEW_BELOW = 20


class Accuracies(TypedDict):
    top1: float | None
    many: float | None
    medium: float | None
    few: float | None
    classes: list[float | None]
    classes_without_test_images: int


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """bool[C] of many, medium, few, from the training images per class; every class is in exactly one."""
    counts = np.asarray(class_counts)
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def group_accuracies(correct_C: np.ndarray, total_C: np.ndarray, train_counts_C: np.ndarray) -> Accuracies:
    """Accuracies from the numbers of correct and of all test images per class: top1 over samples, groups over classes.

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
        many=mean("many"),
        medium=mean("medium"),
        few=mean("few"),
        classes=[float(a) if seen else None for a, seen in zip(accuracy, tested, strict=True)],
        classes_without_test_images=int((~tested).sum()),
    )
