"""The order of training and evaluation: which sample, and which of its views, comes when.

Training order is a pure function of (seed, epoch, keys, labels), independent of positions in the file: one global sequence, cut
into full global batches; rank r of w takes rows [r*g/w, (r+1)*g/w) of each global batch of size g, so any world size walks
the same sequence. The k-th occurrence of a sample in epoch e shows view (e + k) mod V. Partners for
mixtures are drawn for each view independently of its batch. Evaluation counts every sample once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pipelines.batch import Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_CLASS_BALANCED, LANE_ORDER, LANE_PARTNER, draw, uniform

Sampling = Literal["instance", "square_root", "class_balanced"]


@exact
def _shuffle_words(seed, keys, epoch):
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        a, b, _c, _d = draw(seed, keys[i], epoch, LANE_ORDER, 0)
        out[i] = a << np.uint64(32) | b
    return out


@exact
def _shuffle_step(items, place, high, low):
    """One step of the Fisher-Yates shuffle: bring one of items[place:], chosen by 64 random bits, to `place`."""
    other = place + np.int64((high << np.uint64(32) | low) % np.uint64(len(items) - place))
    items[place], items[other] = items[other], items[place]
    return items[place]


@exact
def _walk(seed, epoch, samples, starts, pool, places):
    """(sample, occurrence number) int64[places] of an epoch in which the classes have the shares that they have in the pool.

    samples: positions grouped by class; class c has samples[starts[c]:starts[c + 1]]. Classes come in rounds, each a
    permutation of the pool; a class walks through its samples in cycles, each a permutation of all. Both are shuffled as they
    are walked: a step of a shuffle needs only the arrangement that the previous round or cycle has left.
    """
    pool, samples = pool.copy(), samples.copy()
    taken = np.zeros(len(starts) - 1, np.int64)
    chosen, occurrence = np.empty(places, np.int64), np.empty(places, np.int64)
    for i in range(places):
        a, b, c, d = draw(seed, i, epoch, LANE_CLASS_BALANCED, 0)
        label = _shuffle_step(pool, i % len(pool), a, b)
        own = samples[starts[label] : starts[label + 1]]
        chosen[i] = _shuffle_step(own, taken[label] % len(own), c, d)
        occurrence[i] = taken[label] // len(own)  # a sample comes once in each cycle
        taken[label] += 1
    return chosen, occurrence


@exact
def _in_shares(seed, epoch, weights, places):
    """int64[places]: each class as often as its weight says, rounded up or down; which, is drawn, so that the mean is exact."""
    total = 0.0
    for weight in weights:
        total += weight
    word = draw(seed, 0, epoch, LANE_CLASS_BALANCED, 1)[0]
    offset, reached, filled = uniform(word, 0.0, 1.0), 0.0, 0
    pool = np.empty(places, np.int64)
    for label in range(len(weights)):
        reached += weights[label]
        end = min(places, np.int64(np.floor(reached / total * places + offset)))
        pool[filled:end] = label
        filled = end
    return pool


def drawn(class_counts: np.ndarray, sampling: Sampling) -> np.ndarray:
    """How often each class is drawn, float64 [C], up to a factor: n^q with q = 1, 1/2 or 0 (Kang et al. 2020, equation 1).

    class_counts: int64 [C]; a class without images is never drawn.
    """
    counts = np.asarray(class_counts, np.float64)
    return {"instance": counts, "square_root": np.sqrt(counts), "class_balanced": np.sign(counts)}[sampling]


@dataclass(frozen=True)
class TrainOrder:
    """One rank's share of every epoch.

    keys: int64[N] sample keys by position; seed: `seed` (not data.seed); batch: global batch size; views: V.
    sampling: "instance" shows a sample at most once an epoch; "class_balanced" shows classes equally often (counts differ
    by at most one), likewise the samples of a class; "square_root" shows a class of n samples in proportion to sqrt(n). The two
    need labels int64[N] by position. An epoch has the same length in all.
    """

    keys: np.ndarray
    seed: int
    batch: int
    views: int
    rank: int = 0
    world: int = 1
    labels: np.ndarray | None = None
    sampling: Sampling = "instance"

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise ValueError(f"optim.batch={self.batch} is not divisible by the {self.world} processes")
        if self.batch > len(self.keys):
            raise ValueError(f"optim.batch={self.batch} is larger than the {len(self.keys)} training samples")
        if self.views < 1:
            raise ValueError(f"data.views={self.views}: must be at least 1")

    def whole(self) -> "TrainOrder":
        """The same order for all ranks together."""
        return replace(self, rank=0, world=1)

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch; the samples that remain are left out."""
        return len(self.keys) // self.batch

    @cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """`samples` and `starts` of `_walk`: sorted by (label, key); classes without samples do not count."""
        assert self.labels is not None, "sampling by class needs labels"
        counts = np.bincount(self.labels)
        return np.lexsort((self.keys, self.labels)), np.append(0, np.cumsum(counts[counts > 0]))

    def _sequence(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, occurrence numbers) int64 of the global sequence of one epoch."""
        places = self.steps_per_epoch * self.batch
        if self.sampling != "instance":
            samples, starts = self._by_class
            if self.sampling == "class_balanced":
                pool = np.arange(len(starts) - 1)
            else:
                pool = _in_shares(self.seed, epoch, drawn(np.diff(starts), self.sampling), places)
            return _walk(self.seed, epoch, samples, starts, pool, places)
        words = _shuffle_words(self.seed, self.keys, epoch)
        # Ties of 64-bit words (and only those) are broken by key, so that the order never depends on positions.
        return np.lexsort((self.keys, words))[:places], np.zeros(places, np.int64)

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions int64[n], views int32[n]) of this rank in one epoch, n = steps * batch / world."""
        positions, occurrence = self._sequence(epoch)
        views = ((epoch + occurrence) % self.views).astype(np.int32)
        share = self.batch // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        return positions.reshape(-1, self.batch)[:, mine].reshape(-1), views.reshape(-1, self.batch)[:, mine].reshape(
            -1
        )

    def plan(self, first_step: int, stop_step: int) -> Iterator[Plan]:
        """This rank's rows for each global step first_step .. stop_step - 1, across epochs."""
        share, steps = self.batch // self.world, self.steps_per_epoch
        step = first_step
        while step < stop_step:
            positions, views = self.epoch(step // steps)
            for i in range(step % steps, steps):
                if step == stop_step:
                    return
                yield Plan(positions[i * share : (i + 1) * share], views[i * share : (i + 1) * share])
                step += 1


@exact
def _partner_ranks(seed, keys, views, samples):
    """int64[B]: for each view a number below `samples`."""
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        a, b, _c, _d = draw(seed, keys[i], views[i], LANE_PARTNER, 0)
        out[i] = (a << np.uint64(32) | b) % np.uint64(samples)
    return out


def with_partners(plans: Iterable[Plan], keys: np.ndarray, data_seed: int) -> Iterator[Plan]:
    """The same plans, with a partner for each view: any sample of the file (including itself), equally likely, same view.

    keys: int64[N] sample keys by position. The partner's key is a pure function of (data.seed, key, view) and of the set of
    keys: batches, ranks, world size and positions in the file do not matter.
    """
    by_key = np.argsort(keys, kind="stable")
    for plan in plans:
        ranks = _partner_ranks(data_seed, keys[plan.positions], plan.views, len(keys))
        yield plan._replace(partners=by_key[ranks], partner_views=plan.views)


def evaluation_shard(samples: int, rank: int, world: int) -> np.ndarray:
    """Positions int64 of this rank: contiguous, each sample on exactly one rank, sizes differ by at most one."""
    return np.arange(samples * rank // world, samples * (rank + 1) // world, dtype=np.int64)
