"""From positions and views to finished batches, on any backend.

Owns the data settings, the choice of a backend and the background thread that keeps batches ahead. One contract for every
backend: batches in the given order with exact counts (the last may be short), errors raised in the caller, no thread left
behind after closing early. A loader knows nothing of epochs or caches: order.py decides what is loaded, and, where the recipe
mixes views, with which partners.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch

from pipelines.augment import mix
from pipelines.augment.finish import Finish, altered, check_normalisation
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.backends.choice import make_backend
from pipelines.backends.contract import Drawn
from pipelines.batch import Batch, Colours, Draws, Holes, Mix, Plan
from pipelines.cores import usable_cores
from pipelines.device import Moved, SideStream, to_device, work_on
from pipelines.errors import UserError
from pipelines.order import Sampling, with_partners
from pipelines.records.reader import Records

Item = TypeVar("Item")
_MOST_WORKERS = 1024  # more threads than any machine has cores for a process


@dataclass(kw_only=True)
class DataConfig:
    train: str | None = field(default=None, metadata={"path": True})
    "training records (.beton, made by tools/convert.py)"
    val: str | None = field(default=None, metadata={"path": True})
    "validation records; null = none"
    test: str | None = field(default=None, metadata={"path": True})
    "test records"
    backend: Literal["auto", "ffcv", "dali", "resident", "reference"] = "auto"
    "what decodes and crops; auto = the cache's; on a GPU resident for raw images that fit, dali for JPEG; else ffcv, reference"
    recipe: Recipe = field(default_factory=Recipe)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    "per-channel mean of the pixels, 0..1"
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    "per-channel standard deviation, 0..1"
    seed: int = 0
    "seed of the views, part of a cache's identity (students 0, teachers 1; `seed` is another number)"
    views: int | None = None
    """V: the k-th occurrence (from 0) of a sample in epoch e shows view (e + k) mod V; null = number of epochs; where
    sampling draws rare images often, more make their crops differ"""
    sampling: Sampling = "instance"
    """instance: every image once an epoch; class_balanced: every class equally often; square_root: a class of n images in
    proportion to sqrt(n); the prior of balanced softmax is that of the classes as drawn"""
    verify: Literal["first", "always", "off"] = "first"
    "check each record's CRC on first touch, at every touch, or never"
    workers: int | None = None
    "decoding threads of this process (dali: of each of its two pipelines); null = its share of the machine's cores"
    hw_decoder_load: float = 0.0
    """dali on a GPU: share of each batch that its hardware JPEG decoder takes, 0..1; the pixels of the two decoders differ
    slightly, so that with a share between 0 and 1 those of a view depend on the rest of its batch; part of a cache's identity"""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"data.seed={self.seed}: must be at least 0 and less than 2**63")
        if self.views is not None and not 1 <= self.views < 2**31:
            raise ValueError(
                f"data.views={self.views}: must be at least 1 and less than 2**31, or null for the number of epochs"
            )
        if self.workers is not None and not 1 <= self.workers <= _MOST_WORKERS:
            raise ValueError(
                f"data.workers={self.workers}: must be from 1 to {_MOST_WORKERS} threads, or null for this process's share of "
                "the cores"
            )
        if not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(f"data.hw_decoder_load={self.hw_decoder_load}: must be from 0 to 1")
        check_normalisation(self.mean, self.std)


