"""The order of samples and views: one global sequence for any file, world size or starting place."""

import sys
import tracemalloc
from collections import Counter
from decimal import Decimal, localcontext
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from pipelines import philox
from pipelines.batch import Plan
from pipelines.order import Sampling, TrainOrder, drawn, evaluation_shard, with_partners
from pipelines.philox import LANE_CLASS_BALANCED, LANE_ORDER, LANE_PARTNER, draw

SAMPLINGS = pytest.mark.parametrize("sampling", ["instance", "square_root", "class_balanced"])


def some_keys(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, n)


def labels_of(keys: np.ndarray) -> np.ndarray:
    """A long tail with a hole: labels 0, 1, 2, 4, 5 for 60, 25, 10, 4 and 1 % of the keys; a key always has the same label."""
    return np.array([0, 1, 2, 4, 5])[np.searchsorted([60, 85, 95, 99], keys % 100, side="right")]


def make(keys: np.ndarray, sampling: str, **settings: Any) -> TrainOrder:
    """An order in which the labels follow the keys."""
    return TrainOrder(keys, labels=labels_of(keys), sampling=sampling, **settings)  # type: ignore[arg-type]


def steps(order: TrainOrder, first: int, stop: int) -> list[tuple[list[int], list[int]]]:
    return [(plan.positions.tolist(), plan.views.tolist()) for plan in order.plan(first, stop)]


# All samplings


@SAMPLINGS
@pytest.mark.parametrize(("samples", "batch"), [(1000, 1), (1000, 8), (1000, 333), (1000, 1000), (7, 4)])
def test_an_epoch_holds_full_batches(samples: int, batch: int, sampling: str) -> None:
    order = make(some_keys(samples), sampling, seed=0, batch=batch, views=3)
    positions, views = order.epoch(0)
    assert order.steps_per_epoch == samples // batch
    assert len(positions) == len(views) == samples // batch * batch
    assert positions.min() >= 0 and positions.max() < samples
    assert positions.dtype == np.int64 and views.dtype == np.int32


@SAMPLINGS
def test_epochs_and_seeds_have_orders_of_their_own(sampling: str) -> None:
    orders = {
        tuple(make(some_keys(50), sampling, seed=seed, batch=50, views=1).epoch(epoch)[0].tolist())
        for seed in (0, 1, 1 << 32, (1 << 63) - 1)
        for epoch in range(6)
    }
    assert len(orders) == 24


@SAMPLINGS
def test_order_is_by_key_not_by_place_in_the_file(sampling: str) -> None:
    keys = some_keys(500)
    moved = np.random.default_rng(1).permutation(500)
    for epoch in range(3):
        a, views_a = make(keys, sampling, seed=5, batch=100, views=4).epoch(epoch)
        b, views_b = make(keys[moved], sampling, seed=5, batch=100, views=4).epoch(epoch)
        np.testing.assert_array_equal(keys[a], keys[moved][b])
        np.testing.assert_array_equal(views_a, views_b)


