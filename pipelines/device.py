"""How arrays of the host reach a device, and results of it the host. Invariant: the thread that trains does not wait for copies.

On a CPU nothing here copies or waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

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


class SideStream:
    """A stream of a GPU beside that on which training computes, for copies at the same time."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

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
