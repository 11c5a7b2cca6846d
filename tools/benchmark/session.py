"""One session of tools/bench.py: rows made ready, measured in turns, and put into a report.

Invariant: nothing is measured before everything that is to be measured is ready.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from pipelines.loader import default_workers
from pipelines.records.reader import Records
from tools.benchmark.baselines import Baseline, Job, Unavailable
from tools.benchmark.items import Ours, Row
from tools.benchmark.report import Report, facts, limits, ratios
from train.config import Config
from train.data import views_of

SECTIONS = "abcdef"
COMPARISONS = {
    "pil": "torch DataLoader, PIL",
    "pil_whole": "torch DataLoader, PIL, whole recipe",
    "ffcv": "stock FFCV Loader",
}


def draw_pool(records: Records, images: int) -> np.ndarray:
    """int64 positions of one pass: all records again and again up to at least `images`, or so many drawn from more."""
    if len(records) >= images:
        return np.sort(np.random.default_rng(0).permutation(len(records))[:images]).astype(np.int64)
    return np.tile(np.arange(len(records), dtype=np.int64), -(-images // len(records)))


def start_baselines(stack: ExitStack, job: Job) -> dict[str, Baseline]:
    """Both processes, starting up side by side with what follows here."""
    found = {}
    for kind in COMPARISONS:
        folder = job.folder / kind
        folder.mkdir()
        found[kind] = Baseline(kind, job._replace(folder=folder))
        stack.callback(found[kind].close)
    return found


def baseline_rows(baselines: dict[str, Baseline], images: int) -> Iterator[Row]:
    """(f), when each is warm."""
    for kind, baseline in baselines.items():
        row = Row(f"f.{kind}", COMPARISONS[kind], source=baseline, images=images)
        try:
            row.note = baseline.ready()
        except Unavailable as reason:
            row.give_up(str(reason))
        yield row


def prepare(ours: Ours, only: str, baselines: dict[str, Baseline], images: int) -> list[Row]:
    """All rows asked for, each ready to be measured."""
    rows: list[Row] = []
    makers: dict[str, Any] = {
        "a": ours.loaders,
        "b": ours.device_alone,
        "c": lambda: [ours.training()],
        "d": lambda: [ours.cached()],
        "e": lambda: [ours.online()],
        "f": lambda: baseline_rows(baselines, images),
    }
    for letter in SECTIONS:
        if letter in only:
            say(f"preparing ({letter})")
            rows += makers[letter]()
    return rows


def measure(rows: Iterable[Row], rounds: int, seconds: float) -> None:
    """Each row `rounds` times, in turns, so that a slow spell of the machine does not fall on one row alone."""
    for number in range(rounds):
        for row in rows:
            if row.source is None:
                continue
            try:
                row.timings.append(row.source.measure(seconds, row.images))
            except Unavailable as reason:
                row.give_up(str(reason))
            else:
                say(f"round {number + 1}/{rounds}: {row.id} {row.timings[-1].images_per_s:,.0f} images/s")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(
    config: Config, accelerator: Accelerator, only: str, images: int, rounds: int, seconds: float, dry: bool
) -> Report:
    """The report of the rows `only` (letters of SECTIONS); dry: of none, after everything was checked."""
    records = Records(str(config.data.train))
    pool = draw_pool(records, images)
    for position in np.unique(pool):
        records.verify(position)  # and with it comes into the page cache
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        ours = Ours(config, records, pool, accelerator, folder)
        about = facts(config, accelerator, records, pool, ours.backend)
        for line in ours.notes:
            say(line)
        if dry:
            return Report(about, [], [], None)
        baselines = {}
        if "f" in only:
            job = Job(
                records=records.path,
                pool=pool,
                recipe=config.data.recipe,
                data_seed=config.data.seed,
                views=views_of(config, len(records)),
                batch=config.optim.batch,
                workers=config.data.workers or default_workers(),
                device=accelerator.device,
                folder=folder,
            )
            baselines = start_baselines(stack, job)
        rows = prepare(ours, only, baselines, len(pool))
        measure(rows, rounds, seconds)
    return Report(about, rows, ratios(rows), limits(rows, ours.backend, accelerator.device.type == "cpu"))
