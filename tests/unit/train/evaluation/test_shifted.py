"""Shifted test sets: the published totals, ranks and ties, the first images in list order, and the error of a draw."""

from itertools import combinations, product

import numpy as np
import pytest

from train.evaluation.shifted import (
    by_frequency,
    first_images,
    long_tail,
    shifted_accuracy,
    shifted_sets,
)

TOTALS = {  # (classes, test images of each): {imbalance: images}
    (1000, 50): {50: 12058, 25: 14437, 10: 19059, 5: 24365, 2: 35574},
    (100, 100): {50: 2486, 25: 2956, 10: 3876, 5: 4932, 2: 7166},
    (365, 100): {50: 8989, 25: 10727, 10: 14103, 5: 17970, 2: 26155},
    (8142, 3): {3: 11148, 2: 12906},
}


@pytest.mark.parametrize("size", TOTALS)
def test_the_published_totals(size: tuple[int, int]) -> None:
    """Forward and backward; numpy's power truncates to the same counts as Python's."""
    classes, most = size
    train = np.arange(classes)[::-1] + 5
    sets = {one.name: one.counts for one in shifted_sets(train, np.full(classes, most), list(TOTALS[size]))}
    for imbalance, total in TOTALS[size].items():
        forward, backward = sets[f"F{imbalance}"], sets[f"B{imbalance}"]
        assert forward.sum() == backward.sum() == total and np.array_equal(forward, backward[::-1])
        assert forward[0] == most and (np.diff(forward) <= 0).all() and forward.min() >= 1
        power = np.power(1 / imbalance, np.arange(classes) / (classes - 1))
        assert np.array_equal(forward, np.maximum(1, np.trunc(most * power).astype(int)))
    assert sets["U"].sum() == classes * most


def test_small_sets_keep_an_image_of_each_class() -> None:
    """Truncation alone would leave none: 3 / 50 of an image."""
    assert long_tail(3, 5, 50).tolist() == [3, 1, 1, 1, 1] and long_tail(1, 3, 2).tolist() == [1, 1, 1]
    assert long_tail(50, 2, 50).tolist() == [50, 1] and long_tail(7, 3, 1).tolist() == [7, 7, 7]
    for wrong in ((3, 1, 5), (0, 5, 5), (3, 5, 0.5)):
        with pytest.raises(ValueError, match="at least 2, 1 and 1"):
            long_tail(*wrong)


def test_sets_follow_the_training_frequency() -> None:
    """Ties in label order, in the backward set too: it is the mirror, not another ranking."""
    train, test = np.array([5, 20, 5, 80]), np.full(4, 8)
    assert by_frequency(train).tolist() == [3, 1, 0, 2]
    forward, small, uniform, large, backward = shifted_sets(train, test, [2, 8, 2.0])
    assert [one.name for one in (forward, small, uniform, large, backward)] == ["F8", "F2", "U", "B2", "B8"]
    assert forward.counts.tolist() == [2, 4, 1, 8] and backward.counts.tolist() == [4, 2, 8, 1]
    assert uniform.counts.tolist() == [8, 8, 8, 8] and (forward.imbalance, uniform.imbalance) == (8, 1)


def test_a_test_split_that_is_not_balanced_gives_sets_of_the_imbalance_that_they_name() -> None:
    forward, uniform, _ = shifted_sets(np.array([9, 6, 3]), np.array([40, 4, 10]), [4])
    assert forward.counts.tolist() == [4, 2, 1] and uniform.counts.tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="3 classes, 0 images"):
        shifted_sets(np.array([9, 6, 3]), np.array([40, 0, 10]), [4])


def test_the_first_images_of_each_class_are_taken() -> None:
    labels = np.array([2, 0, 0, 1, 2, 0, 1, 2])
    taken = first_images(labels, np.array([2, 0, 3]))
    assert np.flatnonzero(taken).tolist() == [0, 1, 2, 4, 7]
    slow = [i for i, label in enumerate(labels) if (labels[:i] == label).sum() < (2, 1, 1)[label]]
    assert np.flatnonzero(first_images(labels, np.array([2, 1, 1]))).tolist() == slow


def test_expectation_and_error_are_those_of_all_draws() -> None:
    """Every choice of 2 of 4, 1 of 3 and 2 of 2 images, counted one by one."""
    labels = np.array([0, 1, 2, 0, 0, 1, 2, 0, 1])
    right = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0], bool)
    counts = np.array([2, 1, 2])
    of_class = [np.flatnonzero(labels == label) for label in range(3)]
    choices = product(*(combinations(rows, n) for rows, n in zip(of_class, counts, strict=True)))
    draws = np.array([right[np.concatenate([np.array(part) for part in choice])].mean() for choice in choices])
    assert len(draws) == 6 * 3
    found = shifted_accuracy(right, labels, counts)
    assert found.expected == pytest.approx(draws.mean()) and found.standard_error == pytest.approx(draws.std())
    assert found.first == right[[0, 1, 2, 3, 6]].mean()


def test_the_error_is_that_of_random_draws_of_a_large_set() -> None:
    rng = np.random.default_rng(0)
    classes, images, most = 20, 30, 2000
    labels = rng.permutation(np.repeat(np.arange(classes), images))
    right = rng.random(len(labels)) < np.linspace(0.9, 0.1, classes)[labels]
    counts = long_tail(images, classes, 10)
    found = shifted_accuracy(right, labels, counts)
    draws = np.empty(most)
    for i in range(most):
        order = rng.permutation(len(labels))
        draws[i] = right[order[first_images(labels[order], counts)]].mean()
    assert abs(draws.mean() - found.expected) < 4 * found.standard_error / np.sqrt(most)
    assert draws.std() == pytest.approx(found.standard_error, rel=0.08)
    assert abs(found.first - found.expected) < 4 * found.standard_error


def test_a_set_of_all_images_has_no_error() -> None:
    labels, right = np.array([0, 0, 1, 1, 2]), np.array([1, 0, 1, 1, 0], bool)
    assert shifted_accuracy(right, labels, np.array([2, 2, 1])) == (0.6, 0.6, 0.0)
    for wrong in ([3, 2, 1], [0, 0, 0], [-1, 2, 1]):
        with pytest.raises(ValueError, match="a set needs images"):
            shifted_accuracy(right, labels, np.array(wrong))
