"""Start-up at the size of iNaturalist 2018: python tests/drills/startup.py [--samples N] [--backends ...] [--folder DIR].

Writes a record file of tiny images with a long tail, then starts up on it as training does, in fresh processes: once without
compiled code on disk, once with it. Time and memory of a start depend on the number of samples, not on their pixels; those
of the first batches are shown apart. Fails when a start exceeds the goals below.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.loader import Loader
from pipelines.order import Sampling, TrainOrder
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

SAMPLES, CLASSES = 437_513, 8142
IMBALANCE = 500  # largest class to smallest, as in iNaturalist 2018
BATCH, SIZE = 256, 224
BACKENDS = ("reference", "ffcv")  # they take raw pixels of any size, which are the fastest to generate
GOAL_SECONDS, GOAL_MB = 3.0, 300.0  # on top of the libraries: without compilation, without the batches themselves


class Stage(NamedTuple):
    """One step of a start. peak: most memory so far, in MB, beyond what the process held after its imports."""

    name: str
    seconds: float
    peak: float


def class_counts(samples: int, classes: int) -> np.ndarray:
    """int64[classes]: an exponential profile; at least 1 each, exactly `samples` in all."""
    share = np.cumsum(float(IMBALANCE) ** -np.linspace(0, 1, classes))
    ends = np.floor((samples - classes) * share / share[-1] + 0.5).astype(np.int64)
    return 1 + np.diff(ends, prepend=0)


def write_long_tail(path: Path, samples: int, classes: int) -> None:
    """Records of `samples` images of 2x2 raw pixels, under names as long as iNaturalist's."""
    labels = np.repeat(np.arange(classes), class_counts(samples, classes))
    pixels = np.zeros((2, 2, 3), np.uint8)
    listed = [Sample(f"train_val2018/Plantae/{c}/{i:032x}.jpg", c, pixels) for i, c in enumerate(labels.tolist())]
    write_records(path, listed, [f"Plantae/{c}" for c in range(classes)], kind="generated")


def start(path: Path, backend: str, batch: int, size: int) -> Iterator[str]:
    """Start up the data of a training and keep all of it; yields the name of each step when it is done."""
    records = Records(path)
    yield "records"
    device = torch.device("cpu")
    finish = Finish([0.466, 0.471, 0.380], [0.195, 0.194, 0.192], device, channels_last=True)
    loader = Loader(records, Recipe(size=size), seed=0, backend=backend, finish=finish, device=device)
    yield "loader"
    orders = [
        TrainOrder(records.keys, seed=0, batch=batch, views=90, labels=records.labels, sampling=sampling)
        for sampling in get_args(Sampling)
    ]
    for order in orders:
        order.epoch(0)
        yield f"epoch, {order.sampling}"
    batches = loader.stream(orders[-1].plan(0, orders[-1].steps_per_epoch))
    try:
        next(batches)
        yield "first batch"
    finally:
        batches.close()


def _memory(field: str) -> float:
    """Memory of this process in MB: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure(path: Path, backend: str, batch: int, size: int) -> list[Stage]:
    """Measure the stages of `start` in this process, after its imports."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    base = _memory("VmRSS")
    stages = []
    before = time.perf_counter()
    for name in start(path, backend, batch, size):
        now = time.perf_counter()
        stages.append(Stage(name, now - before, _memory("VmHWM") - base))
        before = time.perf_counter()
    return stages


def measure_fresh(path: Path, backend: str, batch: int, size: int, code: Path | None = None) -> list[Stage]:
    """`measure` in a separate process, with its compiled code in the folder `code` (None: the usual place)."""
    command = [sys.executable, __file__, "--measure", *map(str, (path, backend, batch, size))]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"NUMBA_CACHE_DIR": str(code)} if code else {})
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return [Stage(*stage) for stage in json.loads(done.stdout)]


def startup(folder: Path, samples: int = SAMPLES, backends: Sequence[str] = BACKENDS) -> None:
    """Print what a start on `samples` generated records takes, and fail if that exceeds the goals."""
    path = folder / f"long_tail_{samples}.beton"
    if not path.exists():
        write_long_tail(path, samples, CLASSES)
    for backend in backends:
        with tempfile.TemporaryDirectory(dir=folder) as code:
            cold, warm = (measure_fresh(path, backend, BATCH, SIZE, Path(code)) for _ in range(2))
        print(f"{backend}, {samples} samples of {CLASSES} classes; peak memory on top of the libraries")
        for slow, stage in zip(cold, warm, strict=True):
            print(f"  {stage.name:22} {stage.seconds:6.2f} s (first time {slow.seconds:5.2f} s)  {stage.peak:4.0f} MB")
        seconds, first = (sum(stage.seconds for stage in stages) for stages in (warm, cold))
        peak = warm[-2].peak
        print(
            f"  in all {seconds:.2f} s, goal {GOAL_SECONDS:g} s; {first - seconds:.2f} s more where nothing is compiled yet\n"
            f"  {peak:.0f} MB before the first batch, goal {GOAL_MB:g} MB; a batch of {BATCH} images of {SIZE} pixels is "
            f"{BATCH * SIZE**2 * 3 / 1e6:.0f} MB, and four times that as float",
            flush=True,
        )
        if seconds > GOAL_SECONDS or peak > GOAL_MB:
            raise SystemExit(f"start-up with {backend} takes {seconds:.2f} s and {peak:.0f} MB: over the goals")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--folder", type=Path, default=None, help="keep the generated records here")
    parser.add_argument("--measure", nargs=4, metavar=("RECORDS", "BACKEND", "BATCH", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        path, backend, batch, size = options.measure
        importlib.import_module(f"pipelines.backends.{backend}")  # imports its libraries, too, which do not count
        print(json.dumps(measure(Path(path), backend, int(batch), int(size))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        startup(folder, options.samples, options.backends)


if __name__ == "__main__":
    main()
