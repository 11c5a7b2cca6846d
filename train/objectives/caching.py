"""Computing a logit cache: runs the teacher over every (block, view) that is not on disk yet.

A block is always computed in batches of cache.batch consecutive keys from its first key, by one process, so its bytes do not
depend on who writes it. Owns the loop, its progress and the thread that encodes and writes behind it; the format
belongs to pipelines/logits. Invariant: a kill loses at most the block being computed and the one being written.
"""

import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from pipelines.batch import Batch, Plan
from pipelines.device import Lead, SideStream, work_on
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints, on_host
from pipelines.logits.writer import CacheSize, CacheWriter, Cell
from train.finite import FiniteLogits
from train.objectives.targets import Teacher
from train.run import launcher
from train.run.agreement import Meeting
from train.run.stops import LAUNCHER_GONE, Stopped
from train.watch.progress import Bar
from train.watch.text import size_text

_PLAIN_SECONDS = 10.0
_NOT_FINITE = "nothing of this block was written; check the teacher, or use precision=fp32"
_MOST_BLOCKS = 10**6  # files, whose list takes 200 MB of memory; 200 views of 437,513 images have 21,400
_HELD_UP = 0.1  # share of time spent waiting above which the teacher is not the bottleneck


def write_cache(
    writer: CacheWriter, loader: Loader, teacher: Teacher, views: int, batch: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Fill the cache's first `views` views and declare them complete; returns figures of this session, of all ranks."""
    meeting = Meeting()
    require_space(writer.folder, writer.size(views))
    missing = _shared_list(writer, views)
    cells = missing[accelerator.process_index :: accelerator.num_processes]
    by_key = np.argsort(loader.records.keys, kind="stable")  # row i of the index is the sample at by_key[i]
    keys = loader.records.keys[by_key]
    fingerprint, finite = Fingerprinter(), FiniteLogits()
    start, images = time.perf_counter(), 0
    logits: list[torch.Tensor] = []
    prints: list[torch.Tensor] = []
    batches, lead = loader.stream(_plan(writer, cells, by_key, batch)), Lead(accelerator.device)
    size = size_text(writer.size(views).bytes)
    with (
        _Publisher(writer, accelerator.device) as publisher,
        _CellProgress(cells, publisher, size, accelerator.is_main_process) as progress,
    ):
        try:
            for item in progress.watch(batches):
                # Nothing here waits for this batch: the device would then be idle until the next one is on its way.
                logits.append(teacher(item))
                finite.see(logits[-1], item.keys)
                prints.append(fingerprint.on_device(item.pixels))
                images += len(item.keys)
                lead.step()
                if launcher.gone():
                    raise Stopped(f"stopped by {LAUNCHER_GONE}; the blocks that were written are kept")
                cell = int(item.views[0]), int(np.searchsorted(keys, item.keys[0])) // BLOCK_ROWS
                if sum(map(len, logits)) == writer.block_size(cell[1]):
                    publisher.publish(
                        cell, torch.cat(logits), torch.cat(prints), partial(_require, finite, loader, cell)
                    )
                    logits, prints, finite = [], [], FiniteLogits()
                    progress.advance(cell)
            publisher.wait()
        finally:
            batches.close()
    seconds = time.perf_counter() - start
    meeting.wait()  # for hours, where some processes are slower by a few percent
    images = int(accelerator.reduce(torch.tensor(images, device=accelerator.device)))
    left = writer.missing(views)
    if left:
        raise UserError(f"{len(left)} blocks of {writer.folder} were not written; run the same command again")
    figures: dict[str, Any] = {"views": views, "images": images, "seconds": round(seconds, 2)}
    if images:
        figures["waiting_for_data"] = round(progress.waiting_for_data, 4)
    accuracy = None
    if accelerator.is_main_process:
        made = {"host": platform.node(), "time": time.time(), "argv": sys.argv, "torch": torch.__version__}
        accuracy = writer.finish(views, made | figures if images else None)
    meeting.wait()  # the first process has opened every block
    # Accuracy on the training views by plain argmax: far below the teacher's test accuracy means wrong pixels or classes.
    (figures["teacher_top1"],) = broadcast_object_list([accuracy])
    accelerator.wait_for_everyone()  # a rank that exits while another still receives would crash it
    return figures


def _shared_list(writer: CacheWriter, views: int) -> list[Cell]:
    """The missing cells, in an order that differs from that of other programs which write the same cache.

    Ranks share the list of rank 0: a rank that looks later may find blocks that another has already written, and would cut
    its share from a shorter list.
    """
    missing = writer.missing(views)
    random.SystemRandom().shuffle(missing)  # independent of any seed: equal orders would compute everything twice
    (missing,) = broadcast_object_list([missing])
    return missing


def require_space(folder: Path, size: CacheSize) -> None:
    """Refuse a cache that would not fit on the disk, before its folder exists and before any list of its blocks.

    folder: of the cache, finished, begun or not there yet.
    """
    what = f"data.views={size.views}: {size.samples} samples x {size.views} views x {size.kind.record_bytes} bytes"
    there = sum(path.stat().st_size for path in folder.glob("v*/b*.lc"))
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.isdir(place))
    needed, free = size.bytes - there, shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{what}: the cache needs {size_text(needed)} more, {folder} has {size_text(free)} free: choose another "
            "cache.dir, fewer data.views, or cache.codec=u8"
        )
    if size.blocks > _MOST_BLOCKS:
        raise UserError(
            f"{what} are {size.blocks:,} files, at most {_MOST_BLOCKS:,} are allowed: give fewer data.views"
        )


