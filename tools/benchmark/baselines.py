"""What tools/bench.py compares with: a torch DataLoader with PIL, and the stock FFCV Loader, on the same records and recipe.

Each runs in a process of its own, as it would when used alone: `import ffcv` changes torch's threads and
compiles for ten seconds, and worker processes are best forked from a small parent. Invariant: what goes wrong here is told
in one line and costs the comparison, never the bench.
"""

import contextlib
import itertools
import math
import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset

from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.records.reader import Records
from tools.benchmark.clock import Stream, Timing, endless

# Samples of one epoch of the stock Loader, repeated from the pool: at its start it fills its queue and allocates its
# buffers anew, which must not happen within a measurement.
_LONG_EPOCH = 1_000_000
_MEAN, _STD = (
    torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)  # any cost the same
_UNCHANGED = ([1.0, 1.0, 1.0], [0, 1, 2])  # the colours of a recipe without jitter
# position, window and box in it as in Boxes, flip, colours
Index = tuple[int, list[int], list[float], int, tuple[list[float], list[int]] | None]


class Job(NamedTuple):
    """What a baseline is to load. pool: int64 positions in the records; folder: where it may write files."""

    records: Path
    pool: np.ndarray
    recipe: Recipe
    data_seed: int
    views: int
    batch: int
    workers: int
    device: torch.device
    folder: Path


class Unavailable(Exception):
    """Why a comparison cannot be made, in a few words."""


# ---- torch DataLoader and PIL ----


# In the order of views.colours.
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _corners(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
    return x, y, x + w, y + h


class ImageFiles(Dataset):
    """Image files, each read, decoded, cropped, resized and flipped by PIL as torchvision's transforms do it.

    An index is (position, window, inside, flip, colours): drawn beforehand, from the same view as ours (Boxes). colours: the
    factors of jitter and their order; with them come jitter, float and normalisation in the worker; None leaves that to the
    device.
    """

    def __init__(self, paths: dict[int, Path], labels: np.ndarray, size: int):
        self._paths, self._labels, self._size = paths, labels, size

    def __getitem__(self, index: Index) -> tuple[torch.Tensor, int]:
        position, window, inside, flip, colours = index
        with Image.open(self._paths[position]) as file:
            image = file.convert("RGB")
        box = _corners(*inside)
        image = image.crop(_corners(*window)).resize((self._size, self._size), Image.Resampling.BILINEAR, box)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = int(self._labels[position])
        if colours is None:
            return torch.from_numpy(np.array(image)), label
        factors, order = colours
        for which in order:
            if factors[which] != 1:
                image = _ENHANCERS[which](image).enhance(factors[which])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - _MEAN) / _STD, label


class _Boxes:
    """The endless order of `job`, as lists of indices for ImageFiles: a batch sampler. whole: with colours."""

    def __init__(self, records: Records, job: Job, whole: bool):
        self._records, self._job, self._whole = records, job, whole
        self._params = view_params(job.recipe, job.data_seed)

    def __iter__(self) -> Iterator[list[Index]]:
        r, job = self._records, self._job
        for plan in endless(job.pool, job.batch, job.views):
            boxes, colours, *_ = draw(self._params, r, plan)
            drawn: Iterable = itertools.repeat(_UNCHANGED if self._whole else None)
            if self._whole and colours:
                drawn = zip(*(part.tolist() for part in colours), strict=True)
            rows = plan.positions.tolist()
            yield list(zip(rows, *(part.tolist() for part in boxes), drawn, strict=False))  # the last may be endless


def _unpack(records: Records, pool: np.ndarray, folder: Path) -> dict[int, Path]:
    """Position -> image file: the stored JPEG bytes as they are, raw pixels as PNG."""
    paths = {}
    for position in np.unique(pool).tolist():
        payload = records.payload(position)
        if records.raw[position]:
            paths[position] = folder / f"{position}.png"
            shape = (int(records.stored_heights[position]), int(records.stored_widths[position]), 3)
            Image.fromarray(payload.reshape(shape)).save(paths[position])
        else:
            paths[position] = folder / f"{position}.jpg"
            paths[position].write_bytes(payload.tobytes())
    return paths


def pil_source(job: Job, whole: bool = False) -> tuple[Stream, str]:
    """(what measures the DataLoader, a note); whole: jitter and normalisation too, in its workers."""
    records = Records(job.records)
    images = ImageFiles(_unpack(records, job.pool, job.folder), records.labels, job.recipe.size)

    def run() -> Generator[int, None, None]:
        loader = DataLoader(
            images,
            batch_sampler=_Boxes(records, job, whole),  # pyright: ignore[reportArgumentType]
            num_workers=job.workers,
            pin_memory=job.device.type == "cuda",
            multiprocessing_context="fork",
        )
        for pixels, labels in loader:
            pixels.to(job.device, non_blocking=True)
            labels.to(job.device, non_blocking=True)
            yield len(labels)

    crops = (
        "float, normalised" + (", jittered" if any(job.recipe.jitter) else "") if whole else "crops alone, as in (a)"
    )
    if missing := [
        name
        for name in ("rotation", "policy", "grayscale", "cutout", "erasing", "mix")
        if whole and getattr(job.recipe, name)
    ]:
        crops += f", without {', '.join(missing)}"
    return Stream(run, job.device, warm=job.workers, workers=job.workers), f"{crops}; worker processes: {job.workers}"


# ---- stock FFCV ----


