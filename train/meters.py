"""Sums of losses on the device between two lines of metrics, and the first step that was not finite."""

from typing import Any

import torch
from accelerate import Accelerator


class NotFinite(Exception):
    """The first step, counted from 0, whose loss was not finite, or the weights after it. loss: it was the loss."""

    def __init__(self, step: int, loss: bool = True):
        super().__init__(step)
        self.step, self.loss = step, loss


class Meters:
    """Sums of losses, and the first step whose loss was not finite, kept on the device until they are read."""

    def __init__(self, device: torch.device):
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._bad_step = torch.full((), torch.iinfo(torch.int64).max, dtype=torch.int64, device=device)

    def add(self, step: int, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Add one (micro-)batch of step number `step`."""
        for name, value in {"loss": loss.detach(), **parts}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1
        fine = torch.isfinite(loss.detach())
        self._bad_step = torch.where(fine, self._bad_step, self._bad_step.clamp(max=step))

    def require_finite(self, accelerator: Accelerator) -> None:
        """Raise NotFinite on every process if a loss on any of them was not finite in any step so far."""
        bad = int(accelerator.gather(self._bad_step.reshape(1)).min())  # type: ignore[union-attr]
        if bad < torch.iinfo(torch.int64).max:
            raise NotFinite(bad)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call."""
        self.require_finite(accelerator)
        names = list(self._sums)
        means: Any = accelerator.reduce(torch.stack([self._sums[n] for n in names]) / self._count, reduction="mean")
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))

    def state(self, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], int]:
        """(sums of every process {name: [processes]}, the number of steps they cover): what the next `read` will need."""
        sums = {name: accelerator.gather(value.reshape(1)) for name, value in self._sums.items()}
        return sums, self._count  # type: ignore[return-value]

    def restore(self, sums: dict[str, torch.Tensor], count: int, accelerator: Accelerator) -> None:
        """Give each process its own sums; on another number of processes, their mean, which keeps the mean over all."""
        for name, values in sums.items():
            same = len(values) == accelerator.num_processes
            own = values[accelerator.process_index] if same else values.mean()
            self._sums[name] = own.clone().to(accelerator.device)
        self._count = count