@SAMPLINGS
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_world_walks_the_same_global_sequence(world: int, sampling: str) -> None:
    keys = some_keys(101)
    whole = steps(make(keys, sampling, seed=1, batch=12, views=2), 0, 20)
    ranks = [
        steps(make(keys, sampling, seed=1, batch=12, views=2, rank=rank, world=world), 0, 20) for rank in range(world)
    ]
    for step, (positions, views) in enumerate(whole):
        assert sum((rank[step][0] for rank in ranks), []) == positions
        assert sum((rank[step][1] for rank in ranks), []) == views
        assert {len(rank[step][0]) for rank in ranks} == {12 // world}


@SAMPLINGS
def test_a_plan_from_any_step_is_the_tail_of_the_whole_plan(sampling: str) -> None:
    order = make(some_keys(50), sampling, seed=2, batch=12, views=3, rank=1, world=2)  # 4 steps an epoch
    whole = steps(order, 0, 18)
    assert len(whole) == 18
    for first in range(19):
        again = make(some_keys(50), sampling, seed=2, batch=12, views=3, rank=1, world=2)  # as after restarting
        assert steps(again, first, 18) == whole[first:]
    assert steps(order, 3, 9) == whole[3:9]


@SAMPLINGS
def test_a_plan_is_its_epochs_in_turn(sampling: str) -> None:
    order = make(some_keys(50), sampling, seed=2, batch=12, views=3)
    whole = steps(order, 0, 4 * 5)
    for epoch in range(5):
        positions, views = order.epoch(epoch)
        part = whole[4 * epoch : 4 * epoch + 4]
        assert sum((p for p, _ in part), []) == positions.tolist() and sum((v for _, v in part), []) == views.tolist()


@SAMPLINGS
@pytest.mark.parametrize("views", [1, 2, 5, 90])
def test_occurrence_k_in_epoch_e_shows_view_e_plus_k_mod_v(views: int, sampling: str) -> None:
    """Counted in plain Python; in class-balanced epochs of 400 places the smallest class comes more than 5 times per view."""
    keys = some_keys(400)
    for epoch in (0, 1, 4, 89, 1000):
        seen: Counter[int] = Counter()
        positions, found = make(keys, sampling, seed=1, batch=8, views=views).epoch(epoch)
        for position, view in zip(positions.tolist(), found.tolist(), strict=True):
            assert view == (epoch + seen[position]) % views
            seen[position] += 1
        assert max(seen.values()) in {"instance": (1,), "square_root": range(5, 11)}.get(sampling, range(11, 99))


@SAMPLINGS
def test_views_do_not_move_the_order(sampling: str) -> None:
    a, b = (make(some_keys(40), sampling, seed=0, batch=10, views=views).epoch(8)[0] for views in (1, 7))
    np.testing.assert_array_equal(a, b)


def test_orders_draw_from_lanes_of_their_own() -> None:
    lanes = [value for name, value in vars(philox).items() if name.startswith("LANE_")]
    assert {LANE_ORDER, LANE_CLASS_BALANCED} < set(lanes) and len(set(lanes)) == len(lanes)


# Python integers: a run that resumes elsewhere, or years later, must continue in the same order.
VECTOR_KEYS = np.array([i * 0x9E3779B97F4A7C15 % (1 << 63) for i in range(24)])
VECTOR_LABELS = np.repeat([0, 1, 3, 4], [15, 5, 3, 1])
# fmt: off
INSTANCE_VECTORS = {
    0: [12, 1, 18, 21, 8, 20, 19, 17, 9, 15, 11, 23, 6, 7, 3, 14, 2, 5, 0, 4, 13, 16, 10, 22],
    1: [10, 8, 23, 15, 17, 3, 18, 21, 11, 2, 9, 6, 0, 22, 5, 7, 12, 20, 14, 1, 16, 19, 13, 4],
    1000: [23, 17, 1, 5, 20, 19, 12, 7, 14, 18, 16, 13, 22, 3, 4, 0, 2, 15, 9, 11, 21, 6, 10, 8],
}
BALANCED_VECTORS = {
    0: ([15, 23, 11, 21, 17, 3, 23, 22, 16, 23, 20, 4, 18, 6, 23, 21, 22, 19, 2, 23, 16, 23, 20, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 1, 1, 0, 0, 0, 1, 1, 1, 0]),
    1: ([23, 2, 20, 18, 19, 23, 0, 21, 22, 17, 4, 23, 22, 15, 23, 13, 8, 23, 16, 20, 23, 19, 21, 9],
        [1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3, 2, 1, 0, 1, 1, 1, 1, 2, 2, 2, 2, 1]),
    1000: ([21, 16, 23, 0, 17, 10, 23, 20, 22, 15, 3, 23, 21, 9, 19, 23, 23, 18, 7, 22, 15, 6, 23, 20],
           [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 1, 0, 0, 3, 0, 0, 0, 1, 1, 0, 1, 1]),
}
SQUARE_ROOT_VECTORS = {
    0: ([21, 20, 22, 9, 17, 23, 10, 5, 22, 23, 1, 16, 14, 0, 8, 11, 15, 3, 18, 19, 12, 19, 20, 4],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]),
    1: ([3, 15, 14, 20, 8, 23, 21, 4, 18, 10, 16, 17, 7, 19, 5, 22, 23, 13, 2, 21, 17, 6, 11, 22],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 1, 1, 2]),
    1000: ([21, 4, 16, 19, 15, 10, 9, 18, 20, 22, 12, 17, 21, 8, 20, 3, 23, 23, 6, 23, 5, 7, 16, 0],
           [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 2, 0, 0, 1, 0]),
}
# fmt: on


