"""Every shipped configuration: the commands in its head run, it trains, evaluates and saves; docs/method.md has its settings.

Two steps each (configs/debug.txt) of the real network on a dozen images, JPEG or raw as the recipe has them, at 40 pixels
where it has more. Each also refuses every misspelling of its keys, and says in its head what a reader must know.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.recipes import CLASSES, overlay, run_here, write_jpegs

from models.registry import build_model
from pipelines.errors import UserError
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.config import Config
from train.settings import flatten, load

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
REPORTED = [path for path in CONFIGS if path.parent.name != "demo"]
PLAIN = [  # without experts and LDAM
    path
    for path in REPORTED
    if path.stem.split("_")[0] in ("ce", "bsce", "dive") and path.parent.name != "cifar100_lt_strong"
]
# folder: (network, epochs by file stem's end, batch, lr, weight decay, tau, p)
PAPER = {
    "cifar100_lt": ("resnet32", 128, 0.1, 2e-4, 3, 0.5),
    "cifar10_pair": ("resnet32", 128, 0.1, 2e-4, None, None),
    "imagenet_lt": ("resnext50_32x4d", 512, 0.2, 5e-4, 9, 1),
    "inat18": ("resnet50", 256, 0.1, 5e-4, 2, 0.5),
}


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


TRAIN, EVALUATION = 12, 5  # images
# These run with a smaller network to save time: others of the same folder run the real one, and CIFAR's the real experts.
SAME_NETWORK = (
    *("imagenet_lt/ce_x50", "inat18/bsce_r50_200", "inat18/dive_r50_200"),
    *(
        ids(path)
        for path in REPORTED
        if path not in PLAIN and not path.parent.name.startswith("cifar100_lt") and path.parent.name != "configs"
    ),
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw_train.beton (32 x 32), jpeg_train.beton, and the same for `eval` and, of other images, for `select`."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for seed, (split, count) in enumerate((("train", TRAIN), ("eval", EVALUATION), ("select", EVALUATION))):
        names = [f"{split}/{i}.jpg" for i in range(count)]
        write_jpegs(folder, names, seed)
        pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        for kind in ("raw", "jpeg"):
            images = [pixels[i] if kind == "raw" else folder / name for i, name in enumerate(names)]
            samples = [Sample(name, i % len(CLASSES), images[i]) for i, name in enumerate(names)]
            write_records(folder / f"{kind}_{split}.beton", samples, CLASSES, kind="test")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is emptied at the end: checkpoints of large networks take gigabytes, and pytest keeps the last session."""
    folder = tmp_path_factory.mktemp("places")
    yield folder
    shutil.rmtree(folder)


def workplace(path: Path, records: Path, places: Path) -> Path:
    """The working directory that a student shares with its teacher, laid out as their configurations say."""
    group = "all" if path.parent.name == "demo" else path.stem.rpartition("_")[2]
    place = places / path.parent.name / group
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "configs").exists():
        (place / "configs").symlink_to(ROOT / "configs")
    config = load(Config, path)
    data = config.data
    if any("model.init=WEIGHTS.pth" in line for line in commands(path)):
        torch.save(build_model(config.model.name, 1000).state_dict(), place / "WEIGHTS.pth")
    kind = "raw" if data.recipe.crop == "pad_crop" else "jpeg"
    selects = config.save.keep_best == "val"
    for split, name in (("train", data.train), ("select" if selects else "eval", data.val), ("eval", data.test)):
        if name is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(records / f"{kind}_{split}.beton", place / name)
    return place


def commands(path: Path) -> list[str]:
    """The commands in a configuration's head that train or write a cache."""
    head = path.read_text().split("\n\n")[0].splitlines()
    return [line.removeprefix("#").strip() for line in head if " train/" in line]


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_the_commands_in_the_head_run(path: Path, records: Path, places: Path) -> None:
    """All commands, beginning with the teacher; the last trains this configuration: 2 steps, every image evaluated, saved."""
    place, config = workplace(path, records, places), load(Config, path)
    extra = [*overlay(config), *(["model.name=resnet8"] if ids(path) in SAME_NETWORK else [])]
    for line in commands(path):
        # Routers cannot see more logits than there are classes here.
        run_here(line, place, [*extra, *(["model.router=3"] if "train/router.py" in line else [])])
    assert str(path.relative_to(ROOT)) in commands(path)[-1]
    given = re.search(r" run=(\S+)", commands(path)[-1])
    name = given[1] if given else f"{path.stem}-s0"
    folder = place / name if name.startswith("./") else place / "runs" / name
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 2 and result["method"] == config.distill.method
    assert result["test" if config.data.test else "val"]["samples"] == EVALUATION
    assert list(folder.glob("checkpoints/*")) and (folder / "model.safetensors").exists()
    network = dataclasses.replace(config.model, router=3 if config.model.router else None)
    if ids(path) in SAME_NETWORK:
        network = dataclasses.replace(network, name="resnet8")
    architecture = json.loads((folder / "model.json").read_text())["architecture"]
    assert architecture == network.spec(len(CLASSES)).architecture


