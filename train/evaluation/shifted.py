"""Test sets with a shifted class distribution, and the accuracy on them without and with a draw of their images.

Classes are ranked by training frequency. A forward set is long-tailed as the training set is, a backward set the other way
round, the uniform set has as many images of each class (He, Wu, Wei, supplementary, Table 2, after arXiv 2012.00321 and
2107.09249). Owns how many images of which classes such a set has. Invariant: nothing is drawn at random.
Shapes: n test images, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ShiftedSet(NamedTuple):
    """One test set. name: F50, U, B50; imbalance: most by fewest images of a class, as asked for; 1 of U."""

    name: str
    imbalance: float
    counts: np.ndarray
    "int64 [C], in label order: its images of each class, at least 1"


class ShiftedAccuracy(NamedTuple):
    """Top-1 over the images of one set, as fractions from 0 to 1."""

    first: float
    "of the first images of each class, in the order of the list"
    expected: float
    "the mean over all choices of as many images of each class"
    standard_error: float
    "the standard deviation over these choices; 0 where a set holds all test images"


def by_frequency(train_counts: np.ndarray) -> np.ndarray:
    """The classes from frequent to rare, int64 [C]; those with as many training images in label order."""
    return np.argsort(-np.asarray(train_counts, np.int64), kind="stable")


def long_tail(most: int, classes: int, imbalance: float) -> np.ndarray:
    """Images of the class of each rank, int64 [classes]: most * (1 / imbalance) ** (rank / (classes - 1)), truncated; at least 1.

    In double precision: where the exact value is a whole number, its rounding decides, and the published totals follow from it.
    """
    if classes < 2 or most < 1 or imbalance < 1:
        raise ValueError(f"{classes} classes, {most} images and imbalance {imbalance}: at least 2, 1 and 1 are needed")
    share = 1 / imbalance
    return np.array([max(1, int(most * share ** (rank / (classes - 1)))) for rank in range(classes)], np.int64)


def shifted_sets(train_counts: np.ndarray, test_counts: np.ndarray, imbalances: Sequence[float]) -> list[ShiftedSet]:
    """The sets of Table 2: forward by falling imbalance, uniform, backward by rising imbalance.

    The most frequent class of each has as many images as the test split has of the class with the fewest. That is all of them
    for a balanced split; in any other one the images beyond that number are in no set, so that every set has the imbalance
    that its name says, if that number is as large. ValueError where the split has none of some class.
    """
    ranked, most = by_frequency(train_counts), int(np.min(test_counts))
    falling = sorted(set(imbalances), reverse=True)

    def of(name: str, imbalance: float, labels: np.ndarray) -> ShiftedSet:
        counts = np.empty(len(labels), np.int64)
        counts[labels] = long_tail(most, len(labels), imbalance)
        return ShiftedSet(name, imbalance, counts)

    forward = [of(f"F{imbalance:g}", imbalance, ranked) for imbalance in falling]
    backward = [of(f"B{imbalance:g}", imbalance, ranked[::-1]) for imbalance in reversed(falling)]
    return [*forward, of("U", 1, ranked), *backward]


def first_images(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which test images are in a set, bool [n]: the first counts[c] of each class c; labels [n] in the order of the list."""
    order = np.argsort(labels, kind="stable")
    totals = np.bincount(labels, minlength=len(counts))
    place = np.empty(len(labels), np.int64)  # of each image within its class
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(totals) - totals, totals)
    return place < counts[labels]


def shifted_accuracy(right: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> ShiftedAccuracy:
    """Accuracy on the set of counts [C]; right bool [n]: whether each image of the split is answered right, in list order.

    With N_c test images of class c, a_c the share of them that is right, n_c of them in the set, and n the sum of all n_c:

        expected = sum n_c a_c / n
        standard_error = sqrt(sum n_c a_c (1 - a_c) (N_c - n_c) / (N_c - 1)) / n

    The right answers among n_c images drawn without replacement follow the hypergeometric distribution, whose variance is the
    term of the sum; the classes are drawn independently. The error says how far another choice of images would lie, not how
    far other test images or another training would.
    """
    totals = np.bincount(labels, minlength=len(counts))
    if (counts > totals).any() or (counts < 0).any() or not counts.sum():
        raise ValueError("a set needs images, and no more of a class than the split has")
    images = counts.sum()
    share = np.bincount(labels, weights=right, minlength=len(counts)) / np.maximum(totals, 1)
    variance = counts * share * (1 - share) * (totals - counts) / np.maximum(totals - 1, 1)
    return ShiftedAccuracy(
        first=float(np.mean(right[first_images(labels, counts)])),
        expected=float((counts * share).sum() / images),
        standard_error=float(np.sqrt(variance.sum()) / images),
    )