def test_instance_order_gives_the_committed_vectors() -> None:
    order = TrainOrder(VECTOR_KEYS, seed=(1 << 63) - 5, batch=6, views=4)
    for epoch, positions in INSTANCE_VECTORS.items():
        assert order.epoch(epoch)[0].tolist() == positions


@pytest.mark.parametrize(
    ("sampling", "vectors"), [("square_root", SQUARE_ROOT_VECTORS), ("class_balanced", BALANCED_VECTORS)]
)
def test_orders_by_class_give_the_committed_vectors(
    sampling: Sampling, vectors: dict[int, tuple[list[int], list[int]]]
) -> None:
    order = TrainOrder(VECTOR_KEYS, (1 << 63) - 5, 6, 4, labels=VECTOR_LABELS, sampling=sampling)
    for epoch, (positions, views) in vectors.items():
        found = order.epoch(epoch)
        assert (found[0].tolist(), found[1].tolist()) == (positions, views)


# Instance-balanced


@pytest.mark.parametrize(("samples", "batch"), [(1000, 8), (1000, 333), (7, 4)])
def test_a_sample_comes_at_most_once_in_an_instance_balanced_epoch(samples: int, batch: int) -> None:
    positions, _ = TrainOrder(some_keys(samples), seed=0, batch=batch, views=3).epoch(0)
    assert len(np.unique(positions)) == len(positions)


def test_instance_order_is_that_of_a_draw_of_each_key() -> None:
    keys, seed = some_keys(300), (1 << 63) - 3
    for epoch in (0, 1, 77):
        words = [[int(word) for word in draw(seed, key, epoch, LANE_ORDER, 0)[:2]] for key in keys]
        positions, _ = TrainOrder(keys, seed, batch=300, views=1).epoch(epoch)
        assert positions.tolist() == sorted(range(300), key=words.__getitem__)


def test_what_an_epoch_leaves_out_changes_from_epoch_to_epoch() -> None:
    order = TrainOrder(some_keys(100), seed=0, batch=30, views=1)
    left = [frozenset(range(100)) - set(order.epoch(epoch)[0].tolist()) for epoch in range(5)]
    assert len(set(left)) == 5 and all(len(some) == 10 for some in left)


def test_places_are_uniform() -> None:
    """Each sample's mean place over many epochs, against the exact variance of a uniform place."""
    n, epochs = 64, 400
    order = TrainOrder(some_keys(n), seed=3, batch=n, views=1)
    places = np.argsort([order.epoch(epoch)[0] for epoch in range(epochs)], axis=1)
    deviation = np.sqrt((n * n - 1) / 12 / epochs)
    assert np.abs(places.mean(axis=0) - (n - 1) / 2).max() < 4.5 * deviation
    pairs = np.corrcoef(places[:, 0], places[:, 1])[0, 1]
    assert abs(pairs) < 4 / np.sqrt(epochs)


# Class-balanced


