"""Shot groups of CIFAR-100-LT, accuracies and calibration by hand, empty groups and bins, classes without test images."""

import json

import numpy as np
import pytest

from train.evaluation.metrics import Answers, calibration_error, experts_used, figures, group_accuracies, shot_groups


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
        "balanced_accuracy": pytest.approx((0.9 + 0.5 + 0.75 + 0.0) / 4),
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
    assert got["top1"] == pytest.approx(np.mean(got["classes"])) == got["balanced_accuracy"]
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
    assert got["top1"] == pytest.approx(5 / 7) and got["balanced_accuracy"] == pytest.approx((0.8 + 0.5) / 2)


def test_no_test_images_at_all() -> None:
    got = group_accuracies(np.zeros(2), np.zeros(2), np.array([300, 3]))
    assert got["top1"] is None and got["many"] is None and got["classes_without_test_images"] == 2
    assert got["balanced_accuracy"] is None
    none = Answers(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    found = figures(none, np.arange(7))
    assert [found[name] for name in ("top1", "top5", "nll", "ece", "samples")] == [None] * 4 + [0]


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


# ---- of each sample ----


def some_answers(n: int, classes: int) -> Answers:
    rng = np.random.RandomState(0)
    labels, ranks = rng.randint(0, classes, n), rng.randint(0, classes, n)
    return Answers(labels, ranks, rng.exponential(2, n), rng.uniform(1 / classes, 1, n))


def test_figures_of_samples() -> None:
    answers = some_answers(500, 8)
    got = figures(answers, np.array([500, 300, 200, 101, 100, 20, 19, 1]))
    right = answers.ranks == 0
    by_class = [right[answers.labels == c].mean() for c in range(8)]
    assert got["samples"] == 500 and got["top1"] == right.mean() and got["classes"] == pytest.approx(by_class)
    assert got["top5"] == np.isin(answers.ranks, range(5)).mean()
    assert got["balanced_accuracy"] == pytest.approx(np.mean(by_class))
    assert got["nll"] == pytest.approx(answers.nll.mean(), rel=1e-12)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert list(got)[:2] == ["top1", "top5"]


def test_the_order_of_the_samples_does_not_matter_at_all() -> None:
    """Batches and processes only change the order: the figures are equal to the last digit."""
    answers, counts = some_answers(1000, 8), np.arange(8)
    order = np.random.RandomState(1).permutation(1000)
    shuffled = Answers(*(column[order] for column in answers))
    assert np.cumsum(answers.nll)[-1] != np.cumsum(shuffled.nll)[-1]  # as it would with a plain sum
    assert figures(answers, counts) == figures(shuffled, counts)


@pytest.mark.parametrize(("classes", "expected"), [(1, None), (5, None), (6, 5 / 6)])
def test_top5_needs_more_than_five_classes(classes: int, expected: float | None) -> None:
    one_of_each = np.arange(classes)
    answers = Answers(one_of_each, one_of_each, np.ones(classes), np.ones(classes))
    assert figures(answers, np.ones(classes))["top5"] == expected


def by_definition(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 2, 15, 100])
def test_calibration_error_is_the_published_one(bins: int) -> None:
    rng = np.random.RandomState(bins)
    for spread in (0.05, 1.0):  # most bins empty, or none
        confidence = 1 - spread * rng.uniform(0, 1, 777)
        right = rng.uniform(0, 1, 777) < confidence**2
        found = calibration_error(confidence, right, bins)
        assert found == pytest.approx(by_definition(confidence, right, bins), rel=1e-12)


def test_calibration_error_by_hand() -> None:
    right = np.array([True, True, False, False])
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4), right) == 0.5 == calibration_error(np.full(4, 1.0), ~right)
    assert calibration_error(np.full(4, 0.5), right) == 0  # calibrated, in one bin
    # Two bins, off by 0.1 to either side: their errors add up, they do not cancel.
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), right) == pytest.approx(0.1)
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), right, bins=1) == pytest.approx(0)


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    for edge in np.arange(1, 15) / 15:
        middle = edge - 1 / 30
        found = calibration_error(np.array([edge, middle]), np.array([True, False]))
        apart = ((1 - edge) + middle) / 2  # their errors of opposite signs cancel only within a bin
        assert found == pytest.approx(abs(1 - edge - middle) / 2) and found < apart - 0.01
    assert calibration_error(np.array([0.2, np.nextafter(0.2, 1)]), np.array([True, False])) == pytest.approx(0.5)


def test_experts_used_by_hand() -> None:
    """Overall a mean over images; in a group over classes, whatever their numbers of test images; in any order."""
    labels, used = np.array([0, 0, 0, 0, 1, 2, 2]), np.array([1, 1, 1, 3, 2, 3, 2])
    train = np.array([500, 200, 50, 5])
    expected = {
        "experts_used": 13 / 7,
        "experts_used_many": (1.5 + 2) / 2,
        "experts_used_medium": 2.5,
        "experts_used_few": None,
        "expert_shares": [1.0, 4 / 7, 2 / 7],
    }
    assert experts_used(labels, used, train, 3) == expected
    order = np.random.default_rng(0).permutation(7)
    assert experts_used(labels[order], used[order], train, 3) == expected
    none = np.zeros(0, np.int64)
    assert experts_used(none, none, train, 2) == dict.fromkeys(expected) | {"expert_shares": [None, None]}
