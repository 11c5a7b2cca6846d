"""What restart markers change: python tests/studies/restarts.py --images FOLDER, a folder of JPEG files.

The files are converted with restart markers and without, as they are and at a short side of 256. For each recipe and 8 views of
each image it compares the pixels on every backend, counts the pages of 4096 bytes that a view touches of its record, and measures
the processor time of the ffcv backend, both stores in turns. Fails where a pixel differs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch

from pipelines.augment.recipe import Recipe, ViewParams, view_params
from pipelines.augment.transforms import draw
from pipelines.backends.choice import available_backends, make_backend
from pipelines.backends.contract import Drawn
from pipelines.batch import Plan
from pipelines.records.encoding import Encoding
from pipelines.records.reader import Records
from pipelines.records.restarts import _walk, cut
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

VIEWS, BATCH, PAGE = 8, 64, 4096
CPU = torch.device("cpu")


def converted(images: list[Path], short_side: int | None, folder: Path) -> tuple[Records, Records]:
    """The images with restart markers, and without."""
    samples = [Sample(path.name, 0, path) for path in images]
    opened = []
    for restarts in (True, False):
        out = folder / f"{short_side}-{restarts}.beton"
        write_records(out, samples, ["any"], kind="study", encoding=Encoding(short_side, restarts=restarts))
        opened.append(Records(out))
    return opened[0], opened[1]


def batches(records: Records, params: ViewParams) -> Iterator[Drawn]:
    for view in range(VIEWS):
        for start in range(0, len(records), BATCH):
            positions = np.arange(start, min(start + BATCH, len(records)))
            plan = Plan(positions, np.full(len(positions), view, np.int32))
            yield plan, draw(params, records, plan)


def differing(backend: str, stores: tuple[Records, Records], params: ViewParams) -> int:
    """Views of which a pixel differs."""
    streams = [
        make_backend(backend, records, params, 2, "first", CPU, 0).crops(batches(records, params)) for records in stores
    ]
    pairs = zip(*streams, strict=True)
    return sum(int((ours != others).flatten(1).any(1).sum()) for (ours, *_), (others, *_) in pairs)


def pages(records: Records, position: int, window: np.ndarray) -> int:
    """Pages of the file that hold the bytes decoded for a window: header and segments, or the whole record."""
    data, start = records.payload(position), int(records.offsets[position])
    width, height = int(records.stored_widths[position]), int(records.stored_heights[position])
    x, y, w, h = window.tolist()
    found, _ = cut(data, width, height, window)
    if found is data:
        return (start + data.size - 1) // PAGE - start // PAGE + 1
    first, entries, frame, interval, scan = _walk(data)
    sizes = data[first : first + 2 * entries].view(">u2").astype(int) + 2
    ends = scan + np.cumsum(sizes)
    factors = data[frame + 11 :: 3][: data[frame + 9]] if data[frame + 9] > 1 else np.array([0x11], np.uint8)
    across, down = 8 * int((factors >> 4).max()) * interval, 8 * int((factors & 15).max())
    columns = -(-width // across)
    touched = set(range(start // PAGE, (start + scan - 1) // PAGE + 1))
    for row in range(y // down, -(-(y + h) // down)):
        left, right = row * columns + x // across, row * columns + -(-(x + w) // across) - 1
        touched |= set(range((start + ends[left] - sizes[left]) // PAGE, (start + ends[right] - 1) // PAGE + 1))
    return len(touched)


def pages_per_view(records: Records, params: ViewParams) -> float:
    views = [
        (k, window)
        for plan, draws in batches(records, params)
        for k, window in zip(plan.positions, draws.boxes.windows, strict=True)
    ]
    return float(np.mean([pages(records, int(k), window) for k, window in views]))


def speed(stores: tuple[Records, Records], params: ViewParams, rounds: int = 5) -> float:
    """Processor time without restart markers / with them: median of the rounds."""
    from pipelines.backends.ffcv import FFCVBackend

    backends, ratios = [FFCVBackend(records, 1, "off") for records in stores], []
    out = np.empty((BATCH, params.size, params.size, 3), np.uint8)
    for _ in range(rounds + 1):  # the first one warms up
        spent = [0.0, 0.0]
        for plan, draws in batches(stores[0], params):
            for i, backend in enumerate(backends):
                start = time.process_time()
                backend.load(plan.positions, draws.boxes, out[: len(plan.positions)])
                spent[i] += time.process_time() - start
        ratios.append(spent[1] / spent[0])
    return float(np.median(ratios[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    images = sorted(path for path in parser.parse_args().images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    wrong = 0
    print("| stored | recipe | views that differ | pages of a view, before | after | speed of ffcv |")
    print("|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for short_side in (None, 256):
            stores = converted(images, short_side, Path(folder))
            for crop in ("random_resized_crop", "resize_crop", "center"):
                recipe = Recipe(crop=crop, flip=crop != "center")
                params = view_params(recipe, 0)
                backends = available_backends(stores[0], recipe, CPU)
                found = {backend: differing(backend, stores, params) for backend in backends}
                wrong += sum(found.values())
                after, before = (pages_per_view(records, params) for records in stores)
                ratio = f"{speed(stores, params):.2f}" if "ffcv" in backends else "-"
                words = ", ".join(f"{backend} {count}" for backend, count in found.items())
                print(
                    f"| {short_side or 'whole'} | {crop} | {words} | {before:.1f} | {after:.1f} | {ratio} |", flush=True
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