def default_workers() -> int:
    """This process's share of the machine's cores."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Loader:
    """Batches of one records file under one recipe.

    seed: data.seed. finish: turns crops into images; None = the crops themselves are the images. device: where batches
    end up. Several streams may be open at a time (training and evaluation have loaders of their own). A sample that the recipe
    cannot cut (pad_crop on another size) is a UserError at once.
    """

    def __init__(
        self,
        records: Records,
        recipe: Recipe,
        *,
        seed: int,
        backend: str,
        finish: Finish | None,
        device: torch.device,
        workers: int | None = None,
        verify: str = "first",
        hw_decoder_load: float = 0.0,
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
        self.waited = 0.0
        "seconds for which the callers of all streams have waited because no crops were ready"
        self._ahead = ahead * (1 if recipe.mix is None else 2)  # of crops; a batch of mixtures takes two
        self._params = view_params(recipe, seed)
        self._backend = make_backend(
            backend, records, self._params, workers or default_workers(), verify, device, hw_decoder_load
        )

    def batches(self, positions: np.ndarray, views: np.ndarray, batch_size: int) -> Generator[Batch, None, None]:
        """Batches over positions int64[n] and views int32[n], in that order; the last one holds what is left."""
        cuts = range(0, len(positions), batch_size)
        return self.stream(Plan(positions[i : i + batch_size], views[i : i + batch_size]) for i in cuts)

    def stream(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        """One batch for each of `plans`, with partners where the plan has them or the recipe mixes views.

        Made a few batches ahead in another thread.
        """
        if self.recipe.mix is not None:
            plans = with_partners(plans, self.records.keys, self._params.seed)
        drawn = self._drawn(plans)
        if self._backend.in_background:
            crops = ahead_of(self._moved(drawn), self._ahead, self._wait, self.device)
        else:
            drawn = ahead_of(drawn, self._ahead, self._wait, self.device)
            crops = self._moved(drawn)
        with contextlib.closing(crops):  # it closes `drawn`, in the thread that uses it
            for item in crops:
                batch = self._batch(*item)
                if item[1].partners is not None:  # the partners are the next item
                    batch = self._with_partners(batch, self._batch(*next(crops)), item[2])
                yield batch

    def load(self, plan: Plan) -> Batch:
        """One batch, without partners, made in the caller's own thread."""
        with contextlib.closing(self._moved(self._drawn([plan]))) as crops:
            return self._batch(*next(crops))

    def _wait(self, seconds: float) -> None:
        self.waited += seconds

    def _drawn(self, plans: Iterable[Plan]) -> Generator[Drawn, None, None]:
        """Each plan with its draws, followed by the plan of its partners, if any, with theirs: all items have the same size."""
        for plan in plans:
            for part in (plan, plan.of_partners()):
                if part is not None:
                    yield part, draw(self._params, self.records, part)

    def _with_partners(self, batch: Batch, partners: Batch, draws: Draws) -> Batch:
        """A finished batch with its finished partners, with which it is mixed where that was drawn."""
        batch = batch._replace(partners=partners)
        if draws.mix is None:
            return batch
        ratios, boxes = draws.mix
        mixed = Mix(to_device(ratios, self.device), None if boxes is None else to_device(boxes, self.device))
        images = batch.images if self.finish is None else mix.apply(batch.images, partners.images, mixed)
        return batch._replace(mix=mixed, images=images)

    def _moved(self, drawn: Generator[Drawn, None, None]) -> Generator[tuple[Moved, Plan, Draws], None, None]:
        """The backend's crops, on their way to the device while it computes."""
        beside = SideStream(self.device, "batches")
        with contextlib.closing(drawn), contextlib.closing(self._backend.crops(drawn)) as crops:
            for pixels, plan, draws in crops:
                yield beside.move(pixels), plan, draws

    def _batch(self, crops: Moved, plan: Plan, draws: Draws) -> Batch:
        """The finished batch of a plan, without its partners."""
        pixels = crops.arrived()
        jitter = draws.colours and Colours(*(to_device(part, self.device) for part in draws.colours))
        holes = draws.holes and Holes(to_device(draws.holes[0], self.device), draws.holes[1])
        batch = Batch(
            images=pixels,
            labels=to_device(self.records.labels[plan.positions], self.device),
            keys=self.records.keys[plan.positions],
            views=plan.views,
            pixels=pixels,
            colours=jitter,
            altered=altered(pixels, draws),
            holes=holes,
        )
        return batch if self.finish is None else batch._replace(images=self.finish.of(batch))


def ahead_of(
    source: Generator[Item, None, None],
    ahead: int,
    waited: Callable[[float], None] | None = None,
    device: torch.device | None = None,
) -> Generator[Item, None, None]:
    """The items of `source`, made up to `ahead` in advance in one background thread.

    An exception in `source` is raised here, at its place in the order; closing the generator stops and joins the thread,
    which closes `source`. waited: is told the seconds for which the consumer waited for each item. device: for which `source`
    works.
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
            work_on(device)
            with contextlib.closing(source):
                for item in source:
                    offer("result", item)
                    if stop.is_set():
                        return
            offer("end")
        except BaseException as error:  # of any kind: the consumer must receive it
            offer("error", error)

    thread = threading.Thread(target=run, name="loader", daemon=True)
    thread.start()
    try:
        while True:
            start = time.perf_counter()
            kind, value = results.get()
            if waited:
                waited(time.perf_counter() - start)
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