def _stock_decoder(recipe: Recipe) -> tuple[list[Any], str]:
    """FFCV's own operations that come nearest to a recipe without its flip, and their names."""
    from ffcv.fields import rgb_image
    from ffcv.transforms import RandomTranslate

    size = (recipe.size, recipe.size)
    if recipe.crop == "pad_crop":
        translate = [RandomTranslate(recipe.pad)]
        return [rgb_image.SimpleRGBImageDecoder(), *translate], "SimpleRGBImageDecoder, RandomTranslate"
    if recipe.crop == "random_resized_crop":
        scale, ratio = tuple(recipe.scale), tuple(recipe.ratio)
        decoder = rgb_image.RandomResizedCropRGBImageDecoder(size, scale, ratio)
        return [decoder], "RandomResizedCropRGBImageDecoder"
    decoder = rgb_image.CenterCropRGBImageDecoder(size, recipe.size / recipe.resolved_short_side())
    how = ", a box of the same size that stands still" if recipe.crop == "resize_crop" else ""
    return [decoder], f"CenterCropRGBImageDecoder{how}"


def ffcv_source(job: Job) -> tuple[Stream, str]:
    """(what measures the stock Loader, a note); compiled and warm when this returns."""
    try:
        import numba
        from ffcv.fields.basics import IntDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise Unavailable("not installed" if missing == "ffcv" else f"does not import: it needs {missing}") from error
    except ImportError as error:
        raise Unavailable(f"does not load: {error}") from error
    decoder, names = _stock_decoder(job.recipe)
    move = [ToDevice(job.device)] if job.device.type == "cuda" else []
    flip = [RandomHorizontalFlip()] if job.recipe.flip else []
    ours_alone: dict[str, Any] = dict.fromkeys(("key", "width", "height", "source", "crc"))
    ahead = 3
    loader = Loader(
        str(job.records),
        batch_size=job.batch,
        num_workers=min(job.workers, numba.config.NUMBA_NUM_THREADS),  # pyright: ignore[reportAttributeAccessIssue]
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.tile(job.pool, -(-_LONG_EPOCH // len(job.pool))),  # type: ignore[arg-type]
        pipelines={
            "image": [*decoder, *flip, ToTensor(), *move, ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
        }
        | ours_alone,  # type: ignore[arg-type]
        batches_ahead=ahead,
    )

    def epochs() -> Generator[int, None, None]:
        while True:
            for _, labels in loader:
                yield len(labels)

    running = epochs()
    next(running)

    def run() -> Generator[int, None, None]:
        """One epoch that goes on and on: stopping in the middle of one would leak its thread."""
        try:
            while True:
                yield next(running)
        finally:
            _wait_until_idle()  # it goes on to fill its queue, which must not slow down the next measurement

    # Batches that it loaded during other measurements pass before the clock starts.
    return Stream(run, job.device, warm=ahead + 2), names


def _wait_until_idle() -> None:
    used = -math.inf
    while time.process_time() - used > 0.01:
        used = time.process_time()
        time.sleep(0.1)


# ---- processes ----

# Seconds without an answer after which a process has hung, as the stock Loader does after an error in its thread: time to
# start and compile, and for each image more than any computer takes.
_START_SECONDS, _IMAGE_SECONDS = 120.0, 0.05
_MAKERS: dict[str, Callable[[Job], tuple[Stream, str]]] = {
    "pil": pil_source,
    "pil_whole": partial(pil_source, whole=True),
    "ffcv": ffcv_source,
}


def _serve(kind: str, job: Job, pipe: Connection) -> None:
    """The child's life: answers (note, source's measurements), or the exception in words."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it closes the pipe
    warnings.simplefilter("ignore")  # numba's on FFCV's code
    try:
        source, note = _MAKERS[kind](job)
        pipe.send(("ready", note))
        while True:
            pipe.send(("timing", tuple(source.measure(*pipe.recv()))))
    except (EOFError, ConnectionError):  # the parent has closed its end
        return
    except Exception as error:  # every exception is reported to the parent
        last = " ".join(traceback.format_exception_only(error)[-1].split())
        pipe.send(("failed", str(error) if isinstance(error, Unavailable) else f"failed: {last}"))


class Baseline:
    """A comparison at work in its own process, starting up until `ready` is asked."""

    def __init__(self, kind: str, job: Job):
        self._patience = _START_SECONDS + _IMAGE_SECONDS * max(len(job.pool), 8 * job.workers * job.batch)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(kind, job, theirs), name=f"bench {kind}")
        self._process.start()
        theirs.close()

    def _answer(self, patience: float) -> Any:
        try:
            if not self._pipe.poll(patience):
                raise Unavailable(f"failed: no answer for {patience:.0f} s")
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Unavailable(f"failed: its process ended with exit code {self._process.exitcode}") from None
        if kind == "failed":
            raise Unavailable(value)
        return value

    def ready(self) -> str:
        """Wait until it is warm and return its note; Unavailable says why it never will be."""
        return self._answer(self._patience)

    def measure(self, seconds: float, images: int) -> Timing:
        """See clock.Source; the other process takes the time."""
        with contextlib.suppress(ConnectionError):  # the process has died; reading its answer reports that
            self._pipe.send((seconds, images))
        return Timing(*self._answer(self._patience + 2 * seconds))

    def close(self) -> None:
        """End the process: ask it first, kill it if it does not answer."""
        self._pipe.close()
        self._process.join(timeout=3)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
