"""The distribution of virtual examples against sums done by hand, and the rule that picks a temperature from it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_caches import CLASSES, identity_of, logits_of, make_cache, make_records, prints_of, some_samples

from pipelines.errors import UserError
from pipelines.logits import CacheWriter, LogitCache, flatness
from pipelines.logits.blocks import BLOCK_ROWS, HEADER
from pipelines.logits.flatness import TEMPERATURES, entropy, recommend, tail_to_head, thirds, virtual_examples
from pipelines.records.reader import Records
from pipelines.records.workers import Sample

COUNTS = np.array([16, 8, 4, 2, 1])


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """31 images, in classes of 16, 8, 4, 2 and 1."""
    labels = np.repeat(np.arange(5), COUNTS)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 3), np.uint8)
    samples = [Sample(f"s/{i}", int(label), pixels[i]) for i, label in enumerate(labels)]
    return make_records(tmp_path_factory.mktemp("tail") / "a.beton", samples)


def cache_of(parent: Path, records: Records, views: list[np.ndarray], codec: str = "f32") -> LogitCache:
    """A cache in which sample i of the index has logits views[v][label of i] under view v."""
    writer = CacheWriter(parent, "t", identity_of(records, codec=codec), records.rows())
    for view, by_class in enumerate(views):
        logits = by_class[writer.rows["label"]].astype(np.float32)
        writer.write((view, 0), logits, prints_of(writer.rows["key"], view))
    writer.finish(len(views), {})
    return LogitCache(writer.folder)


# Odds are powers of 4, so that at T = 2 they are powers of 2: own class to the others as 4^a : 1 : 1 : 1 : 1.
OWN = np.diag([np.log(4.0)] * 5)


def test_a_distribution_done_by_hand(tmp_path: Path, records: Records) -> None:
    """Own class 4/8, the others 1/8 at T = 1; 2/6 and 1/6 at T = 2."""
    cache = cache_of(tmp_path, records, [OWN])
    found = virtual_examples(cache, records.keys, [1.0, 2.0])
    assert found.shape == (2, 5) and found.dtype == np.float64
    by_hand = [[(31 + 3 * n) / 8 for n in COUNTS], [(31 + n) / 6 for n in COUNTS]]
    assert np.allclose(found, by_hand, rtol=1e-6, atol=0)


def test_the_mean_over_the_first_views(tmp_path: Path, records: Records) -> None:
    cache = cache_of(tmp_path, records, [OWN, np.zeros((5, 5)), 50 * np.eye(5)])
    own = np.array([(31 + 3 * n) / 8 for n in COUNTS])
    means = [own, (own + 31 / 5) / 2, (own + 31 / 5 + COUNTS) / 3]
    for views, mean in enumerate(means, 1):
        assert np.allclose(virtual_examples(cache, records.keys, [1.0], views), mean, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="holds views 0 to 2, not view 3"):
        virtual_examples(cache, records.keys, [1.0], 4)


def test_part_of_the_samples(tmp_path: Path, records: Records) -> None:
    """For a student on a subset, the virtual examples of its own images count."""
    cache = cache_of(tmp_path, records, [OWN])
    chosen = records.keys[records.labels != 0]
    assert np.allclose(virtual_examples(cache, chosen, [1.0]), (15 + 3 * np.array([0, 8, 4, 2, 1])) / 8, rtol=1e-6)
    with pytest.raises(UserError, match="has no sample with key"):
        virtual_examples(cache, np.append(records.keys, 7), [1.0])


def test_many_blocks_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits for any order of the keys; at every temperature each image counts once; float64 by definition."""
    many = make_records(tmp_path / "a.beton", some_samples(BLOCK_ROWS + 37))
    cache = LogitCache(make_cache(tmp_path, many))
    found = virtual_examples(cache, many.keys)
    assert found.shape == (len(TEMPERATURES), 5)
    assert np.array_equal(found, virtual_examples(cache, np.random.default_rng(0).permutation(many.keys)))
    assert np.allclose(found.sum(axis=1), len(many), rtol=1e-6)
    for row, temperature in zip(found, TEMPERATURES, strict=True):
        weights = np.exp(logits_of(many.keys, 0).astype(np.float64) / temperature)
        assert np.allclose(row, (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0), rtol=1e-6, atol=0)
    monkeypatch.setattr(flatness, "_CHUNK", 5 * 100)
    assert np.allclose(found, virtual_examples(cache, many.keys), rtol=1e-9, atol=0)


