"""What strong augmentation costs, and how it compares with Pillow: python tests/studies/augmentation.py [--markdown FILE].

Costs: processor seconds of one thread for a batch of 128 views of 32 pixels, draws included, beside a training step of ResNet-32
on the same batch, in turns within one process; the best of several rounds counts, as the others were disturbed. The loader is
measured too, which decodes the partners of mixtures beside the views. Parity: every
operation with all magnitudes of the four policies on noise, ramps and degenerate images, against the same operation of Pillow.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import PIL
import torch
from helpers.boxes import whole_boxes
from helpers.pillow_operations import PILLOW, by_pillow, pictures
from torch.nn import functional as F

from models.registry import build_model
from pipelines.augment import mix, operations, policy, rotation
from pipelines.augment.finish import Finish, altered
from pipelines.augment.recipe import POLICIES, Recipe, view_params
from pipelines.augment.transforms import TRANSFORMS
from pipelines.batch import Colours, Draws, Holes, Mix, Operations, Plan
from pipelines.files import write_bytes_atomic
from pipelines.loader import Loader
from pipelines.order import with_partners
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.networks.layout import channels_last
from train.optim import OptimConfig, build_optimizer

BATCH, SIZE, CLASSES = 128, 32, 100
REPEATS = 10  # of an augmentation in one measurement, for the clock
CPU = torch.device("cpu")
BOXES = whole_boxes(np.zeros((BATCH, 4), np.int32))
LATER = [name for name in TRANSFORMS if name != "boxes"]  # what follows crop and flip
RECIPES: dict[str, dict[str, Any]] = {
    "crop and flip alone": {},
    "rotation 15": {"rotation": 15.0},
    **{name: {"policy": name} for name in POLICIES if name},
    "cutout 16": {"cutout": 16},
    "erasing 0.5": {"erasing": 0.5},
    "autoaugment_cifar10, cutout 16": {"policy": "autoaugment_cifar10", "cutout": 16},
    "grayscale 0.2": {"grayscale": 0.2},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "autoaugment_cifar10, cutout 16, mixup": {"policy": "autoaugment_cifar10", "cutout": 16, "mix": "mixup"},
    "jitter 0.4, rotation 15, randaugment, grayscale 0.2, cutout 16": {
        **{"jitter": [0.4] * 3, "rotation": 15.0, "policy": "randaugment", "grayscale": 0.2, "cutout": 16}
    },
}
LOADED = {  # by the whole loader
    "crop and flip, with the loader": {},
    "mixup, with the loader": {"mix": "mixup"},
}


def _keys() -> Any:
    """As much of records as the draws of these transforms need."""
    return SimpleNamespace(keys=np.random.default_rng(0).integers(0, 2**63, BATCH))


def many_pictures() -> np.ndarray:
    """uint8 [200, S, S, 3]: the test pictures, and the same with noise."""
    rng, images = np.random.default_rng(1), pictures(SIZE)
    noise = rng.integers(-30, 31, (20, *images.shape)) * (np.arange(20) > 0)[:, None, None, None, None]
    return np.clip(images + noise, 0, 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 3)


def augmentation(settings: dict[str, Any]) -> Callable[[], None]:
    """A function that draws and finishes the next views of a batch of crops."""
    recipe = Recipe(crop="pad_crop", size=SIZE, **settings)
    params, records = view_params(recipe, 0), _keys()
    finish = Finish([0.5] * 3, [0.25] * 3, CPU, channels_last=True)
    crops = torch.from_numpy(many_pictures()[:BATCH])
    view = 0

    def finished(pixels: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Draws]:
        draws = Draws(boxes=BOXES, **{name: TRANSFORMS[name].draw(params, records, plan) for name in LATER})
        changed = altered(pixels, draws)
        colours = draws.colours and Colours(*map(torch.from_numpy, draws.colours))
        holes = draws.holes and Holes(torch.from_numpy(draws.holes[0]), draws.holes[1])
        return finish(pixels if changed is None else changed, colours, holes), draws

    def once() -> None:
        nonlocal view
        view += 1
        plan = Plan(np.arange(BATCH), np.full(BATCH, view, np.int32))
        if recipe.mix is None:
            finished(crops, plan)
            return
        (plan,) = with_partners([plan], records.keys, 0)
        images, draws = finished(crops, plan)
        partners, _ = finished(crops, Plan(plan.partners, plan.partner_views))
        assert draws.mix is not None
        ratios, boxes = draws.mix
        mix.apply(images, partners, Mix(torch.from_numpy(ratios), None if boxes is None else torch.from_numpy(boxes)))

    return once


def loading(folder: Path, settings: dict[str, Any]) -> Callable[[], None]:
    """A function that loads REPEATS batches of raw records, with everything that the loader does."""
    path = folder / "records.beton"
    if not path.exists():
        samples = [Sample(f"{i}", 0, image) for i, image in enumerate(np.tile(many_pictures(), (5, 1, 1, 1)))]
        write_records(path, samples, ["a"], kind="study")
    recipe = Recipe(crop="pad_crop", size=SIZE, **settings)
    finish = Finish([0.5] * 3, [0.25] * 3, CPU, channels_last=True)
    loader = Loader(Records(path), recipe, seed=0, backend="ffcv", finish=finish, device=CPU, workers=1)

    def some() -> None:
        plan = Plan(np.arange(BATCH), np.zeros(BATCH, np.int32))
        for _ in loader.stream([plan] * REPEATS):
            pass

    return some


def training_step() -> Callable[[], None]:
    """A function that trains ResNet-32 on one batch of images."""
    torch.manual_seed(0)
    network = channels_last(build_model("resnet32", CLASSES)).train()
    optimizer = build_optimizer(network, OptimConfig(batch=BATCH, lr=1e-4, nesterov=True))
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH,))

    def once() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def costs(rounds: int) -> dict[str, float]:
    """Processor seconds: of the training step as "step", and of each recipe."""
    work = {"step": (training_step(), 1, 1)}
    work |= {name: (augmentation(given), REPEATS, 1) for name, given in RECIPES.items()}
    best = dict.fromkeys([*work, *LOADED], float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        work |= {name: (loading(Path(folder), given), 1, REPEATS) for name, given in LOADED.items()}
        for turn in range(rounds + 1):
            for name, (once, repeats, batches) in work.items():
                start = time.process_time()
                for _ in range(repeats):
                    once()
                if turn:  # the first round compiles
                    best[name] = min(best[name], (time.process_time() - start) / (repeats * batches))
    return best


NAMES = {
    code: name for name, code in vars(operations).items() if name.isupper() and isinstance(code, int) and name != "FILL"
}


def values_of(code: int) -> list[float]:
    """All values that an operation has in a policy, at 32 pixels."""
    found = {
        float(policy._value(code, magnitude, magnitudes, wide, negative, SIZE))
        for magnitudes, wide in ((10, False), (31, False), (31, True))
        for magnitude in range(magnitudes)
        for negative in (False, True)
    }
    return sorted(found)


def compared(found: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """(largest difference in levels, share of the pixels that differ)"""
    apart = np.abs(found.astype(int) - expected)
    return int(apart.max()), float(apart.any(axis=-1).mean())


def parity() -> dict[str, tuple[int, int, float]]:
    """{operation or policy: number of images, largest difference, share of differing pixels}"""
    out, images = {}, many_pictures()
    for code in PILLOW:
        values = values_of(code)
        batch = np.concatenate([images] * len(values))
        drawn = np.repeat(values, len(images))
        found = operations.apply(torch.from_numpy(batch), np.full(len(batch), code), drawn).numpy()
        expected = np.stack([by_pillow(image, code, value) for image, value in zip(batch, drawn, strict=True)])
        out[NAMES[code]] = (len(batch), *compared(found, expected))
    batch = np.concatenate([images] * 10)
    keys, views = np.arange(len(batch)), np.zeros(len(batch), np.int32)
    for name in POLICIES:
        if name is None:
            continue
        drawn = Operations(*policy.operations_of(view_params(Recipe(size=SIZE, policy=name), 0), keys, views))
        found = policy.apply(torch.from_numpy(batch), drawn).numpy()
        expected = []
        for image, codes, values in zip(batch, drawn.codes.tolist(), drawn.values.tolist(), strict=True):
            for code, value in zip(codes, values, strict=True):
                image = by_pillow(image, code, value)
            expected.append(image)
        out[name] = (len(batch), *compared(found, np.stack(expected)))
    angles = rotation.angles(view_params(Recipe(size=SIZE, rotation=15), 0), keys, views)
    turned = [
        np.asarray(PIL.Image.fromarray(image).rotate(angle, PIL.Image.Resampling.NEAREST, fillcolor=(0, 0, 0)))
        for image, angle in zip(batch, angles.tolist(), strict=True)
    ]
    out["rotation 15"] = (
        len(batch),
        *compared(rotation.apply(torch.from_numpy(batch), angles).numpy(), np.stack(turned)),
    )
    return out


def page(cost: dict[str, float], apart: dict[str, tuple[int, int, float]]) -> str:
    """The tables as Markdown."""
    step = cost.pop("step")
    lines = [
        "# Strong augmentation: cost, and parity with Pillow",
        "",
        f"`python tests/studies/augmentation.py`, {platform.machine()}, torch {torch.__version__}, Pillow {PIL.__version__}, "
        "one thread.",
        "",
        f"Processor time for a batch of {BATCH} views of {SIZE} pixels, draws and normalisation included, and its share of a "
        f"training\nstep of ResNet-32 ({step * 1e3:.0f} ms). The rows with the loader add the reading and cropping of "
        "raw records\n(backend ffcv), of mixtures twice:",
        "",
        "| recipe | ms | share of the step |",
        "|---|---:|---:|",
        *(f"| {name} | {seconds * 1e3:.1f} | {seconds / step:.1%} |" for name, seconds in cost.items()),
        "",
        "Against the same operations of Pillow on 8-bit images; an operation has all magnitudes of the four policies:",
        "",
        "| operation, policy | images | largest difference, levels | share of differing pixels |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {count} | {most} | {share:.2%} |" for name, (count, most, share) in apart.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page(costs(options.rounds), parity())
    print(text)
    if options.markdown:
        write_bytes_atomic(options.markdown, text.encode())


if __name__ == "__main__":
    main()
