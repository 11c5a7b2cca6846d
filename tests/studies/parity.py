"""How far the backends' pixels differ: python tests/studies/parity.py FILE.beton [--device cuda] [--markdown FILE].

Makes the views of every training recipe of configs/, and of evaluation, at 224 pixels with every backend that can serve the
records. Keys, views and colours must be equal; pixels are compared by PSNR. The tolerances of test_loader.py come from here.
The evaluation view is compared with Pillow's resize and centre crop too.
"""

import argparse
import io
import itertools
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import PIL
import torch
from PIL import Image

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.backends import available_backends, pixel_source
from pipelines.batch import Batch
from pipelines.files import write_bytes_atomic
from pipelines.loader import Loader
from pipelines.logits.fingerprint import Fingerprinter
from pipelines.records.reader import Records

JITTER = [0.4, 0.4, 0.4]
RECIPES = {
    "imagenet_lt": Recipe(jitter=JITTER),
    "imagenet_lt, short side 256": Recipe(crop="resize_crop", jitter=JITTER),
    "inat18": Recipe(),
    "evaluation": Recipe().evaluation(),
}
VIEWS = 2


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR per picture, in dB; at most 100."""
    error = ((a.astype(np.float32) - b) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 * 1e-10))


def shown(
    records: Records, recipe: Recipe, backend: str, device: torch.device, batch: int = 64, hw_decoder_load: float = 0.0
) -> list[Batch]:
    """All records in VIEWS views each, in batches on the host."""
    finish = Finish([0.5] * 3, [0.25] * 3, device, channels_last=True)
    loader = Loader(
        records, recipe, seed=0, backend=backend, finish=finish, device=device, hw_decoder_load=hw_decoder_load
    )
    positions = np.tile(np.arange(len(records)), VIEWS)
    views = np.repeat(np.arange(VIEWS, dtype=np.int32), len(records))
    return [
        item._replace(images=item.images[:0], pixels=item.pixels.cpu())
        for item in loader.batches(positions, views, batch)
    ]


def same_views(a: list[Batch], b: list[Batch]) -> bool:
    """Whether two backends showed the same samples, views and colours in the same order."""

    def colours(item: Batch) -> list:
        return [part.tolist() for part in item.colours or ()]

    return all(
        np.array_equal(x.keys, y.keys) and np.array_equal(x.views, y.views) and colours(x) == colours(y)
        for x, y in zip(a, b, strict=True)
    )


def pixels(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([item.pixels.numpy() for item in batches])


def rows(records: Records, device: torch.device) -> Iterator[str]:
    """One line of a Markdown table for each recipe and pair of backends."""
    yield "| recipe | backends | worst dB | median dB | largest difference | thumbnails: mean, largest |"
    yield "|---|---|---|---|---|---|"
    for name, recipe in RECIPES.items():
        batches = {b: shown(records, recipe, b, device) for b in available_backends(records, recipe, device)}
        for a, b in itertools.combinations(batches, 2):
            if not same_views(batches[a], batches[b]):
                raise SystemExit(f"{name}: {a} and {b} showed different views")
            first, second = pixels(batches[a]), pixels(batches[b])
            decibels = psnr(first, second)
            thumbs = [Fingerprinter()(torch.from_numpy(side)).thumbs.astype(int) for side in (first, second)]
            apart = np.abs(thumbs[0] - thumbs[1])
            yield (
                f"| {name} | {pixel_source(a, records, device)}, {pixel_source(b, records, device)} "
                f"| {decibels.min():.2f} | {np.median(decibels):.2f} "
                f"| {np.abs(first.astype(np.int16) - second).max()} | {apart.mean(axis=1).max():.2f}, {apart.max()} |"
            )


def pillows(records: Records, recipe: Recipe) -> np.ndarray:
    """uint8 [N, S, S, 3]: each image resized as a whole and cropped in the middle by Pillow, as torchvision does."""
    out = []
    for position in range(len(records)):
        with Image.open(io.BytesIO(records.payload(position).tobytes())) as file:
            image = file.convert("RGB")
        short = recipe.resolved_short_side()
        width, height = (short * side // min(image.size) for side in image.size)
        left, top = (round((side - recipe.size) / 2.0) for side in (width, height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        out.append(np.asarray(image.crop((left, top, left + recipe.size, top + recipe.size))))
    return np.stack(out)


def against_pillow(records: Records, device: torch.device) -> Iterator[str]:
    """The evaluation view of each backend against Pillow's; the records hold whole files."""
    recipe = RECIPES["evaluation"]
    expected = pillows(records, recipe)
    yield "| evaluation against Pillow | worst dB | median dB | largest difference |"
    yield "|---|---|---|---|"
    for backend in available_backends(records, recipe, device):
        found = pixels(shown(records, recipe, backend, device))[: len(records)]
        decibels, apart = psnr(found, expected), np.abs(found.astype(np.int16) - expected).max()
        name = pixel_source(backend, records, device)
        yield f"| {name} | {decibels.min():.2f} | {np.median(decibels):.2f} | {apart} |"


def dali_replay(records: Records, device: torch.device) -> Iterator[str]:
    """Whether a view decoded by a GPU depends on the rest of its batch, or on which of the GPU's decoders took it."""
    recipe = RECIPES["inat18"]
    yield "| dali, hw_decoder_load | batch | equal to load 0, batch 64 | largest difference |"
    yield "|---|---|---|---|"
    expected = pixels(shown(records, recipe, "dali", device))
    for load, batch in itertools.product((0.0, 0.65, 1.0), (16, 20, 64)):
        found = pixels(shown(records, recipe, "dali", device, batch, load))
        same = (found == expected).all(axis=(1, 2, 3)).mean()
        yield f"| {load:g} | {batch} | {same:.1%} of the views | {np.abs(found.astype(np.int16) - expected).max()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    records = Records(options.file)
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}"
    lines = [
        f"{len(records)} images in {VIEWS} views each, at 224 pixels; device {options.device}; {versions}.",
        "Keys, views, flips and colours are equal on all of them.",
        "",
        *rows(records, options.device),
        "",
        *against_pillow(records, options.device),
    ]
    if "dali" in available_backends(records, Recipe(), options.device) and options.device.type == "cuda":
        lines += ["", *dali_replay(records, options.device)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        write_bytes_atomic(options.markdown, text.encode())


if __name__ == "__main__":
    main()