def test_eight_bits_are_enough(tmp_path: Path, records: Records) -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 4, (5, 5))]
    exact, rounded = (
        virtual_examples(cache_of(tmp_path / codec, records, logits, codec), records.keys) for codec in ("f32", "u8")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.2


def test_a_damaged_record_is_not_counted(tmp_path: Path, records: Records) -> None:
    cache = cache_of(tmp_path, records, [OWN])
    path = cache.folder / "v000/b00000.lc"
    data = bytearray(path.read_bytes())
    data[HEADER.itemsize + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"v000/b00000\.lc: the record of key \d+ .* is damaged"):
        virtual_examples(LogitCache(cache.folder), records.keys)


@pytest.mark.parametrize(
    ("counts", "rarest", "most_frequent"),
    [
        ([16, 8, 4, 2, 1], [4], [0]),
        ([1, 2, 3, 4, 5, 6, 7], [1, 0], [6, 5]),
        ([3, 3, 3, 3, 3, 3], [4, 5], [0, 1]),
        ([5, 5, 0, 3, 1, 1, 1], [5, 6], [0, 1]),
        ([0, 0, 2, 1], [3], [2]),
        ([4, 9], [0], [1]),
        ([7], [0], [0]),
    ],
)
def test_thirds(counts: list[int], rarest: list[int], most_frequent: list[int]) -> None:
    """Rounded down, at least one, ties in label order, ignoring classes without images."""
    found = thirds(np.array(counts))
    assert [part.tolist() for part in found] == [rarest, most_frequent]


def test_measures_by_hand() -> None:
    virtual = np.array([[6.0, 3, 1, 2, 1, 2], [1, 1, 1, 1, 1, 1]])
    counts = np.array([9, 9, 5, 5, 1, 1])
    assert tail_to_head(virtual, counts).tolist() == [3 / 9, 1]
    assert tail_to_head(virtual[0], counts) == 3 / 9
    assert np.allclose(entropy(np.array([[1.0, 1, 1, 1], [4, 0, 0, 0]])), [math.log(4), 0])
    assert np.isclose(entropy(np.array([3.0, 1])), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


@pytest.mark.parametrize(
    ("tails", "temperature", "flat"),
    [
        ([0.5, 0.9, 1.1, 1.2], 3, True),
        ([1.5, 1.2, 1.1, 1.05], 1, True),
        ([0.5, 1.0, 1.1, 1.2], 2, True),  # equal is enough
        ([0.5, 1.2, 0.9, 1.1], 2, True),  # the smallest, even where it is not a turning point
        ([0.2, 0.4, 0.8, 0.99], 4, False),
    ],
)
def test_the_rule(tails: list[float], temperature: float, flat: bool) -> None:
    virtual = np.array([[8.0, 99, 8 * tail] for tail in tails])
    assert recommend(virtual, np.array([50, 20, 3]), [1, 2, 3, 4]) == (temperature, flat)


def test_the_bars_of_the_paper_give_six() -> None:
    """Mean virtual examples per class for many, medium and few at imbalance 100, read off appendix A of the paper."""
    counts = np.array([int(500 * 0.01 ** (i / 99)) for i in range(100)])
    bars = {1: (237, 53, 23), 3: (169, 71, 82), 6: (113, 92, 123), 20: (103, 105, 119)}
    virtual = np.array([np.repeat(bar, (35, 35, 30)) for bar in bars.values()], float)
    assert recommend(virtual, counts, list(bars)) == (6, True)


def test_a_teacher_sure_of_itself_needs_a_high_temperature(tmp_path: Path, records: Records) -> None:
    """All mass on the label at T = 1: the classes themselves; never as many in the tail as in the head, so the last T."""
    cache = cache_of(tmp_path, records, [40 * np.eye(5)])
    virtual = virtual_examples(cache, records.keys)
    assert np.allclose(virtual[0], COUNTS, rtol=1e-6)
    ratios = tail_to_head(virtual, records.class_counts)
    assert (np.diff(ratios) > 0).all() and ratios[-1] < 1
    assert recommend(virtual, records.class_counts) == (20, False)


def test_the_temperature_at_which_the_tail_catches_up(tmp_path: Path, records: Records) -> None:
    """The head's 16 images are shared with the tail class, the tail keeps its one image: 16 (1 - s) + 1 >= 16 s.

    s = sigmoid(1.2 / T), so T >= 1.2 / log(17 / 15) = 9.6, and 12 is the next value in the grid.
    """
    logits = 1000 * np.eye(5)
    logits[0, 4], logits[0, 0] = 1000, 1001.2
    virtual = virtual_examples(cache_of(tmp_path, records, [logits]), records.keys)
    share = 1 / (1 + np.exp(-1.2 / np.array(TEMPERATURES)))
    assert np.allclose(tail_to_head(virtual, records.class_counts), (17 - 16 * share) / (16 * share), rtol=1e-4)
    assert recommend(virtual, records.class_counts) == (12, True)


def test_whatever_gathers_will_do(records: Records) -> None:
    """Any source works, such as two caches averaged on read: only `gather` and `classes` are used."""

    class Uniform:
        classes = len(CLASSES)

        def gather(self, keys: np.ndarray, views: np.ndarray, device: torch.device | str) -> torch.Tensor:
            return torch.zeros(len(keys), self.classes, device=device)

    virtual = virtual_examples(Uniform(), records.keys)
    assert np.allclose(virtual, 31 / 5)
    assert recommend(virtual, records.class_counts) == (1, True)
