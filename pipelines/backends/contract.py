"""The contract that all backends keep, and the code they share to keep it. Refers to no particular backend."""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import numpy as np
import torch

from pipelines.batch import Boxes, Draws, Plan

Drawn = tuple[Plan, Draws]  # one batch, as a backend is given it
Crops = tuple[torch.Tensor, Plan, Draws]  # what it returns: pixels uint8 [B, S, S, 3], with their plan and draws


class Backend(Protocol):
    """Decodes, crops, resizes and flips batches in the given order, with exact counts.

    A record whose CRC fails or that does not decode is a UserError that names it. Several `crops` may be open at a time.
    """

    in_background: bool
    "whether the loader's thread makes the crops, ahead of the training step; otherwise it makes only the draws"

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        """The crops of each batch, in memory that is never written to again; makes no draws."""
        ...


class OnHost:
    """Makes a backend out of a function that fills a host buffer with one batch: load(positions, boxes, out).

    positions int64 [B]; out uint8 [B, S, S, 3].
    """

    in_background = True

    def __init__(self, load: Callable[[np.ndarray, Boxes, np.ndarray], None], size: int, device: torch.device):
        self._load, self._size, self._device = load, size, device

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        pin = self._device.type == "cuda"
        for plan, draws in batches:
            # A fresh buffer for each batch: nothing is overwritten while it is still being read. Pinned buffers come
            # from torch's host cache, which waits for the copy to the GPU before it reuses one.
            pixels = torch.empty((len(plan.positions), self._size, self._size, 3), dtype=torch.uint8, pin_memory=pin)
            self._load(plan.positions, draws.boxes, pixels.numpy())
            yield pixels, plan, draws