def _plan(writer: CacheWriter, cells: list[Cell], by_key: np.ndarray, batch: int) -> Iterator[Plan]:
    """The batches of each cell that no other writer has finished by the time its turn comes."""
    for view, block in cells:
        if writer.has((view, block)):
            continue
        positions = by_key[writer.block_rows(block)]
        for i in range(0, len(positions), batch):
            part = positions[i : i + batch]
            yield Plan(part, np.full(len(part), view, np.int32))


def _require(finite: FiniteLogits, loader: Loader, cell: Cell) -> None:
    finite.require(loader.records, f"the teacher (view {cell[0]})", _NOT_FINITE)


class _Publisher:
    """Encodes, certifies and writes a block in its own thread while the next one is computed; never more than one behind."""

    def __init__(self, writer: CacheWriter, device: torch.device):
        self._writer, self._beside = writer, SideStream(device, "blocks")
        self._pool = ThreadPoolExecutor(1, "writer", initializer=work_on, initargs=(device,))
        self._last: tuple[Future[Fingerprints], Future[int], int] | None = None
        self.waited = 0.0
        "seconds for which the teacher waited for a block to be written"
        self.rows, self.right = 0, 0
        "rows written, and how often the teacher was right"

    def __enter__(self) -> "_Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def publish(self, cell: Cell, logits: torch.Tensor, prints: torch.Tensor, check: Callable[[], None]) -> None:
        """Hand over a block, logits [n, C] and prints [n, 17] on the device; raises an error of the previous block.

        check: is called before the block is written, in the thread that waits for the device; it may refuse the block.
        """
        self.wait()
        computed = self._beside.now()

        def arrive() -> Fingerprints:
            with self._beside.after(computed):  # and not after the batches of the next block
                check()
                return on_host(prints)

        arrived = self._pool.submit(arrive)

        def write() -> int:
            with self._beside.after(computed):
                return self._writer.write(cell, logits, arrived.result())

        self._last = arrived, self._pool.submit(write), len(logits)

    def wait(self) -> None:
        """Return when the last block is on the disk; raises its error."""
        if self._last is None:
            return
        (arrived, written, rows), self._last = self._last, None
        arrived.result()  # up to here we waited for the teacher
        start = time.perf_counter()
        self.right += written.result()
        self.rows += rows
        self.waited += time.perf_counter() - start


class _CellProgress:
    """Progress of this process and what slows it down: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

    def __init__(self, cells: list[Cell], publisher: _Publisher, size: str, is_main: bool):
        self._place = {cell: place for place, cell in enumerate(cells, 1)}
        self._publisher = publisher
        self._size = size
        self._start = self._printed = time.perf_counter()
        self._waited, self._images = 0.0, 0
        self._bar = Bar(len(cells), Console(), before="caching", after="blocks") if is_main else None

    def __enter__(self) -> "_CellProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, timed; the first one, which includes start-up and compilation, does not count."""
        batches = iter(batches)
        for first in batches:
            yield first
            break
        self._start = asked = time.perf_counter()
        for item in batches:
            self._waited += time.perf_counter() - asked
            yield item
            self._images += len(item.keys)
            asked = time.perf_counter()

    @property
    def waiting_for_data(self) -> float:
        """Share of the time in which the teacher had no images."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)

    def advance(self, cell: Cell) -> None:
        """This cell and all before it in the list are computed, by this process or by another."""
        done = self._place[cell]
        if self._bar is None:
            return
        if self._bar.shown:
            self._bar.update(done, f"blocks {self._text(done)}")
        elif time.perf_counter() - self._printed > _PLAIN_SECONDS:
            self._printed = time.perf_counter()
            print(f"block {done}/{len(self._place)}, {self._text(done)}", flush=True)

    def _text(self, done: int) -> str:
        seconds = time.perf_counter() - self._start
        left = timedelta(seconds=round(seconds / done * (len(self._place) - done)))
        data, disk = self.waiting_for_data, self._publisher.waited / max(seconds, 1e-9)
        limit = "the teacher" if max(data, disk) < _HELD_UP else "data" if data >= disk else "writing"
        text = f"{self._images / max(seconds, 1e-9):,.0f} images/s, {left} left of {self._size}, waiting for data {data:.0%}"
        if self._publisher.rows:
            text += f", teacher top-1 {self._publisher.right / self._publisher.rows:.1%}"
        return f"{text}, limit: {limit}"
