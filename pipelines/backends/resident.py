"""The resident backend: raw records live on the device, padded once; a view is one gather.

For images whose views are copied, not resized (CIFAR's pad and crop, a centre view of the stored size). Every record is
checked before it goes to the device. Bit-equal to the reference backend: no pixel is computed.
"""

from collections.abc import Generator, Iterable

import numpy as np
import torch

from pipelines.augment.recipe import PAD_CROP, ViewParams
from pipelines.backends.contract import Crops, Drawn
from pipelines.device import to_device
from pipelines.records.reader import Records
from pipelines.records.verify import Verifier

_CHUNK = 4096  # images copied to the device at a time: the host never holds them all


def resident_bytes(records: Records, params: ViewParams) -> int:
    """Bytes of device memory that the padded images take."""
    pad = 2 * params.pad if params.kind == PAD_CROP else 0
    return len(records) * (params.size + pad) ** 2 * 3


class ResidentBackend:
    """See contract.Backend; choice.py says which records and recipes it serves."""

    in_background = False  # it only launches work on the device

    def __init__(self, records: Records, params: ViewParams, workers: int, verify: str, device: torch.device):
        # Later batches read the copy on the device, which disk damage cannot reach: `always` needs no further checks.
        Verifier(records, verify, workers).check(np.arange(len(records)))
        self._device = device
        self._pad = params.pad if params.kind == PAD_CROP else 0
        size, pad = params.size, self._pad
        self._images = torch.zeros((len(records), size + 2 * pad, size + 2 * pad, 3), dtype=torch.uint8, device=device)
        inside = self._images[:, pad : pad + size, pad : pad + size]
        for start in range(0, len(records), _CHUNK):
            part = range(start, min(start + _CHUNK, len(records)))
            pixels = np.stack([records.payload(position).reshape(size, size, 3) for position in part])
            inside[part.start : part.stop] = torch.from_numpy(pixels).to(device)
        self._columns = torch.arange(size, device=device)

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        for plan, draws in batches:
            corners = draws.boxes.windows[:, :2] + self._pad
            columns = np.column_stack([plan.positions, corners, draws.boxes.flips])
            sample, x, y, flip = to_device(columns.T, self._device)
            across = torch.where(flip[:, None] == 1, self._columns.flip(0), self._columns) + x[:, None]
            down = y[:, None] + self._columns
            yield self._images[sample[:, None, None], down[:, :, None], across[:, None, :]], plan, draws
