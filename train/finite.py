"""Whether logits are finite: looked at on the device for each batch, read where the host waits anyway.

Evaluation, dry run, soft targets and the writing of caches all look at their logits through this. Owns the error that names the
first sample. The loss of a step is meters.py's. Invariant: `see` never waits for the device.
Shapes: B batch, C classes.
"""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipelines.errors import UserError
from pipelines.records.reader import Records

_NONE = torch.iinfo(torch.int64).max


class FiniteLogits:
    """The first sample whose logits are not finite, among all that `see` was given since the last clean `require`."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []  # of the rows seen, on the host
        self._rows = 0
        self._first: torch.Tensor | None = None  # number of the first bad row, _NONE without one
        self._bad: torch.Tensor | None = None  # number of bad rows

    @torch.no_grad()
    def see(self, logits: torch.Tensor, keys: np.ndarray) -> None:
        """Look at logits [B, C] of the samples int64 keys [B]."""
        bad = ~torch.isfinite(logits.detach()).all(dim=1)
        numbers = torch.arange(self._rows, self._rows + len(keys), device=bad.device)
        first, count = torch.where(bad, numbers, _NONE).amin(), bad.sum()
        self._first = first if self._first is None else torch.minimum(self._first, first)
        self._bad = count if self._bad is None else self._bad + count
        self._keys.append(keys)
        self._rows += len(keys)

    def require(self, records: Records, what: str, advice: str, accelerator: Accelerator | None = None) -> None:
        """UserError if some logits were not finite. what: whose logits they are, the beginning of the sentence.

        accelerator: all processes ask at the same time, and all raise the error of the first that has one.
        """
        found = self._words(records, what, advice)
        if accelerator is not None and accelerator.num_processes > 1:
            flag = torch.tensor([found is not None], device=accelerator.device)
            if bool(accelerator.gather(flag).any()):  # type: ignore[union-attr]
                found = next(words for words in gather_object([found]) if words is not None)
        if found is not None:
            raise UserError(found)
        self._keys, self._rows, self._first, self._bad = [], 0, None, None

    def _words(self, records: Records, what: str, advice: str) -> str | None:
        if self._first is None or self._bad is None or not int(self._bad):
            return None
        key = int(np.concatenate(self._keys)[int(self._first)])
        name = records.name(int(np.flatnonzero(records.keys == key)[0]))
        return (
            f"{what} gives NaN or infinite logits for {int(self._bad)} of {self._rows} images of {records.path}, first for "
            f"{name} (key {key}): {advice}"
        )
