"""Where a student's soft targets come from: a logit cache, or the teacher itself, run online.

Both give raw teacher logits for exactly the views of a batch. Owns loading a teacher and naming it; the loss is elsewhere.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from models.registry import build_model
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.finish import Finish
from pipelines.logits import LogitCache
from pipelines.records import Records
from train.checkpoint import load_final

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Targets(Protocol):
    """Soft targets of one student."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Raw teacher logits, float32 [B, C], on the batch's device, without gradient."""
        ...


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of a network's weights: the same wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Teacher:
    """A finished run's network, frozen, in eval mode, asked about uint8 crops.

    It normalises with its own mean and std, whatever the student uses. Another class order or input size is refused.
    precision: fp32, bf16 or fp16, that of the forward pass.
    """

    def __init__(
        self,
        path: str,
        records: Records,
        input_size: int,
        device: torch.device,
        precision: str,
        channels_last: bool,
        compile: bool = False,
    ):
        state, meta = load_final(path)
        self.name = Path(path.removesuffix("/model.safetensors")).name
        self._check(path, meta, records, input_size)
        network = build_model(meta["architecture"], len(meta["class_names"]))
        network.load_state_dict(state)
        self._network = network.to(device).eval().requires_grad_(False)
        if channels_last:
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self._network.compile(dynamic=False)
        self._finish = Finish(meta["mean"], meta["std"], device, channels_last)
        self._device = device
        self._dtype = _DTYPES[precision]
        self.identity: dict[str, Any] = {
            "weights": weights_hash(state),
            "architecture": meta["architecture"],
            "input_size": meta["input_size"],
            "mean": list(meta["mean"]),
            "std": list(meta["std"]),
            "dtype": str(self._dtype).removeprefix("torch."),
            "memory_format": "channels_last" if channels_last else "contiguous",
            "kind": "raw",  # not an average of weights (EMA)
        }

    @staticmethod
    def _check(path: str, meta: dict[str, Any], records: Records, input_size: int) -> None:
        names = list(records.class_names)
        if meta["class_names"] != names:
            at = next((i for i, (a, b) in enumerate(zip(meta["class_names"], names, strict=False)) if a != b), None)
            what = (
                f"{len(meta['class_names'])} classes, the data has {len(names)}"
                if at is None
                else f"class {at} = {meta['class_names'][at]!r}, the data has {names[at]!r}"
            )
            raise UserError(
                f"distill.teacher={path} was trained on other classes: {what}; use its records, or retrain it"
            )
        if meta["input_size"] != input_size:
            raise UserError(
                f"distill.teacher={path} was trained on {meta['input_size']}-pixel views, "
                f"data.recipe.size is {input_size}: make them equal"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        images = self._finish(batch.pixels, batch.colours)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._network(images).float()


class CachedTargets:
    """Targets gathered from a logit cache by (key, view), with fingerprints compared as cache.check says.

    every: batches between two checks (an epoch); say: where the finding of the first check is reported.
    """

    def __init__(
        self,
        cache: LogitCache,
        device: torch.device,
        check: str,
        pixels: str,
        every: int,
        say: Callable[[str], None],
    ):
        self.cache = cache
        self._device = device
        self._pixels = pixels
        self._say = say
        # The first two batches are always checked, then one an epoch, or every one.
        self._every = {"open": None, "epoch": max(1, every), "always": 1}[check]
        self._seen = 0
        self._worst = ""

    def _due(self) -> bool:
        return self._seen < 2 or (self._every is not None and self._seen % self._every == 0)

    def __call__(self, batch: Batch) -> torch.Tensor:
        records = self.cache.records(batch.keys, batch.views)
        if self._due():
            self._report(self.cache.check_pixels(batch, records, self._pixels))
        self._seen += 1
        return self.cache.decode(records, self._device)

    def _report(self, verdict: str) -> None:
        if verdict == self._worst or (self._worst == "close" and verdict == "same"):
            return
        self._worst = verdict
        text = {
            "same": "the pixels are those the teacher saw (equal hashes)",
            "close": "the views are those the teacher saw, through slightly other pixels (thumbnails agree)",
        }
        self._say(f"cache: {text[verdict]}")
