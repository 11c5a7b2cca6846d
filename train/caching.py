"""Computing a logit cache: the teacher over every (block, view) that is not on disk yet.

A block is always computed in batches of cache.batch consecutive keys from its first key, by one process, so its bytes do not
depend on who writes it. Owns the loop and its progress; the format is pipelines/logits'.
"""

import platform
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.errors import UserError
from pipelines.loader import BatchPlan, Loader
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.fingerprint import Fingerprinter, Fingerprints
from pipelines.logits.writer import CacheWriter, Cell
from train.targets import Teacher

_PLAIN_SECONDS = 10.0


def _plan(writer: CacheWriter, cells: list[Cell], by_key: np.ndarray, batch: int) -> Iterator[BatchPlan]:
    """The batches of each cell that nobody else has finished by the time its turn comes."""
    for view, block in cells:
        if writer.has((view, block)):
            continue
        positions = by_key[writer.block_rows(block)]
        for i in range(0, len(positions), batch):
            part = positions[i : i + batch]
            yield part, np.full(len(part), view, np.int32)


def write_cache(
    writer: CacheWriter, loader: Loader, teacher: Teacher, views: int, batch: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Fill the cache's first `views` views and declare them complete; returns figures of this session, of all ranks."""
    # Ranks share the list of rank 0: one that looks later may find blocks that another has already written, and would cut
    # its share from a shorter list. Another program that writes the same cache at the same time does no harm.
    (missing,) = broadcast_object_list([writer.missing(views)])
    _require_space(writer, missing)
    cells = missing[accelerator.process_index :: accelerator.num_processes]
    by_key = np.argsort(loader.records.keys, kind="stable")  # row i of the index is the sample at the i-th of them
    keys = loader.records.keys[by_key]
    fingerprint = Fingerprinter()
    start, images, right = time.perf_counter(), 0, torch.zeros((), dtype=torch.int64, device=accelerator.device)
    logits: list[np.ndarray] = []
    prints: list[Fingerprints] = []
    batches = loader.stream(_plan(writer, cells, by_key, batch))
    with _CellProgress(len(cells), accelerator.is_main_process) as progress:
        try:
            for item in batches:
                output = teacher(item)
                right += (output.argmax(dim=1) == item.labels).sum()
                images += len(item.keys)
                logits.append(output.cpu().numpy())
                prints.append(fingerprint(item.pixels))
                block = int(np.searchsorted(keys, item.keys[0])) // BLOCK_ROWS
                if sum(map(len, logits)) == writer.block_size(block):
                    cell = (int(item.views[0]), block)
                    columns = [np.concatenate(column) for column in zip(*prints, strict=True)]
                    writer.write(cell, np.concatenate(logits), Fingerprints(*columns))
                    logits, prints = [], []
                    progress.advance(images / (time.perf_counter() - start))
        finally:
            batches.close()
    seconds = time.perf_counter() - start
    # The sum is also where ranks wait for each other.
    images, right = (int(total) for total in accelerator.reduce(torch.stack([right.new_tensor(images), right])))
    left = writer.missing(views)
    if left:
        raise UserError(f"{len(left)} blocks of {writer.folder} were not written; run the same command again")
    figures = {
        "views": views,
        "images": images,
        "seconds": round(seconds, 2),
        # On the training views, plain argmax: far below the teacher's test accuracy means wrong pixels or classes.
        "teacher_top1": right / images if images else None,
    }
    if accelerator.is_main_process:
        made = {"host": platform.node(), "time": time.time(), "argv": sys.argv, "torch": torch.__version__}
        writer.finish(views, made | figures if images else None)
    accelerator.wait_for_everyone()
    return figures


def _require_space(writer: CacheWriter, missing: list[Cell]) -> None:
    """Refuse before the first byte what would not fit."""
    needed = sum(writer.kind.block_bytes(writer.block_size(block)) for _, block in missing)
    free = shutil.disk_usage(writer.folder).free
    if needed > free:
        raise UserError(
            f"the cache needs {needed / 1e9:.1f} GB more, {writer.folder} has {free / 1e9:.1f} GB free: choose another "
            "cache.dir, fewer data.views, or cache.codec=u8"
        )


class _CellProgress:
    """A bar on a terminal, plain lines elsewhere, nothing on other ranks."""

    def __init__(self, total: int, is_main: bool):
        self._total, self._done, self._printed = total, 0, time.perf_counter()
        console = Console()
        self._bar = None
        self._main = is_main
        if is_main and console.is_terminal:
            columns = (
                TextColumn("caching"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("blocks {task.fields[speed]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=total, speed="")

    def __enter__(self) -> "_CellProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, images_per_s: float) -> None:
        """One block more."""
        self._done += 1
        if self._bar:
            self._bar.update(self._task, advance=1, speed=f"{images_per_s:,.0f} images/s")
        elif self._main and time.perf_counter() - self._printed > _PLAIN_SECONDS:
            self._printed = time.perf_counter()
            print(f"block {self._done}/{self._total}, {images_per_s:,.0f} images/s", flush=True)
