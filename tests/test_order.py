"""The order of samples and views: one global sequence, whatever the file, the world size or the place to start."""

import numpy as np
import pytest

from pipelines.order import TrainOrder, evaluation_shard
from pipelines.views import LANE_ORDER, draw


def some_keys(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, n)


def steps(order: TrainOrder, first: int, stop: int) -> list[tuple[list[int], list[int]]]:
    return [(positions.tolist(), views.tolist()) for positions, views in order.plan(first, stop)]


@pytest.mark.parametrize(("samples", "batch"), [(1000, 1), (1000, 8), (1000, 333), (1000, 1000), (7, 4)])
def test_an_epoch_holds_full_batches_of_different_samples(samples: int, batch: int) -> None:
    order = TrainOrder(some_keys(samples), seed=0, batch=batch, views=3)
    positions, views = order.epoch(0)
    assert order.steps_per_epoch == samples // batch
    assert len(positions) == len(views) == samples // batch * batch
    assert len(np.unique(positions)) == len(positions) and positions.min() >= 0 and positions.max() < samples
    assert positions.dtype == np.int64 and views.dtype == np.int32


def test_order_is_that_of_a_draw_of_each_key() -> None:
    """A run that resumes elsewhere, or years later, must walk on in the same order."""
    keys, seed = some_keys(300), (1 << 63) - 3
    for epoch in (0, 1, 77):
        words = [[int(word) for word in draw(seed, key, epoch, LANE_ORDER, 0)[:2]] for key in keys]
        positions, _ = TrainOrder(keys, seed, batch=300, views=1).epoch(epoch)
        assert positions.tolist() == sorted(range(300), key=words.__getitem__)


def test_what_an_epoch_leaves_out_changes_from_epoch_to_epoch() -> None:
    order = TrainOrder(some_keys(100), seed=0, batch=30, views=1)
    left = [frozenset(range(100)) - set(order.epoch(epoch)[0].tolist()) for epoch in range(5)]
    assert len(set(left)) == 5 and all(len(some) == 10 for some in left)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(TrainOrder(some_keys(50), seed, batch=50, views=1).epoch(epoch)[0].tolist())
        for seed in (0, 1, 1 << 32, (1 << 63) - 1)
        for epoch in range(6)
    }
    assert len(orders) == 24


def test_places_are_uniform() -> None:
    """Each sample's mean place over many epochs, against the exact variance of a uniform place."""
    n, epochs = 64, 400
    order = TrainOrder(some_keys(n), seed=3, batch=n, views=1)
    places = np.argsort([order.epoch(epoch)[0] for epoch in range(epochs)], axis=1)
    deviation = np.sqrt((n * n - 1) / 12 / epochs)
    assert np.abs(places.mean(axis=0) - (n - 1) / 2).max() < 4.5 * deviation
    pairs = np.corrcoef(places[:, 0], places[:, 1])[0, 1]
    assert abs(pairs) < 4 / np.sqrt(epochs)


def test_order_is_by_key_not_by_place_in_the_file() -> None:
    keys = some_keys(500)
    moved = np.random.default_rng(1).permutation(500)
    for epoch in range(3):
        a, _ = TrainOrder(keys, seed=5, batch=100, views=1).epoch(epoch)
        b, _ = TrainOrder(keys[moved], seed=5, batch=100, views=1).epoch(epoch)
        np.testing.assert_array_equal(keys[a], keys[moved][b])


@pytest.mark.parametrize("world", [2, 4])
def test_every_world_walks_the_same_global_sequence(world: int) -> None:
    keys = some_keys(101)
    whole = steps(TrainOrder(keys, seed=1, batch=12, views=2), 0, 20)
    ranks = [steps(TrainOrder(keys, seed=1, batch=12, views=2, rank=rank, world=world), 0, 20) for rank in range(world)]
    for step, (positions, views) in enumerate(whole):
        assert sum((rank[step][0] for rank in ranks), []) == positions
        assert sum((rank[step][1] for rank in ranks), []) == views
        assert {len(rank[step][0]) for rank in ranks} == {12 // world}


def test_a_plan_from_any_step_is_the_tail_of_the_whole_plan() -> None:
    order = TrainOrder(some_keys(50), seed=2, batch=12, views=3, rank=1, world=2)  # 4 steps an epoch
    whole = steps(order, 0, 18)
    assert len(whole) == 18
    for first in range(19):
        assert steps(order, first, 18) == whole[first:]
    assert steps(order, 3, 9) == whole[3:9]


def test_a_plan_is_its_epochs_in_turn() -> None:
    order = TrainOrder(some_keys(50), seed=2, batch=12, views=3)
    whole = steps(order, 0, 4 * 5)
    for epoch in range(5):
        positions, views = order.epoch(epoch)
        part = whole[4 * epoch : 4 * epoch + 4]
        assert sum((p for p, _ in part), []) == positions.tolist() and sum((v for _, v in part), []) == views.tolist()


def test_epoch_e_shows_view_e_mod_v() -> None:
    order = TrainOrder(some_keys(20), seed=0, batch=10, views=3)
    assert [sorted(set(order.epoch(epoch)[1].tolist())) for epoch in range(7)] == [[e % 3] for e in range(7)]


def test_views_do_not_move_the_order() -> None:
    a, b = (TrainOrder(some_keys(40), seed=0, batch=10, views=views).epoch(8)[0] for views in (1, 7))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 10, "world": 3}, "optim.batch=10 is not divisible by the 3 processes"),
        ({"batch": 101}, "optim.batch=101 is larger than the 100 training samples"),
        ({"batch": 10, "views": 0}, "data.views=0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainOrder(some_keys(100), **({"seed": 0, "views": 1} | settings))


@pytest.mark.parametrize("samples", [0, 1, 7, 10_000])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_covers_every_sample_once(samples: int, world: int) -> None:
    shards = [evaluation_shard(samples, rank, world) for rank in range(world)]
    assert np.concatenate(shards).tolist() == list(range(samples))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and shards[0].dtype == np.int64


def test_inaturalist_size() -> None:
    keys = some_keys(437_513)
    order = TrainOrder(keys, seed=0, batch=256, views=90)
    positions, views = order.epoch(89)
    assert order.steps_per_epoch == 1709 and len(np.unique(positions)) == 1709 * 256 and (views == 89).all()
