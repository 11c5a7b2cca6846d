"""From positions and views to finished batches, on any backend.

Owns the data settings, the choice of a backend and the background thread that keeps batches ahead. One contract for every
backend: batches in the given order with exact counts (the last may be short), errors raised in the caller, closing early
leaves no thread behind. A loader knows nothing of epochs or of caches: order.py decides what is loaded.
"""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from pipelines.batch import Batch, Colours
from pipelines.errors import UserError
from pipelines.finish import Finish
from pipelines.libffcv import library_path
from pipelines.records import Records
from pipelines.views import Recipe, ViewParams, colours, view_params

Item = TypeVar("Item")
Result = TypeVar("Result")
BatchPlan = tuple[np.ndarray, np.ndarray]  # (positions int64 [B], views int32 [B]) of one batch


@dataclass(kw_only=True)
class DataConfig:
    train: str | None = None
    "training records (.beton, made by tools/convert.py)"
    val: str | None = None
    "validation records; null = none"
    test: str | None = None
    "test records"
    backend: Literal["auto", "ffcv", "reference"] = "auto"
    "who decodes and crops; auto = the cache's backend if there is a cache, else ffcv when installed, else reference"
    recipe: Recipe = field(default_factory=Recipe)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    "per-channel mean of the pixels, 0..1"
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    "per-channel standard deviation, 0..1"
    seed: int = 0
    "seed of the views, part of a cache's identity (students 0, teachers 1; `seed` is another number)"
    views: int | None = None
    "V: epoch e shows view e mod V of each sample; null = number of epochs"
    verify: Literal["first", "always", "off"] = "first"
    "check each record's CRC on first touch, at every touch, or never"
    workers: int | None = None
    "decoding threads of this process; null = its share of the machine's cores"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"data.seed={self.seed}: must be at least 0 and less than 2**63")
        if self.views is not None and self.views < 1:
            raise ValueError(f"data.views={self.views}: must be at least 1, or null for the number of epochs")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers={self.workers}: must be at least 1, or null")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ValueError(f"data.{name}={values}: needs three numbers, on the 0..1 scale, std above 0")


def resolve_backend(setting: str, cached: str | None = None) -> str:
    """The backend that `data.backend` means here; `cached` is the backend a cache was written with, if there is one."""
    if setting == "auto":
        setting = cached or ("ffcv" if library_path() else "reference")
    if setting == "ffcv" and library_path() is None:
        raise UserError(
            "data.backend=ffcv: FFCV is not installed; run `bash tools/setup.sh`, or use data.backend=reference"
        )
    return setting


def default_workers() -> int:
    """This process's share of the machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Backend(Protocol):
    """Decodes and crops on the CPU."""

    def load(self, positions: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
        """Fill uint8 out[B, S, S, 3] with the views of one batch; UserError names a record that is damaged."""
        ...


def _make_backend(name: str, records: Records, params: ViewParams, workers: int, verify: str) -> Backend:
    if name == "ffcv":
        from pipelines.ffcv_backend import FFCVBackend  # FFCV is an extra

        return FFCVBackend(records, params, workers, verify)
    from pipelines.reference_backend import ReferenceBackend

    return ReferenceBackend(records, params, workers, verify)


class Loader:
    """Batches of one records file under one recipe.

    seed: data.seed. device: where batches end up. Several streams may be open at a time (training and evaluation have
    loaders of their own). A sample that the recipe cannot cut (pad_crop on another size) is a UserError at once.
    """

    def __init__(
        self,
        records: Records,
        recipe: Recipe,
        *,
        seed: int,
        backend: str,
        finish: Finish,
        device: torch.device,
        workers: int | None = None,
        verify: str = "first",
        ahead: int = 3,
    ):
        if recipe.crop == "pad_crop":
            wrong = (records.stored_widths != recipe.size) | (records.stored_heights != recipe.size)
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                raise UserError(
                    f"data.recipe.crop=pad_crop needs {recipe.size}x{recipe.size} images, but {records.name(i)} in "
                    f"{records.path} is {records.stored_widths[i]}x{records.stored_heights[i]}; "
                    "use data.recipe.crop=random_resized_crop or another data.recipe.size"
                )
        self.records = records
        self.recipe = recipe
        self.device = device
        self.finish = finish
        self._ahead = ahead
        self._params = view_params(recipe, seed)
        self._labels = torch.from_numpy(records.labels.copy())
        self._backend = _make_backend(backend, records, self._params, workers or default_workers(), verify)

    def batches(self, positions: np.ndarray, views: np.ndarray, batch_size: int) -> Generator[Batch, None, None]:
        """Batches over positions int64[n] and views int32[n], in that order; the last one holds what is left."""
        cuts = range(0, len(positions), batch_size)
        return self.stream((positions[i : i + batch_size], views[i : i + batch_size]) for i in cuts)

    def stream(self, plan: Iterable[BatchPlan]) -> Generator[Batch, None, None]:
        """One batch for each (positions, views) of `plan`, which is read a few batches ahead, in another thread."""
        size = self.recipe.size
        pin = self.device.type == "cuda"

        def load(item: BatchPlan) -> tuple[torch.Tensor, BatchPlan]:
            # A fresh buffer for each batch: nothing is overwritten while somebody still reads it. Pinned buffers come
            # from torch's host cache, which waits for the copy to the GPU before it hands one out again.
            pixels = torch.empty((len(item[0]), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            self._backend.load(item[0], item[1], pixels.numpy())
            return pixels, item

        loaded = ahead_of(load, plan, self._ahead)
        try:
            for pixels, (rows, row_views) in loaded:
                pixels = pixels.to(self.device, non_blocking=True)
                labels = self._labels[torch.from_numpy(rows)]
                if pin:
                    labels = labels.pin_memory()
                jitter = self._colours(rows, row_views)
                yield Batch(
                    images=self.finish(pixels, jitter),
                    labels=labels.to(self.device, non_blocking=True),
                    keys=self.records.keys[rows],
                    views=row_views,
                    pixels=pixels,
                    colours=jitter,
                )
        finally:
            loaded.close()

    def _colours(self, rows: np.ndarray, views: np.ndarray) -> Colours | None:
        if not any(self.recipe.jitter):
            return None
        factors, order = colours(self._params, self.records.keys[rows], views)
        return Colours(torch.from_numpy(factors).to(self.device), torch.from_numpy(order).to(self.device))


def ahead_of(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result, None, None]:
    """`map(work, items)` computed up to `ahead` results in advance in one background thread.

    An exception in `work` is raised here, at its place in the order; closing the generator stops and joins the thread.
    """
    results: queue.Queue = queue.Queue(maxsize=max(1, ahead))
    stop = threading.Event()

    def offer(kind: str, value: object = None) -> None:
        while not stop.is_set():
            try:
                results.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                offer("result", work(item))
            offer("end")
        except BaseException as error:  # whatever it is, the consumer must hear of it
            offer("error", error)

    thread = threading.Thread(target=run, name="loader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = results.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
