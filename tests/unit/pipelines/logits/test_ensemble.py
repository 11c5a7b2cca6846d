"""Several caches read as one: both means by definition, at the temperature of the loss, with any weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_caches import identity_of, make_cache, make_records, prints_of, some_samples

from pipelines.logits import CacheWriter, Ensemble, LogitCache
from pipelines.logits.reader import CacheConfig
from pipelines.records.reader import Records
from train.objectives.losses import soften

COUNT, CLASSES = 23, 5


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("records") / "a.beton", some_samples(COUNT))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, records: Records) -> list[LogitCache]:
    """Three teachers that disagree."""
    parent, opened = tmp_path_factory.mktemp("caches"), []
    for number in range(3):
        identity = identity_of(records, weights=f"{number:02d}" * 32)
        writer = CacheWriter(parent, f"t{number}", identity, records.rows())
        keys = writer.rows["key"]
        for view in range(2):
            writer.write((view, 0), said(number, view), prints_of(keys, view))
        writer.finish(2, None)
        opened.append(LogitCache(writer.folder))
    return opened


def said(number: int, view: int) -> np.ndarray:
    """float32 [COUNT, CLASSES], in index order."""
    return np.random.default_rng([number, view]).normal(0, 4, (COUNT, CLASSES)).astype(np.float32)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (3.0, 0.5, 1.5)])
@pytest.mark.parametrize("temperature", [1.0, 6.0, 0.7])
def test_both_means_by_definition(
    caches: list[LogitCache], records: Records, weights: tuple[float, ...], temperature: float
) -> None:
    keys, view = records.rows()["key"], np.ones(COUNT, int)
    shares = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    each = np.stack([said(number, 1).astype(np.float64) for number in range(3)])
    logits = Ensemble(caches, weights, "logits", temperature).gather(keys, view)
    assert np.allclose(logits.numpy(), np.tensordot(shares, each, 1), rtol=0, atol=1e-5)
    found = Ensemble(caches, weights, "probabilities").at(temperature).gather(keys, view)
    assert found.dtype == torch.float32
    mean = np.tensordot(shares, np.stack([softmax(z / temperature) for z in each]), 1)
    tau, p = temperature * 0.5, 0.5  # T = tau / p
    assert np.allclose(soften(found, tau, p).numpy(), mean, rtol=0, atol=1e-6)
    assert not np.allclose(soften(logits, tau, p).numpy(), mean, rtol=0, atol=1e-2)


def test_one_cache_is_that_cache(caches: list[LogitCache], records: Records) -> None:
    for average in ("logits", "probabilities"):
        one = Ensemble(caches[1:2], (2.0,), average, 3.0)
        found = one.gather(records.keys, np.zeros(COUNT, int))
        assert torch.equal(found, caches[1].gather(records.keys, np.zeros(COUNT, int)))
        assert (one.classes, one.views) == (CLASSES, 2)


def test_equal_teachers_agree_with_themselves(caches: list[LogitCache], records: Records) -> None:
    """Up to a constant per row, which does not change a softmax."""
    keys, views = records.keys, np.zeros(COUNT, int)
    found = Ensemble([caches[0], caches[0]], (), "probabilities", 2.0).gather(keys, views)
    gap = found - caches[0].gather(keys, views)
    assert float((gap - gap.mean(dim=1, keepdim=True)).abs().max()) < 1e-5


def test_probabilities_without_a_floor(tmp_path: Path, caches: list[LogitCache]) -> None:
    """Where every teacher is more certain than float32 can express, the mean still has finite logits."""
    sure = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    found = Ensemble(caches[:2], (), "probabilities", 1.0).mean([sure, sure + 7])
    assert torch.isfinite(found).all() and torch.equal(found.argmax(dim=1), torch.tensor([0, 1]))


def test_the_shortest_cache_limits_the_views(tmp_path: Path, records: Records, caches: list[LogitCache]) -> None:
    short = LogitCache(make_cache(tmp_path, records, views=1))
    assert Ensemble([caches[0], short]).views == 1


def test_settings_that_make_no_sense() -> None:
    CacheConfig(paths=["a", "b"], weights=[1, 2.5])
    for weights, words in (
        ([1e308, 1e308], "too far apart or too large for a share of each"),  # their sum is infinite, and each share 0
        ([1e-300, 1e300], "too far apart or too large for a share of each"),
        ([1.0], r"cache.weights=\[1.0\]: needs one number for each of the 2 cache.paths"),
        ([1.0, 0.0], "must be above 0; leave out a cache"),
        ([1.0, float("nan")], "must be above 0"),
        ([1.0, float("inf")], "must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            CacheConfig(paths=["a", "b"], weights=weights)
