"""configs/finetune_small.yaml on what it is made for: a dozen classes of 5 to 40 images, from a folder to a trained network.

The images are drawn, and the weights that it starts from were trained on drawings of other classes; network and images are small,
so that it takes seconds.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.launch import ROOT, run
from helpers.recipes import run_here
from PIL import Image, ImageDraw

CONFIG = ROOT / "configs/finetune_small.yaml"
COUNTS = [40, 35, 30, 26, 22, 18, 15, 12, 10, 8, 6, 5]
SMALL = ("model.name=resnet10", "data.recipe.size=32", "eval.batch=64")


def drawing(label: int, rng: np.random.Generator) -> Image.Image:
    """One of 24 classes: a shape, its colour and that of the ground; place, size and noise differ from image to image."""
    shape, colours = (
        label % 3,
        [(label // 3 * 83 + 40) % 256, (label // 3 * 151 + 90) % 256, (label // 3 * 47 + 10) % 256],
    )
    ground = np.clip(255 - np.array(colours) + rng.normal(0, 18, (48, 56, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    size, left, top = int(rng.integers(18, 30)), int(rng.integers(2, 24)), int(rng.integers(2, 16))
    box, draw = (left, top, left + size, top + size), ImageDraw.Draw(image)
    if shape == 0:
        draw.ellipse(box, fill=tuple(colours))
    elif shape == 1:
        draw.rectangle(box, fill=tuple(colours))
    else:
        for line in range(left, left + size, 6):
            draw.line((line, top, line, top + size), fill=tuple(colours), width=3)
    return image


def write_classes(folder: Path, first: int, counts: list[int]) -> None:
    """counts[i] JPEGs of class first + i, in a sub-folder of its name."""
    rng = np.random.default_rng(first)
    for label, count in enumerate(counts, first):
        (folder / f"kind_{label:02}").mkdir(parents=True)
        for i in range(count):
            drawing(label, rng).save(folder / f"kind_{label:02}/{i}.jpg", quality=92)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with MY_IMAGES, and the run `other` of other classes."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_classes(tmp_path / "MY_IMAGES", 0, COUNTS)
    write_classes(tmp_path / "others", 12, [8] * 10)
    convert = "python tools/convert.py folder --recipe imagenet_lt"
    run_here(f"{convert} --images others --out others.beton", tmp_path)
    bare = ("model.init=null", "data.train=others.beton", "data.val=null", "data.test=null", "save.keep_best=no")
    length = ("eval.patience=null", "schedule.epochs=5", "run=other")
    run("teacher", CONFIG, *SMALL, *bare, *length, cwd=tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_few_photos_of_a_dozen_classes(place: Path, bare_environment: None) -> None:
    """As the configuration's head says, and README.md; from a file of weights, as they come from elsewhere."""
    convert, train = [line for line in CONFIG.read_text().splitlines() if line.startswith("#   ")]
    AcceleratorState._reset_state(True)
    run_here(convert.removeprefix("#   "), place)
    (place / "WEIGHTS.safetensors").write_bytes((place / "runs/other/model.safetensors").read_bytes())
    line = train.removeprefix("#   ").replace("WEIGHTS.pth", "WEIGHTS.safetensors")
    said = run_here(line, place, [*SMALL, "schedule.epochs=12", "eval.patience=6"])
    assert "learning rate 0.01 = optim.lr 0.08 x 32 / 256" in said and "the classifier stays as drawn" in said
    run("evaluate", "mine", "weights=best", cwd=place)
    figures = json.loads((place / "runs/mine/evaluation_test_best.json").read_text())
    majority = max(row["test_images"] for row in figures["by_class"]) / figures["samples"]
    assert figures["samples"] == sum(max(0, min(n - 1, int(n * 0.15 + 0.5))) for n in COUNTS)
    assert majority < 0.2 and figures["top1"] > 4 * majority and figures["balanced_accuracy"] > 0.6
    result = json.loads((place / "runs/mine/result.json").read_text())
    best = json.loads((place / "runs/mine/evaluation_test_best.json").read_text())["step"]
    assert result["steps"] <= 12 * 4 and (place / f"runs/mine/checkpoints/step_{best:08d}").is_dir()
