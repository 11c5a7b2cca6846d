"""The contract that all backends keep, and what they share in keeping it. Knows none of them."""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import numpy as np
import torch

from pipelines.batch import Draws, Plan

Drawn = tuple[Plan, Draws]  # what a backend is given: one batch
Crops = tuple[torch.Tensor, Plan, Draws]  # what it hands back: pixels uint8 [B, S, S, 3], and what they are


class Backend(Protocol):
    """Decodes, crops, resizes and flips: batches in the order given, with exact counts.

    A record whose CRC fails or that does not decode is a UserError that names it. Several `crops` may be open at a time.
    """

    in_background: bool
    "whether the loader's thread makes the crops, ahead of the training step; otherwise it makes the draws alone"

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        """The crops of each batch, in memory that nobody writes to again; nothing is drawn here."""
        ...


class OnHost:
    """Makes a backend of a function that fills a host buffer with one batch: load(positions, boxes, out).

    positions int64 [B]; boxes int32 [B, 5], as in Draws; out uint8 [B, S, S, 3].
    """

    in_background = True

    def __init__(self, load: Callable[[np.ndarray, np.ndarray, np.ndarray], None], size: int, device: torch.device):
        self._load, self._size, self._device = load, size, device

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        pin = self._device.type == "cuda"
        for plan, draws in batches:
            # A fresh buffer for each batch: nothing is overwritten while somebody still reads it. Pinned buffers come
            # from torch's host cache, which waits for the copy to the GPU before it hands one out again.
            pixels = torch.empty((len(plan.positions), self._size, self._size, 3), dtype=torch.uint8, pin_memory=pin)
            self._load(plan.positions, draws.boxes, pixels.numpy())
            yield pixels, plan, draws


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device that no ordinary step waits for: from pageable memory CUDA would synchronise."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
