"""What a logit cache costs: the writer against the bare teacher, a block's encoding, and reading per record.

    python tests/studies/cache_speed.py [--device cuda] [--rounds N] [--part write|encode|read] [--network NAME]

Prints Markdown tables. Images are on the device already and files in a temporary folder, so neither decoding nor a slow
disk is measured. Each figure is the median of its rounds, the two sides of a comparison are measured in turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from accelerate import Accelerator

from models import ModelSpec, build_model
from pipelines.batch import Batch, Plan
from pipelines.device import to_host
from pipelines.logits import CacheWriter, LogitCache
from pipelines.logits.blocks import BLOCK_ROWS, record_crcs
from pipelines.logits.codec import certificate, encode
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.identity import cache_identity
from pipelines.records.layout import ROW, rows_digest
from train.networks.weights import Pretrained
from train.objectives.caching import write_cache
from train.objectives.targets import Teacher

CLASSES = (100, 1000, 8142)
BATCHES = (128, 512)


class Rows:
    """Stands in for records: keys and class names, no images."""

    def __init__(self, count: int, classes: int):
        self.keys = np.sort(np.random.default_rng(0).choice(2**62, count, replace=False))
        self.class_names = [f"c{i}" for i in range(classes)]

    def rows(self) -> np.ndarray:
        rows = np.zeros(len(self.keys), ROW)
        rows["key"] = self.keys
        return rows

    def writer(self, folder: Path, teacher: dict[str, Any], codec: str = "u8", batch: int = 256) -> CacheWriter:
        view = {"dataset": {"digest": rows_digest(self.rows()), "class_names": self.class_names}}
        return CacheWriter(folder, "bench", cache_identity(view, teacher, codec, batch), self.rows())


class OnDevice:
    """Stands in for a loader whose images are on the device: the same crops under every key."""

    def __init__(self, records: Rows, size: int, batch: int, device: torch.device):
        self.records = records
        self._pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
        self._labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def stream(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        for plan in plans:
            positions = plan.positions
            pixels, labels = self._pixels[: len(positions)], self._labels[: len(positions)]
            yield Batch(pixels, labels, self.records.keys[positions], plan.views, pixels)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def micro(work: Callable[[int], object], rounds: int) -> float:
    """Median microseconds of work(i), after a first call that does not count."""
    work(0)
    taken = []
    for i in range(rounds):
        start = time.perf_counter()
        work(i)
        taken.append(1e6 * (time.perf_counter() - start))
    return statistics.median(taken)


def writing(
    device: torch.device, rounds: int, model: str, size: int, classes: int, precision: str, blocks: int
) -> None:
    """The writer against the teacher alone."""
    batch = 256
    records = Rows(blocks * BLOCK_ROWS, classes)
    network = build_model(model, classes)
    source = Pretrained(
        "", model, network, ModelSpec(model, classes), records.class_names, [0.5] * 3, [0.25] * 3, size, []
    )
    teacher = Teacher(source, records, size, device, precision, channels_last=True)  # type: ignore[arg-type]
    loader = OnDevice(records, size, batch, device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    plan = [Plan(np.arange(i, i + batch), np.zeros(batch, np.int32)) for i in range(0, len(records.keys), batch)]

    def bare() -> None:
        for item in loader.stream(plan):
            teacher(item)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = records.writer(Path(folder), teacher.identity, batch=batch)
            write_cache(writer, loader, teacher, 1, batch, accelerator)  # type: ignore[arg-type]

    alone, beside = [], []
    bare()
    write()  # run each once, to compile
    for number in range(rounds):
        # Each goes first in every second round, so that drift of the machine favours neither.
        for work, times in ((bare, alone), (write, beside))[:: 1 if number % 2 else -1]:
            times.append(seconds(work, device))
    images = len(records.keys)
    rate = [images / statistics.median(times) for times in (alone, beside)]
    cost = statistics.median(b / a for a, b in zip(alone, beside, strict=True)) - 1
    print(f"| {model}, {size} px, {classes} classes, {precision} | {rate[0]:,.0f} | {rate[1]:,.0f} | {cost:+.1%} |")


def encoding(device: torch.device, rounds: int) -> None:
    """Where the time of a block of 4096 rows goes, in the thread that writes while the teacher computes."""
    print("\n| classes | encode | certify | all of a block with its file |")
    print("|---|---|---|---|")
    for classes in CLASSES:
        times = _encoding(device, classes, rounds)
        print(f"| {classes} | " + " | ".join(f"{time_ / 1e3:,.0f} ms" for time_ in times) + " |")


def _some_block(classes: int) -> tuple[np.ndarray, Fingerprints]:
    logits = np.random.default_rng(0).normal(0, 3, (BLOCK_ROWS, classes)).astype(np.float32)
    return logits, Fingerprints(np.zeros(BLOCK_ROWS, np.uint32), np.zeros((BLOCK_ROWS, 16), np.uint8))


def _encoding(device: torch.device, classes: int, rounds: int) -> list[float]:
    block, prints = _some_block(classes)
    logits = torch.from_numpy(block).to(device)
    payload = encode(logits, "u8")
    with tempfile.TemporaryDirectory() as folder:
        writer = Rows(BLOCK_ROWS, classes).writer(Path(folder), {"weights": "ab"})
        return [
            micro(lambda i: to_host(encode(logits, "u8")), rounds),
            micro(lambda i: to_host(certificate(logits, payload, "u8")), rounds),
            micro(lambda i: writer.write((i, 0), logits, prints), rounds),
        ]


def reading(device: torch.device, rounds: int) -> None:
    """Microseconds per record: records of one view in random order, and each record from a different block."""
    print("\n| classes | batch | gather | of it CRC | gather, 64 blocks | decode | all, a batch |")
    print("|---|---|---|---|---|---|---|")
    for classes in CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            cache, records = _some_cache(Path(folder), classes)
            for batch in BATCHES:
                _read(cache, records, batch, device, rounds)
            took = _opening(cache.folder, records)
        print(f"| {classes} | opening a block: {took:.0f} us ||||||")


def _some_cache(folder: Path, classes: int, views: int = 16, blocks: int = 4) -> tuple[LogitCache, Rows]:
    records = Rows(blocks * BLOCK_ROWS, classes)
    writer = records.writer(folder, {"weights": "ab"})
    logits, prints = _some_block(classes)
    views = views if classes < 2000 else 4  # 33 MB each
    for cell in writer.missing(views):
        writer.write(cell, logits, prints)
    writer.finish(views, None)
    return LogitCache(writer.folder), records


def _read(cache: LogitCache, records: Rows, batch: int, device: torch.device, rounds: int) -> None:
    rng = np.random.default_rng(1)
    keys = [rng.choice(records.keys, batch) for _ in range(rounds)]
    zeros = np.zeros(batch, np.int64)
    mixed = [rng.integers(0, cache.views, batch) for _ in range(rounds)]
    found = cache.records(keys[0], zeros)

    def decoded(_: int) -> None:
        cache.decode(found, device)
        synchronise(device)

    def whole(i: int) -> None:
        cache.gather(keys[i], zeros, device)
        synchronise(device)

    times = [
        micro(lambda i: cache.records(keys[i], zeros), rounds),
        micro(lambda i: record_crcs(found, keys[i], 0), rounds),
        micro(lambda i: cache.records(keys[i], mixed[i]), rounds),
        micro(decoded, rounds),
    ]
    total = micro(whole, rounds)
    cells = " | ".join(f"{time_ / batch:.2f} us" for time_ in times)
    print(f"| {cache.classes} | {batch} | {cells} | {total / 1e3:.2f} ms |")


def _opening(folder: Path, records: Rows) -> float:
    cache = LogitCache(folder)
    start = time.perf_counter()
    for block in range(len(records.keys) // BLOCK_ROWS):
        cache.records(records.keys[block * BLOCK_ROWS :][:1], np.ones(1, int))
    return 1e6 * (time.perf_counter() - start) / (len(records.keys) // BLOCK_ROWS)


def step(device: torch.device, rounds: int, model: str, size: int, classes: int, batch: int) -> None:
    """The time of a student's training step, for comparison with reading."""
    network = build_model(model, classes).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.softmax(torch.randn(batch, classes, device=device), dim=1)

    def once(_: int) -> None:
        loss = torch.nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(device)

    print(f"\na training step of {model}, {size} px, batch {batch}: {micro(once, rounds) / 1e3:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("write", "encode", "read"))
    parser.add_argument("--network", default="resnet32", help="the teacher of 32 px")
    options = parser.parse_args()
    device, rounds = options.device, options.rounds
    if options.part in (None, "write"):
        print("| teacher | alone, images/s | writing, images/s | cost |\n|---|---|---|---|")
        writing(device, rounds, options.network, 32, 100, "fp32", blocks=2)
        if device.type == "cuda":
            writing(device, rounds, options.network, 32, 100, "bf16", blocks=8)
            writing(device, rounds, "resnext50_32x4d", 224, 1000, "bf16", blocks=4)
            writing(device, rounds, "resnet50", 224, 8142, "bf16", blocks=4)
    if options.part in (None, "encode"):
        encoding(device, rounds)
    if options.part in (None, "read"):
        reading(device, 40 * rounds)
        step(device, 2 * rounds, "resnet32", 32, 100, 128)


if __name__ == "__main__":
    main()
