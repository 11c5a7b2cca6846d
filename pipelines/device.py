"""How arrays of the host reach a device, and results of it the host. Invariant: the thread that trains does not wait for copies.

Owns the streams of a GPU beside the one that computes, and how far the host runs ahead of it. On a CPU nothing here copies or
waits.
"""

import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch


def work_on(device: torch.device | None) -> None:
    """Let this thread work on the GPU of its process.

    A new thread works on the first GPU, where it would open a context of half a gigabyte for every process.
    """
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device, made without blocking the step: from pageable memory CUDA would synchronise."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """The values on the host, for which this thread waits: as long as the current stream takes, and no other."""
    if not tensor.is_cuda:
        return tensor.numpy()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned.numpy()


class Moved(NamedTuple):
    """A tensor that is on the device, or on its way there."""

    tensor: torch.Tensor
    done: torch.Event | None = None
    "when it is there; None: it is"

    def arrived(self) -> torch.Tensor:
        """The tensor, for the current stream, whose further work waits for it; this thread does not."""
        if self.tensor.is_cuda:
            stream = torch.cuda.current_stream(self.tensor.device)
            if self.done is not None:
                stream.wait_event(self.done)
            # It was made on another stream: its memory must not be reused before this one is done.
            self.tensor.record_stream(stream)
        return self.tensor


Use = Literal["batches", "blocks", "recording"]


@functools.cache
def stream_of(device: torch.device, use: Use) -> torch.cuda.Stream:
    """The stream of a GPU for this use: the same one for all loaders, caches and recordings of this process.

    torch hands out 32 in turn, and keeps the memory that became free on one for that one: with a new stream for every evaluation,
    that memory would grow, and an evaluation would come to share the stream of a recording.
    """
    return torch.cuda.Stream(device)


class Lead:
    """Keeps this thread at most a few steps ahead of a GPU.

    Of recorded steps its queue takes some hundred. Their batches would stay in its memory, and a thread that waits for the loader
    while the GPU has work would seem to starve it.
    """

    AHEAD = 3  # steps

    def __init__(self, device: torch.device):
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """To be called when a step has been queued: wait until the one `AHEAD` steps before is done."""
        if self._device.type != "cuda":
            return
        self._ends.append(torch.cuda.Event(blocking=True))  # waiting takes no core from the loader
        self._ends[-1].record(torch.cuda.current_stream(self._device))
        if len(self._ends) > self.AHEAD:
            self._ends.popleft().synchronize()


class SideStream:
    """A stream of a GPU beside that on which training computes, for copies at the same time."""

    def __init__(self, device: torch.device, use: Use):
        self._device = device
        self._stream = stream_of(device, use) if device.type == "cuda" else None

    def move(self, tensor: torch.Tensor) -> Moved:
        """Begin to copy a tensor of the host, pinned where it is large, to the device."""
        if self._stream is None or tensor.is_cuda:
            return Moved(tensor)
        with torch.cuda.stream(self._stream):
            return Moved(tensor.to(self._device, non_blocking=True), self._stream.record_event())

    def now(self) -> torch.Event | None:
        """The end of all work that the current stream has been given so far."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def after(self, event: torch.Event | None) -> Iterator[None]:
        """Within the block, in any thread, work goes to this stream, and begins after `event` (of `now`)."""
        if self._stream is None or event is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(event)
            yield
