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


class FiniteLogits:
    """The first sample whose logits are not finite, among all that `see` was given since the last clean `require`."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._marks: list[torch.Tensor] = []  # float32 [B], on the device, as long as the keys: 0, or NaN for a bad row

    @torch.no_grad()
    def see(self, logits: torch.Tensor, keys: np.ndarray) -> None:
        """Look at logits [B, C] of the samples int64 keys [B]."""
        self._marks.append((logits.detach() * 0).sum(dim=1, dtype=torch.float32))  # infinity times 0 is NaN
        self._keys.append(keys)

    def require(
        self,
        records: Records,
        what: str,
        advice: str,
        accelerator: Accelerator | None = None,
        place: str | None = None,
    ) -> None:
        """UserError if some logits were not finite. what: whose logits they are, the beginning of the sentence.

        accelerator: all processes ask at the same time, and all raise the error of the first that has one. place: where the user
        has the images; None = in the records.
        """
        found = self._words(records, what, advice, place or str(records.path))
        if accelerator is not None and accelerator.num_processes > 1:
            flag = torch.tensor([found is not None], device=accelerator.device)
            if bool(accelerator.gather(flag).any()):  # type: ignore[union-attr]
                found = next(words for words in gather_object([found]) if words is not None)
        if found is not None:
            raise UserError(found)
        self._keys, self._marks = [], []

    def _words(self, records: Records, what: str, advice: str, place: str) -> str | None:
        bad = torch.cat(self._marks).isnan().cpu().numpy() if self._marks else np.zeros(0, np.bool_)
        if not bad.any():
            return None
        key = int(np.concatenate(self._keys)[bad.argmax()])
        name = records.name(int(np.flatnonzero(records.keys == key)[0]))
        return (
            f"{what} gives NaN or infinite logits for {bad.sum()} of {len(bad)} images of {place}, first for {name} "
            f"(key {key}): {advice}"
        )