def misspelt(path: Path) -> Iterator[tuple[str, str, str]]:
    """(dotted key, its misspelling, the file's text with it) for every key of a file, with a letter dropped or doubled."""
    text = path.read_text()

    def keys(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
        for name, value in node.value:
            yield prefix + name.value, name
            if isinstance(value, yaml.MappingNode):
                yield from keys(value, f"{prefix}{name.value}.")

    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    for number, (key, name) in enumerate(keys(node, "")):
        right, at = name.value, name.start_mark.index
        wrong = right[:-2] + right[-1] if number % 2 and len(right) > 3 else right[0] + right
        yield key, wrong, text[:at] + wrong + text[at + len(right) :]


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_every_key_misspelt_is_refused_and_the_right_one_named(path: Path, tmp_path: Path) -> None:
    seen = set()
    for key, wrong, text in misspelt(path):
        (tmp_path / "misspelt.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            load(Config, tmp_path / "misspelt.yaml")
        given = key.rpartition(".")[0] + "." * ("." in key) + wrong
        assert f"unknown key '{given}' (" in str(caught.value), text
        assert str(caught.value).endswith(f"; nearest: {key}")
        seen.add(key)
    assert {"data.train", "data.recipe.size", "model.name", "optim.lr", "schedule.kind", "distill.method"} < seen


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_head_says_command_hardware_hours_and_result(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    for field in ("# command:", "# hardware:", "# hours:", "# expected:"):
        assert field in head
    assert str(path.relative_to(ROOT)) in head


@pytest.mark.parametrize("path", PLAIN, ids=ids)
def test_settings_are_the_papers(path: Path) -> None:
    """Those of networks with experts: tests/unit/test_docs_method.py."""
    config = load(Config, path)
    network, batch, lr, decay, tau, p = PAPER[path.parent.name]
    few = path.stem == "ce_500_50"  # a tenth of the images: half the batch and half the epochs, our choice
    assert (config.model.name, config.optim.batch, config.optim.lr) == (network, batch // 2 if few else batch, lr)
    assert (config.optim.weight_decay, config.optim.momentum) == (decay, 0.9)
    method = path.stem.split("_")[0]
    assert config.distill.method == method
    # The teacher is not run on the very crops it was trained on.
    assert config.data.seed == (0 if method == "dive" else 1)
    if method == "dive":
        assert (config.distill.tau, config.distill.p, config.distill.alpha) == (tau, p, 0.5)
    assert config.data.recipe.jitter == ([0.4] * 3 if path.parent.name == "imagenet_lt" else [0.0] * 3)
    if path.parent.name.startswith("cifar"):
        schedule = config.schedule
        assert (schedule.kind, schedule.gamma, config.optim.nesterov) == ("multistep", 0.01, True)
        lengths = (schedule.epochs, schedule.warmup_epochs, schedule.milestones)
        assert lengths == ((100, 2, [60, 80]) if few else (200, 5, [120, 160]))
    else:
        epochs = 200 if path.stem.endswith("200") else 90
        assert (config.schedule.kind, config.schedule.epochs, config.schedule.per) == ("cosine", epochs, "epoch")


@pytest.mark.parametrize("path", [path for path in REPORTED if path.parent.name == "cifar100_lt_strong"], ids=ids)
def test_strong_settings_are_those_of_the_page(path: Path) -> None:
    """docs/strong.md."""
    config = load(Config, path)
    recipe, schedule, network = config.data.recipe, config.schedule, "resnet56" if "_r56_" in path.stem else "resnet32"
    assert (recipe.policy, recipe.cutout, recipe.cutout_fill) == ("autoaugment_cifar10", 16, "grey")
    assert (config.model.name, config.optim.batch, config.optim.lr, config.optim.weight_decay) == (
        network,
        128,
        0.1,
        5e-4,
    )
    assert (schedule.kind, schedule.epochs, schedule.warmup_epochs, config.optim.nesterov) == ("cosine", 200, 5, True)
    if path.stem.startswith("dive"):
        assert (config.distill.tau, config.distill.p, config.distill.alpha, config.data.seed) == (6, 1, 0.8, 0)
        assert config.data.sampling == "class_balanced"
    else:
        assert (config.data.seed, config.data.sampling) == (1, "instance")


def test_student_and_teacher_differ_only_where_they_must() -> None:
    """A teacher is trained with the student's recipe."""
    plain = {"distill.method", "distill.tau", "distill.p", "data.seed"}
    strong = plain | {"distill.alpha", "data.sampling"}
    more = plain | {"distill.alpha", "distill.diversity", "model.experts"}
    for folder, student, teacher, allowed in (
        ("cifar100_lt", "dive_if100", "bsce_if100", plain),
        ("imagenet_lt", "dive_x50", "bsce_x50", plain),
        ("inat18", "dive_r50_90", "bsce_r50_90", plain),
        ("demo", "dive", "bsce", plain),
        ("cifar100_lt_strong", "dive_strong_if100", "bsce_strong_if100", strong),
        ("cifar100_lt_strong", "dive_strong_if100", "bsce_r56_strong_if100", strong | {"model.name"}),
        ("cifar100_lt", "ride_dive4_if100", "bsce6_if100", more | {"schedule.warmup_epochs"}),
        ("imagenet_lt", "ride_dive4_x50", "bsce6_x50", more),
        ("inat18", "ride_dive4_r50", "bsce6_r50", more),
    ):
        a, b = (flatten(load(Config, ROOT / f"configs/{folder}/{name}.yaml")) for name in (student, teacher))
        assert {key for key in a if a[key] != b[key]} <= allowed


def test_the_default_run_names_differ() -> None:
    stems = [path.stem for path in REPORTED]
    assert len(set(stems)) == len(stems)
