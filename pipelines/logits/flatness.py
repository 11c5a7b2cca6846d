"""How flat a teacher's virtual examples are, and the temperature at which to distil them.

The virtual examples of a class are the teacher's probabilities for it, softmax(t / T), summed over the training images
(He, Wu, Wei 2021, arXiv 2103.15042); they depend on T = tau / p alone. Owns that distribution, its measures and the rule
behind `distill.tau: null`; reads raw logits from any LogitSource. Invariant: the same samples of the same teacher give the
same distribution, in any order.
Shapes: N samples, C classes, T temperatures.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0, 20.0)  # the grid of the rule
_CHUNK = 1 << 17  # logits at a time: few enough to stay in the CPU cache, enough to keep a GPU busy


class LogitSource(Protocol):
    """Raw teacher logits by key and view, as from a LogitCache."""

    classes: int

    def gather(self, keys: np.ndarray, views: np.ndarray, device: torch.device | str) -> torch.Tensor:
        """float32 [B, C] on `device` for int64 keys [B] under int32 views [B]."""
        ...


class Recommendation(NamedTuple):
    """temperature: T; flat: whether the rule holds at T. If it holds nowhere, T is the largest of the grid."""

    temperature: float
    flat: bool


@torch.no_grad()
def virtual_examples(
    cache: LogitSource,
    keys: np.ndarray,
    temperatures: Sequence[float] = TEMPERATURES,
    views: int = 1,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """float64 [T, C]: softmax(t / T) summed over the samples int64 keys [N], averaged over their first `views` views."""
    keys = np.sort(keys)  # the order of a cache
    step = max(1, _CHUNK // cache.classes)
    sums = torch.zeros(len(temperatures), cache.classes, dtype=torch.float64, device=device)
    for view in range(views):
        for start in range(0, len(keys), step):
            part = keys[start : start + step]
            logits = cache.gather(part, np.full(len(part), view, np.int32), device)
            for row, temperature in zip(sums, temperatures, strict=True):
                row += torch.softmax(logits / temperature, dim=1).sum(dim=0, dtype=torch.float64)
    return (sums / views).cpu().numpy()


def thirds(class_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes (int64) of the rarest and of the most frequent third by training images, rounded down; ties in label order.

    A class without training images is in neither third, since the teacher has learnt nothing about it.
    """
    counts = np.asarray(class_counts)
    by_frequency = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    third = max(1, len(by_frequency) // 3)
    return by_frequency[-third:], by_frequency[:third]


def tail_to_head(virtual: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """float64 [...]: mean of virtual examples [..., C] over the rarest third, divided by that over the most frequent third."""
    rarest, most_frequent = thirds(class_counts)
    return virtual[..., rarest].mean(axis=-1) / virtual[..., most_frequent].mean(axis=-1)


def entropy(virtual: np.ndarray) -> np.ndarray:
    """float64 [...], in nats: entropy of the distribution of virtual examples [..., C] over classes; log C when flat."""
    share = virtual / virtual.sum(axis=-1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)


def recommend(
    virtual: np.ndarray, class_counts: np.ndarray, temperatures: Sequence[float] = TEMPERATURES
) -> Recommendation:
    """The smallest T at which the rarest third of classes has as many virtual examples as the most frequent third.

    virtual: [T, C], one row per temperature, ascending. class_counts: training images per class [C].
    """
    level = tail_to_head(virtual, class_counts) >= 1
    first = int(level.argmax()) if level.any() else len(level) - 1
    return Recommendation(temperatures[first], bool(level.any()))
