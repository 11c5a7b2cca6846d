"""Where a student's soft targets come from: a logit cache, or the teacher itself, run online.

Both give raw teacher logits for exactly the views of a batch. Owns running a teacher and the description of what its answers
depend on; does not own the loss.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from models.registry import TIMM_PREFIX
from pipelines.augment.finish import Finish
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.logits import Ensemble
from pipelines.records.reader import Records
from train.networks import layout
from train.networks.layout import compile_in_place, compute_dtype, input_dtype
from train.networks.probe import explained
from train.networks.weights import Pretrained, weights_hash


class Targets(Protocol):
    """Soft targets for one student."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Raw teacher logits, float32 [B, C], on the batch's device, without gradient."""
        ...


class Teacher:
    """A finished network, frozen, in eval mode, applied to uint8 crops.

    It normalises with its own mean and std, whatever the student uses. A different class order or input size is refused.
    precision: that of the forward pass, fp32, bf16 or fp16.
    """

    def __init__(
        self,
        source: Pretrained,
        records: Records,
        input_size: int,
        device: torch.device,
        precision: str,
        channels_last: bool,
        compile: bool = False,
        compile_mode: str = "default",
    ):
        _require_fit(source, records, input_size)
        self.name = source.name
        weights = weights_hash(source.network.state_dict())
        self._network = source.network.to(device).eval().requires_grad_(False)
        if channels_last:
            self._network = layout.channels_last(self._network)
        compile_in_place(self._network, compile, compile_mode)
        dtype = input_dtype(source.spec.name, precision)
        self._finish = Finish(source.mean, source.std, device, channels_last, compile, dtype)
        self._device = device
        self._dtype = compute_dtype(precision)
        self._explained = partial(explained, source.spec, input_size, f"distill.teacher={source.origin}")
        self.identity: dict[str, Any] = {
            "weights": weights,
            "architecture": source.spec.architecture,
            "input_size": source.input_size,
            "mean": list(source.mean),
            "std": list(source.std),
            "dtype": str(self._dtype).removeprefix("torch."),
            "memory_format": "channels_last" if channels_last else "contiguous",
            "kind": source.kind,
        }
        ours = source.spec.head == "linear" and not source.spec.name.startswith(TIMM_PREFIX)
        if ours and self._dtype != torch.float32:
            # Caches of earlier versions hold logits that were rounded to the network's precision.
            self.identity["head"] = "float32"
        # as in CachedTargets, for the student's model card: where each teacher came from and the hash of its weights
        self.teachers = [{"source": source.origin, "architecture": source.spec.architecture, "weights": weights}]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        images = self._finish.of(batch)
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with self._explained(), autocast:
            # A copy: a CUDA graph's output is overwritten by its next run, and the cache's writer keeps several.
            return self._network(images).to(torch.float32, copy=True)


def _require_fit(source: Pretrained, records: Records, input_size: int) -> None:
    """Refuse a teacher with other classes, another order of classes, or another input size."""
    theirs, ours = source.class_names, list(records.class_names)
    if theirs != ours:
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        what = (
            f"{len(theirs)} classes, the data has {len(ours)}"
            if at is None
            else f"class {at} = {theirs[at]!r}, the data has {ours[at]!r}"
        )
        raise UserError(
            f"distill.teacher={source.origin} was trained on other classes: {what}; use its records, or retrain it"
        )
    if source.input_size != input_size:
        raise UserError(
            f"distill.teacher={source.origin} was trained on {source.input_size}-pixel views, "
            f"data.recipe.size is {input_size}: make them equal"
        )


class CachedTargets:
    """Targets gathered from logit caches by (key, view), with fingerprints compared as cache.check says.

    caches: one, or several whose mean is the target. every: batches between two checks (an epoch); say: reports the result of
    the first check.
    """

    def __init__(
        self,
        caches: Ensemble,
        device: torch.device,
        check: str,
        pixels: str,
        every: int,
        say: Callable[[str], None],
    ):
        self._caches = caches
        self.teachers = [
            {"source": str(cache.folder)}
            | {name: cache.identity["teacher"][name] for name in ("architecture", "weights")}
            for cache in caches.caches
        ]
        self._device = device
        self._pixels = pixels
        self._say = say
        # The first two batches are always checked; after that one per epoch, or every one.
        self._every = {"open": None, "epoch": max(1, every), "always": 1}[check]
        self._seen = 0
        self._worst = ""

    def _due(self) -> bool:
        return self._seen < 2 or (self._every is not None and self._seen % self._every == 0)

    def __call__(self, batch: Batch) -> torch.Tensor:
        due, logits = self._due(), []
        for cache in self._caches.caches:
            records = cache.records(batch.keys, batch.views)
            if due:
                self._report(cache.check_pixels(batch.pixels, records, self._pixels))
            logits.append(cache.decode(records, self._device))
        self._seen += 1
        return self._caches.mean(logits)

    def _report(self, verdict: str) -> None:
        if verdict == self._worst or (self._worst == "close" and verdict == "same"):
            return
        self._worst = verdict
        text = {
            "same": "the pixels are those the teacher saw (equal hashes)",
            "close": "the views are those the teacher saw, through slightly other pixels (thumbnails agree)",
        }
        self._say(f"cache: {text[verdict]}")