def spread(counts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(keys, labels) of the given number of samples of each class, shuffled."""
    labels = np.random.default_rng(4).permutation(np.repeat(list(counts), list(counts.values())))
    return some_keys(len(labels), seed=5), labels


# {label: samples} and a batch
LONG_TAILS = pytest.mark.parametrize(
    ("counts", "batch"),
    [
        ({0: 60, 1: 30, 2: 16, 3: 8, 4: 4, 5: 1}, 7),
        ({0: 999, 1: 1}, 10),  # 500 places for one image
        ({3: 5, 900: 2, 8141: 1}, 8),  # most classes have no images
        (dict.fromkeys(range(50), 1), 7),  # one sample per class, and fewer places (49) than classes
        (dict.fromkeys(range(90), 1) | {90: 10}, 60),  # fewer places (60) than classes
        ({7: 31}, 4),  # a single class
    ],
)


def bring(items: list[int], place: int, bits: int) -> int:
    """A step of the Fisher-Yates shuffle in Python integers."""
    other = place + bits % (len(items) - place)
    items[place], items[other] = items[other], items[place]
    return items[place]


def plain_by_class(
    keys: list[int], labels: list[int], seed: int, epoch: int, places: int, pool: list[int]
) -> list[int]:
    """The sequence of a sampling by class, as keys."""
    classes, pool = sorted(set(labels)), pool.copy()
    samples = {c: sorted(key for key, label in zip(keys, labels, strict=True) if label == c) for c in classes}
    given: Counter[int] = Counter()
    out = []
    for place in range(places):
        a, b, c, d = (int(word) for word in draw(seed, place, epoch, LANE_CLASS_BALANCED, 0))
        label = bring(pool, place % len(pool), a * 2**32 + b)
        own = samples[label]
        out.append(bring(own, given[label] % len(own), c * 2**32 + d))
        given[label] += 1
    return out


@LONG_TAILS
def test_class_balanced_order_is_that_of_plain_python(counts: dict[int, int], batch: int) -> None:
    keys, labels = spread(counts)
    order = TrainOrder(keys, (1 << 63) - 3, batch, 2, labels=labels, sampling="class_balanced")
    places = len(keys) // batch * batch
    for epoch in (0, 1, 77):
        expected = plain_by_class(keys.tolist(), labels.tolist(), (1 << 63) - 3, epoch, places, sorted(counts))
        assert keys[order.epoch(epoch)[0]].tolist() == expected


@LONG_TAILS
def test_rounds_hold_every_class_and_cycles_every_sample_of_a_class(counts: dict[int, int], batch: int) -> None:
    keys, labels = spread(counts)
    order = TrainOrder(keys, 1, batch, 2, labels=labels, sampling="class_balanced")
    assert order.steps_per_epoch == len(keys) // batch
    for epoch in range(4):
        positions = order.epoch(epoch)[0]
        walked = labels[positions].tolist()
        for start in range(0, len(walked), len(counts)):
            rest = walked[start : start + len(counts)]
            assert len(set(rest)) == len(rest) and set(rest) <= set(counts)
        shown = Counter(walked)
        assert max(shown.values()) - min(shown[c] for c in counts) <= 1
        for c, size in counts.items():
            own = positions[labels[positions] == c].tolist()
            for start in range(0, len(own), size):
                cycle = own[start : start + size]
                assert len(set(cycle)) == len(cycle)
            often = Counter(own)
            assert max(often.values(), default=0) - min(often[p] for p in np.flatnonzero(labels == c).tolist()) <= 1


def test_permutations_of_classes_and_of_samples_are_uniform_and_independent() -> None:
    """Classes of 3, 3 and 12 samples: all 36 pairs of successive rounds, of successive cycles of a class and of the first
    cycles of two classes come equally often, within 4.5 sigma."""
    labels = np.repeat([0, 1, 2], [3, 3, 12])
    order = TrainOrder(some_keys(18), 6, 18, 1, labels=labels, sampling="class_balanced")
    rounds, cycles, classes = Counter(), Counter(), Counter()
    epochs = 3000
    for epoch in range(epochs):
        positions = order.epoch(epoch)[0]
        walked = labels[positions].tolist()
        zero, one = (positions[labels[positions] == c].tolist() for c in (0, 1))
        rounds[tuple(walked[:3]), tuple(walked[3:6])] += 1
        cycles[tuple(zero[:3]), tuple(zero[3:])] += 1
        classes[tuple(zero[:3]), tuple(one[:3])] += 1
    deviation = np.sqrt(epochs * (1 / 36) * (35 / 36))
    for found, second in ((rounds, (0, 1, 2)), (cycles, (0, 1, 2)), (classes, (3, 4, 5))):
        pairs = set(product(permutations((0, 1, 2)), permutations(second)))
        assert set(found) <= pairs
        assert max(abs(found[pair] - epochs / 36) for pair in pairs) < 4.5 * deviation


@pytest.mark.parametrize("sampling", ["square_root", "class_balanced"])
def test_only_the_labels_of_samples_matter_not_their_numbers(sampling: Sampling) -> None:
    """Classes without images have no effect: numbering the others consecutively gives the same sequence."""
    keys, labels = spread({3: 5, 900: 2, 8141: 1})
    close = np.searchsorted([3, 900, 8141], labels)
    a, b = (TrainOrder(keys, 0, 4, 3, labels=some, sampling=sampling).epoch(1) for some in (labels, close))
    np.testing.assert_array_equal(a, b)


# By square roots


def exact_ends(counts: dict[int, int], places: int) -> list[Decimal]:
    """How many places the classes up to each one have on average, in 50 digits."""
    with localcontext(prec=50):
        roots = [Decimal(counts[label]).sqrt() for label in sorted(counts)]
        return [places * sum(roots[: i + 1]) / sum(roots) for i in range(len(roots))]


@LONG_TAILS
def test_square_root_order_is_that_of_plain_python(counts: dict[int, int], batch: int) -> None:
    keys, labels = spread(counts)
    seed, places = (1 << 63) - 3, len(keys) // batch * batch
    order = TrainOrder(keys, seed, batch, 2, labels=labels, sampling="square_root")
    for epoch in (0, 1, 77):
        offset = Decimal(int(draw(seed, 0, epoch, LANE_CLASS_BALANCED, 1)[0])) / 2**32
        ends = [min(places, int(end + offset)) for end in exact_ends(counts, places)]
        pool = [c for c, first, end in zip(sorted(counts), [0, *ends], ends, strict=False) for _ in range(first, end)]
        expected = plain_by_class(keys.tolist(), labels.tolist(), seed, epoch, places, pool)
        assert keys[order.epoch(epoch)[0]].tolist() == expected


def test_a_class_comes_in_proportion_to_the_square_root_of_its_samples() -> None:
    """In each epoch but for rounding, on average exactly, and at every place alike: within 4.5 sigma of multinomial counts."""
    counts = {0: 100, 1: 49, 2: 16, 3: 4, 4: 1}
    keys, labels = spread(counts)
    order = TrainOrder(keys, 2, 85, 1, labels=labels, sampling="square_root")
    share, epochs = np.array([10, 7, 4, 2, 1]) / 24, 2000
    walked = np.array([labels[order.epoch(epoch)[0]] for epoch in range(epochs)])
    found = np.array([np.bincount(row, minlength=5) for row in walked])
    assert (np.abs(found - 170 * share) < 1).all() and set(found.sum(axis=1)) == {170}
    assert np.abs(found.mean(axis=0) - 170 * share).max() < 4.5 * 0.5 / np.sqrt(epochs)
    for label in range(5):
        deviation = np.sqrt(epochs * share[label] * (1 - share[label]))
        assert np.abs((walked == label).sum(axis=0) - epochs * share[label]).max() < 4.5 * deviation


def test_how_often_a_class_is_drawn() -> None:
    counts = np.array([100, 0, 4])
    assert drawn(counts, "instance").tolist() == [100, 0, 4]
    assert drawn(counts, "square_root").tolist() == [10, 0, 2]
    assert drawn(counts, "class_balanced").tolist() == [1, 0, 1]


# Refusals, evaluation, size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 10, "world": 3}, "optim.batch=10 is not divisible by the 3 processes"),
        ({"batch": 101}, "optim.batch=101 is larger than the 100 training samples"),
        ({"batch": 10, "views": 0}, "data.views=0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"seed": 0, "views": 1} | settings
    with pytest.raises(ValueError, match=words):
        TrainOrder(some_keys(100), **given)


# Partners


def partners_of(
    keys: np.ndarray, world: int, data_seed: int = 3, steps: int = 9
) -> dict[tuple[int, int], tuple[int, int]]:
    """(key, view) -> (key, view) of its partner, for all ranks together."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for rank in range(world):
        order = TrainOrder(keys, seed=1, batch=20, views=3, rank=rank, world=world)
        for plan in with_partners(order.plan(0, steps), keys, data_seed):
            assert plan.partners is not None and plan.partners.dtype == np.int64 and plan.partner_views is not None
            rows = zip(keys[plan.positions], plan.views, keys[plan.partners], plan.partner_views, strict=True)
            found |= {(int(key), int(view)): (int(key_2), int(view_2)) for key, view, key_2, view_2 in rows}
    return found


def test_partners_depend_on_seed_key_and_view_alone() -> None:
    keys = some_keys(60)
    expected = partners_of(keys, 1)
    assert len(expected) == 180 and all(view == other for (_, view), (_, other) in expected.items())
    by_rank = sorted(keys.tolist())
    for (key, view), (partner, _) in expected.items():
        a, b, *_ = (int(word) for word in draw(3, key, view, LANE_PARTNER, 0))
        assert partner == by_rank[(a << 32 | b) % 60]
    for world in (2, 4):
        assert partners_of(keys, world) == expected
    assert partners_of(np.random.default_rng(5).permutation(keys), 1) == expected, "another order in the file"
    assert partners_of(keys, 1, data_seed=4) != expected


def test_partners_are_any_sample_equally_likely() -> None:
    keys = some_keys(100)
    plans = [Plan(np.arange(100), np.full(100, view, np.int32)) for view in range(200)]
    partners = np.concatenate([plan.partners for plan in with_partners(plans, keys, 0) if plan.partners is not None])
    counts = np.bincount(partners, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 160, "chi-square of 99 degrees of freedom: one in ten thousand"
    assert not Plan(np.arange(3), np.zeros(3, np.int32)).of_partners()


# Evaluation


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("samples", [*range(10), 10_000, 24_426])
def test_evaluation_covers_every_sample_once(samples: int, world: int) -> None:
    """Also fewer samples than processes: some of them then have none."""
    shards = [evaluation_shard(samples, rank, world) for rank in range(world)]
    assert np.concatenate(shards).tolist() == list(range(samples))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and all(shard.dtype == np.int64 for shard in shards)


@SAMPLINGS
def test_inaturalist_size(sampling: str) -> None:
    """437,513 samples, without a Python object per sample, and in bounded memory."""
    keys = some_keys(437_513)
    labels = (8142 * np.random.default_rng(1).random(len(keys)) ** 3).astype(np.int64)
    order = TrainOrder(keys, seed=0, batch=256, views=90, labels=labels, sampling=sampling)  # type: ignore[arg-type]
    order.epoch(0)
    tracemalloc.start()
    blocks = sys.getallocatedblocks()
    positions, views = order.epoch(89)
    new, (_, peak) = sys.getallocatedblocks() - blocks, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.steps_per_epoch == 1709 and len(positions) == len(views) == 1709 * 256
    assert new < 1000 and peak < 64 * len(keys)
    if sampling == "instance":
        assert len(np.unique(positions)) == 1709 * 256 and (views == 89).all()
    else:
        often = drawn(np.bincount(labels), sampling)  # type: ignore[arg-type]
        assert np.abs(np.bincount(labels[positions]) - often / often.sum() * len(positions)).max() < 1
