"""The contract that all backends keep, and what they share in keeping it. Knows none of them."""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import numpy as np
import torch

from pipelines.augment.geometry import boxes
from pipelines.augment.recipe import ViewParams
from pipelines.records.reader import Records

BatchPlan = tuple[np.ndarray, np.ndarray]  # (positions int64 [B], views int32 [B]) of one batch
Crops = tuple[torch.Tensor, BatchPlan]  # (pixels uint8 [B, S, S, 3] on the device, what they are)


class Backend(Protocol):
    """Decodes, crops, resizes and flips: batches in the order of the plan, with exact counts.

    A record whose CRC fails or that does not decode is a UserError that names it. Several `crops` may be open at a time.
    """

    in_background: bool
    "whether a thread of the loader should run ahead of the training step"

    def crops(self, plan: Iterable[BatchPlan]) -> Generator[Crops, None, None]:
        """The crops of each batch of `plan`, in memory that nobody writes to again."""
        ...


class OnHost:
    """Makes a backend of a function that fills a host buffer with one batch: load(positions, views, out)."""

    in_background = True

    def __init__(
        self, load: Callable[[np.ndarray, np.ndarray, np.ndarray], None], params: ViewParams, device: torch.device
    ):
        self._load, self._size, self._device = load, params.size, device

    def crops(self, plan: Iterable[BatchPlan]) -> Generator[Crops, None, None]:
        pin = self._device.type == "cuda"
        for positions, views in plan:
            # A fresh buffer for each batch: nothing is overwritten while somebody still reads it. Pinned buffers come
            # from torch's host cache, which waits for the copy to the GPU before it hands one out again.
            pixels = torch.empty((len(positions), self._size, self._size, 3), dtype=torch.uint8, pin_memory=pin)
            self._load(positions, views, pixels.numpy())
            yield pixels, (positions, views)


def boxes_of(params: ViewParams, records: Records, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
    """int32 [B, 5]: (x, y, w, h, flip) of int32 views [B] of the records at int64 positions [B], on the stored images."""
    r = records
    originals = r.widths[positions], r.heights[positions]
    return boxes(params, r.keys[positions], views, *originals, r.stored_widths[positions], r.stored_heights[positions])


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device that no ordinary step waits for: from pageable memory CUDA would synchronise."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
