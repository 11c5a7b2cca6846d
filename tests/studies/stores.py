"""What smaller copies of images cost and gain: python tests/studies/stores.py --images FOLDER, a folder of JPEG files.

The files are converted as they are and smaller, with restart markers. For each recipe it compares the pixels of 224 x 224 views
with those from whole files, and the evaluation view with Pillow's resize and centre crop of the originals; and it measures the
processor time of the ffcv backend, all stores in turns. docs/storage.md has its table.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
from studies.parity import pillows, psnr
from studies.restarts import BATCH, CPU, batches

from pipelines.augment.recipe import Recipe, ViewParams, view_params
from pipelines.backends.choice import make_backend
from pipelines.backends.ffcv import FFCVBackend
from pipelines.records.encoding import Encoding
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

STORES = {
    "files as they are": Encoding(),
    "`--max-side 500`": Encoding(max_side=500),
    "`--short-side 400`": Encoding(short_side=400),
    "`--short-side 320`": Encoding(short_side=320),
    "`--short-side 256`": Encoding(short_side=256),
    "the same, `--quality 90`": Encoding(short_side=256, quality=90),
}
RECIPES = {crop: Recipe(crop=crop, flip=crop != "center") for crop in ("random_resized_crop", "resize_crop", "center")}
VIEWS, ROUNDS = 3, 5


def converted(images: list[Path], folder: Path) -> list[Records]:
    samples = [Sample(path.name, 0, path) for path in images]
    for i, encoding in enumerate(STORES.values()):
        write_records(folder / f"{i}.beton", samples, ["any"], kind="study", encoding=encoding)
    return [Records(folder / f"{i}.beton") for i in range(len(STORES))]


def shown(records: Records, recipe: Recipe) -> np.ndarray:
    """uint8 [views, N, S, S, 3]; one view for `center`."""
    params, views = view_params(recipe, 0), 1 if recipe.crop == "center" else VIEWS
    crops = make_backend("ffcv", records, params, 2, "off", CPU, 0).crops(batches(records, params))
    count = views * -(-len(records) // BATCH)
    pixels = np.concatenate([pixels.numpy() for (pixels, *_), _ in zip(crops, range(count), strict=False)])
    return pixels.reshape(views, len(records), *pixels.shape[1:])


def seconds(stores: list[Records], params: ViewParams) -> np.ndarray:
    """Processor time [stores] of VIEWS views of every image: the median of ROUNDS rounds in turns."""
    out = np.empty((BATCH, params.size, params.size, 3), np.uint8)
    drawn = [list(batches(records, params))[: VIEWS * -(-len(records) // BATCH)] for records in stores]
    backends = [FFCVBackend(records, 1, "off") for records in stores]
    spent = np.zeros((ROUNDS + 1, len(stores)))  # the first one warms up
    for r in range(len(spent)):
        for i, backend in enumerate(backends):
            for plan, draws in drawn[i]:
                start = time.process_time()
                backend.load(plan.positions, draws.boxes, out[: len(plan.positions)])
                spent[r, i] += time.process_time() - start
    return np.median(spent[1:], axis=0)


def decibels(a: np.ndarray, b: np.ndarray) -> str:
    """Median / worst PSNR of pictures [..., S, S, 3]."""
    found = psnr(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
    return f"{np.median(found):.1f} / {found.min():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    images = sorted(path for path in parser.parse_args().images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    names = " / ".join(RECIPES)
    print(f"| stored | kB per image | kept | speed: {names} | {' | '.join(RECIPES)} | center against Pillow |")
    print("|---|" + "---|" * (len(RECIPES) + 4))
    with tempfile.TemporaryDirectory() as folder:
        stores = converted(images, Path(folder))
        expected = pillows(stores[0], RECIPES["center"])
        spent = [seconds(stores, view_params(recipe, 0)) for recipe in RECIPES.values()]
        whole = {crop: shown(stores[0], recipe) for crop, recipe in RECIPES.items()}
        for i, (name, records) in enumerate(zip(STORES, stores, strict=True)):
            same = np.array(
                [records.payload(k).tobytes() == stores[0].payload(k).tobytes() for k in range(len(records))]
            )
            views = {crop: shown(records, recipe) for crop, recipe in RECIPES.items()}
            apart = [decibels(views[crop][:, ~same], whole[crop][:, ~same]) if i else "" for crop in RECIPES]
            speed = " / ".join(f"{times[0] / times[i]:.1f}" for times in spent)
            size = records.sizes.sum() / len(records) / 1000
            against = decibels(views["center"][0], expected)
            print(
                f"| {name} | {size:.1f} | {same.mean():.0%} | {speed} | {' | '.join(apart)} | {against} |", flush=True
            )


if __name__ == "__main__":
    main()
