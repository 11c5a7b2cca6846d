"""Sums of losses between two lines of metrics, and the first step that was not finite.

Invariant: adding a step is one launch, whatever it adds, and waits for nothing; the sums are made on the host, in the order of
the steps, where the host waits for the device anyway.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

_NEVER = torch.iinfo(torch.int64).max
_MOST_UNREAD = 10_000  # rows on the device, of 512 bytes each there: for a program that never reads


class NotFinite(Exception):
    """The first step, counted from 0, whose loss was not finite, or the weights after it. loss: it was the loss."""

    def __init__(self, step: int, loss: bool = True):
        super().__init__(step)
        self.step, self.loss = step, loss


class Meters:
    """Sums of losses, and the first step whose loss was not finite; what each step adds stays on the device until it is read."""

    def __init__(self, device: torch.device):
        self._device = device
        # step, names, their values, their share of the step
        self._unread: list[tuple[int, list[str], torch.Tensor, float]] = []
        self._sums: dict[str, Any] = {}  # numpy scalars
        self._count = 0.0
        self._bad_step = _NEVER

    def add(self, step: int, loss: torch.Tensor, parts: dict[str, torch.Tensor], share: float = 1.0) -> None:
        """Add a batch of step number `step`, or a micro-batch, which is a share of it: each step counts the same."""
        # A copy: the loss of a CUDA graph is overwritten by its next run.
        self._unread.append((step, ["loss", *parts], torch.stack([loss.detach(), *parts.values()]), share))
        self._count += share
        if len(self._unread) == _MOST_UNREAD:
            self._sum_up()

    def _sum_up(self) -> None:
        """Wait for what was added, and add it to the sums."""
        if not self._unread:
            return
        values = torch.cat([row for _, _, row, _ in self._unread]).cpu().numpy()
        with np.errstate(all="ignore"):
            for step, names, _, share in self._unread:
                row, values = values[: len(names)], values[len(names) :]
                if not np.isfinite(row[0]):
                    self._bad_step = min(self._bad_step, step)
                for name, value in zip(names, row, strict=True):
                    self._sums[name] = self._sums.get(name, 0 * value) + share * value
        self._unread = []

    def require_finite(self, accelerator: Accelerator) -> None:
        """Raise NotFinite on every process if a loss on any of them was not finite in any step so far."""
        self._sum_up()
        bad_step = torch.tensor([self._bad_step], device=self._device)
        bad = int(accelerator.gather(bad_step).min())  # type: ignore[union-attr]
        if bad < _NEVER:
            raise NotFinite(bad)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call."""
        self.require_finite(accelerator)
        names = list(self._sums)
        sums = torch.from_numpy(np.stack([self._sums[name] for name in names])).to(self._device)
        means: Any = accelerator.reduce(sums / self._count, reduction="mean")
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))

    def state(self, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
        """(sums of every process {name: [processes]}, the number of steps they cover): what the next `read` will need."""
        self._sum_up()
        own = {name: torch.from_numpy(np.stack([value])).to(self._device) for name, value in self._sums.items()}
        sums = {name: accelerator.gather(value) for name, value in own.items()}
        return sums, self._count  # type: ignore[return-value]

    def restore(self, sums: dict[str, torch.Tensor], count: float, accelerator: Accelerator) -> None:
        """Give each process its own sums; on another number of processes, their mean, which keeps the mean over all."""
        for name, values in sums.items():
            same = len(values) == accelerator.num_processes
            own = values[accelerator.process_index] if same else values.mean()
            self._sums[name] = own.cpu().numpy()[()]
        self._count = count
