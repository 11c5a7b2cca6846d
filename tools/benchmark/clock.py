"""The clock of tools/bench.py: how one measurement is taken, and the endless order in which images pass.

A measured source is a generator that yields the number of images of each batch it has handled. Invariant: nothing that is
still under way on the device when the clock is read is counted as done.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import psutil
import torch

from pipelines.batch import Plan


class Timing(NamedTuple):
    """One measurement; cpu_seconds are summed over cores, threads and worker processes."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def images_per_core_s(self) -> float:
        """Images per second of one core's time: the speed of a core that does nothing else."""
        return self.images / self.cpu_seconds

    @property
    def cores(self) -> float:
        """Cores in use, on average."""
        return self.cpu_seconds / self.seconds


class Source(Protocol):
    """A source of work whose speed can be measured any number of times."""

    def measure(self, seconds: float, images: int) -> Timing:
        """A stretch of at least so many seconds and images."""
        ...


def cpu_seconds(children: bool) -> float:
    """CPU time that this process (with its child processes) has used so far: user and system, all threads."""
    times = [time.process_time()]
    for child in psutil.Process().children(recursive=True) if children else []:
        used = child.cpu_times()
        times.append(used.user + used.system)
    return sum(times)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stream:
    """The source that `start` starts anew for each measurement.

    warm: batches before the clock starts, so that queues and buffers are as they stay. workers: child processes that load
    a batch each: their CPU time counts, and as they finish together only whole rounds of them are a fair count.
    """

    start: Callable[[], Generator[int, None, None]]
    device: torch.device
    warm: int = 2
    workers: int = 0

    def measure(self, seconds: float, images: int) -> Timing:
        batches = self.start()
        try:
            for _ in range(self.warm):
                next(batches)
            wait_for(self.device)
            cpu, start, done = cpu_seconds(self.workers > 0), time.perf_counter(), 0
            for looks in itertools.count(1):
                done += sum(next(batches) for _ in range(max(1, self.workers)))
                # Two batches at least: one alone says nothing of how batches follow each other.
                if looks >= 2 and done >= images and time.perf_counter() - start >= seconds:
                    break
            wait_for(self.device)
            return Timing(done, time.perf_counter() - start, cpu_seconds(self.workers > 0) - cpu)
        finally:
            batches.close()


def endless(pool: np.ndarray, batch: int, views: int) -> Iterator[Plan]:
    """Full batches for ever: each pass over the positions `pool` in a new random order, under the next view of `views`."""
    rng = np.random.default_rng(0)
    positions, numbers = np.empty(0, np.int64), np.empty(0, np.int32)
    for number in itertools.count():
        positions = np.concatenate([positions, rng.permutation(pool)])
        numbers = np.concatenate([numbers, np.full(len(pool), number % views, np.int32)])
        whole = len(positions) // batch * batch
        for i in range(0, whole, batch):
            yield Plan(positions[i : i + batch], numbers[i : i + batch])
        positions, numbers = positions[whole:], numbers[whole:]
