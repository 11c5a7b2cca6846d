"""Shot groups of CIFAR-100-LT, group accuracies by hand, empty groups, classes without test images."""

import json

import numpy as np
import pytest

from train.evaluation.metrics import group_accuracies, shot_groups


def cifar100_lt(imbalance: int) -> np.ndarray:
    mu = 1 / imbalance
    return np.array([int(500 * mu ** (i / 99)) for i in range(100)])


@pytest.mark.parametrize(
    ("imbalance", "total", "sizes"),
    [(100, 10_847, (35, 35, 30)), (50, 12_608, (41, 41, 18)), (10, 19_573, (69, 31, 0))],
)
def test_groups_of_cifar100_lt(imbalance: int, total: int, sizes: tuple[int, int, int]) -> None:
    counts = cifar100_lt(imbalance)
    assert counts.sum() == total
    groups = shot_groups(counts)
    assert tuple(int(groups[name].sum()) for name in ("many", "medium", "few")) == sizes
    assert (sum(group.astype(int) for group in groups.values()) == 1).all()


def test_group_borders() -> None:
    groups = shot_groups(np.array([101, 100, 20, 19, 0]))
    assert {name: group.tolist() for name, group in groups.items()} == {
        "many": [True, False, False, False, False],
        "medium": [False, True, True, False, False],
        "few": [False, False, False, True, True],
    }


def test_accuracies_by_hand() -> None:
    """Unbalanced test set: top1 counts samples, groups count classes."""
    got = group_accuracies(
        correct_C=np.array([90, 1, 3, 0]),
        total_C=np.array([100, 2, 4, 5]),
        train_counts_C=np.array([500, 200, 50, 5]),
    )
    assert got == {
        "top1": pytest.approx(94 / 111),
        "many": pytest.approx((0.9 + 0.5) / 2),
        "medium": 0.75,
        "few": 0.0,
        "classes": [0.9, 0.5, 0.75, 0.0],
        "classes_without_test_images": 0,
    }


def test_a_balanced_test_set_makes_micro_and_macro_equal() -> None:
    correct = np.random.RandomState(0).randint(0, 101, 100)
    got = group_accuracies(correct, np.full(100, 100), cifar100_lt(100))
    assert got["top1"] == pytest.approx(correct.mean() / 100)
    assert got["top1"] == pytest.approx(np.mean(got["classes"]))
    assert got["many"] == pytest.approx(correct[:35].mean() / 100)
    assert got["medium"] == pytest.approx(correct[35:70].mean() / 100)
    assert got["few"] == pytest.approx(correct[70:].mean() / 100)


def test_an_empty_group_is_none() -> None:
    got = group_accuracies(np.full(100, 60), np.full(100, 100), cifar100_lt(10))
    assert got["few"] is None
    assert [got["many"], got["medium"], got["top1"]] == pytest.approx([0.6, 0.6, 0.6])


def test_classes_without_test_images_are_left_out_and_counted() -> None:
    got = group_accuracies(np.array([4, 0, 1, 0]), np.array([5, 0, 2, 0]), np.array([300, 200, 50, 3]))
    assert got["many"] == 0.8 and got["medium"] == 0.5 and got["few"] is None
    assert got["classes"] == [0.8, None, 0.5, None]
    assert got["classes_without_test_images"] == 2
    assert got["top1"] == pytest.approx(5 / 7)


def test_no_test_images_at_all() -> None:
    got = group_accuracies(np.zeros(2), np.zeros(2), np.array([300, 3]))
    assert got["top1"] is None and got["many"] is None and got["classes_without_test_images"] == 2


def test_the_result_is_plain_json() -> None:
    got = group_accuracies(np.array([1, 0], np.int32), np.array([2, 0], np.int32), np.array([300, 3], np.int32))
    assert json.loads(json.dumps(got, allow_nan=False)) == got


@pytest.mark.parametrize(
    ("correct", "total", "train"),
    [([1, 2], [2, 2], [9, 9, 9]), ([1], [2, 2], [9, 9]), ([3, 1], [2, 2], [9, 9]), ([-1, 1], [2, 2], [9, 9])],
)
def test_counts_that_disagree_are_refused(correct: list, total: list, train: list) -> None:
    with pytest.raises(ValueError):
        group_accuracies(np.array(correct), np.array(total), np.array(train))
