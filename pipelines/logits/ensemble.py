"""Several caches of the same views, read as one: the mean of the logits or probabilities of several teachers.

Owns the two kinds of mean; which caches a run may use is decided elsewhere. Invariant: the mean of one cache is that cache.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.logits.reader import LogitCache


class Ensemble:
    """weights: one positive number per cache, empty = equal; only their ratios count.

    average: logits = weighted mean of raw logits. probabilities = weighted mean of softmax(z / T) at T = `temperature`, returned
    as T * log(mean), whose softmax at T is that mean: a loss at T = tau / p gets exactly the averaged probabilities.
    """

    def __init__(
        self,
        caches: Sequence[LogitCache],
        weights: Sequence[float] = (),
        average: str = "logits",
        temperature: float = 1.0,
    ):
        self.caches, self.weights, self.average, self.temperature = caches, weights, average, temperature
        self.classes = caches[0].classes
        self.views = min(cache.views for cache in caches)

    def at(self, temperature: float) -> "Ensemble":
        """The same caches, averaged for use at T = `temperature`."""
        return Ensemble(self.caches, self.weights, self.average, temperature)

    def gather(self, keys: np.ndarray, views: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """float32 [B, C] on `device` for integer keys [B] under integer views [B], as `LogitCache.gather`."""
        return self.mean([cache.gather(keys, views, device) for cache in self.caches])

    def mean(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """float32 [B, C] of raw logits [B, C], one for each cache."""
        if len(logits) == 1:
            return logits[0]
        weights = self.weights or [1.0] * len(logits)
        shares = [weight / sum(weights) for weight in weights]  # Python numbers, so that nothing waits for the device
        if self.average == "logits":
            return torch.stack([share * z for share, z in zip(shares, logits, strict=True)]).sum(dim=0)
        log_probs = [
            torch.log_softmax(z / self.temperature, dim=1) + math.log(share)
            for share, z in zip(shares, logits, strict=True)
        ]
        return self.temperature * torch.logsumexp(torch.stack(log_probs), dim=0)
