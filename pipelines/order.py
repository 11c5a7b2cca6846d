"""The order of training and evaluation: which sample, and which of its views, comes at which place.

Training order is a pure function of (seed, epoch): samples sorted by a Philox draw of their key, cut into full global
batches; rank r of w takes rows [r*g/w, (r+1)*g/w) of each global batch of size g, so any world size walks one global
sequence. The k-th occurrence of a sample in epoch e shows view (e + k) mod V. Evaluation counts every sample once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.compiled import exact
from pipelines.views import LANE_ORDER, draw


@exact
def _shuffle_words(seed, keys, epoch):
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        a, b, _c, _d = draw(seed, keys[i], epoch, LANE_ORDER, 0)
        out[i] = a << np.uint64(32) | b
    return out


@dataclass(frozen=True)
class TrainOrder:
    """One rank's share of every epoch.

    keys: int64[N] sample keys by position; seed: `seed` (not data.seed); batch: global batch size; views: V.
    """

    keys: np.ndarray
    seed: int
    batch: int
    views: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise ValueError(f"optim.batch={self.batch} is not divisible by the {self.world} processes")
        if self.batch > len(self.keys):
            raise ValueError(f"optim.batch={self.batch} is larger than the {len(self.keys)} training samples")
        if self.views < 1:
            raise ValueError(f"data.views={self.views}: must be at least 1")

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch; the rest of the epoch is left out."""
        return len(self.keys) // self.batch

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions int64[n], views int32[n]) of this rank in one epoch, n = steps * batch / world."""
        words = _shuffle_words(self.seed, self.keys, epoch)
        # Ties of 64-bit words (and only they) fall back on the key, so that the order never depends on positions.
        positions = np.lexsort((self.keys, words))[: self.steps_per_epoch * self.batch]
        share = self.batch // self.world
        positions = positions.reshape(-1, self.batch)[:, self.rank * share : (self.rank + 1) * share].reshape(-1)
        # Every sample occurs at most once in an epoch of this order, so its occurrence number k is 0.
        views = np.full(len(positions), epoch % self.views, np.int32)
        return positions.astype(np.int64), views

    def plan(self, first_step: int, stop_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, views) of this rank's rows for each global step first_step .. stop_step - 1, across epochs."""
        share, steps = self.batch // self.world, self.steps_per_epoch
        step = first_step
        while step < stop_step:
            positions, views = self.epoch(step // steps)
            for i in range(step % steps, steps):
                if step == stop_step:
                    return
                yield positions[i * share : (i + 1) * share], views[i * share : (i + 1) * share]
                step += 1


def evaluation_shard(samples: int, rank: int, world: int) -> np.ndarray:
    """Positions int64 of this rank: contiguous, each sample on exactly one rank, sizes differ by at most one."""
    return np.arange(samples * rank // world, samples * (rank + 1) // world, dtype=np.int64)
