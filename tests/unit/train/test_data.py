"""Splits that do not fit each other or share images, how many views a training uses, and numbers that no machine could serve."""

import resource
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.launch import losses, refused, result, run

from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records


def test_a_class_of_the_test_set_without_training_images_is_named(taught: Path, tmp_path: Path) -> None:
    names = [f"class_{c}" for c in range(5)]
    images = [np.full((8, 8, 3), 40 * c, np.uint8) for c in (0, 1, 2)]
    samples = [Sample(f"train/{c}/{i}", c, images[c]) for i in range(12) for c in (0, 1, 2)]
    write_records(tmp_path / "three.beton", samples, names, kind="test")
    line = refused(taught, "teacher", taught / "bsce.yaml", f"data.train={tmp_path}/three.beton")
    assert "test.beton has images of class class_3 (and of 1 more), of which data.train=" in line
    assert "three.beton has none" in line


def test_views_of_a_training_in_steps_are_its_begun_epochs(taught: Path) -> None:
    """A cache of 3 views, 7 steps per epoch: 15 to 21 steps begin three epochs."""
    run("distill", taught / "dive.yaml", "cache.paths=[caches]", "run=in_epochs", cwd=taught)
    in_steps = ["cache.paths=[caches]", "schedule.epochs=null"]
    done = run("distill", taught / "dive.yaml", *in_steps, "schedule.steps=15", "run=short", cwd=taught)
    assert "each is used" not in done.stdout and result(taught, "short")["steps"] == 15
    assert losses(taught, "short")[:1] == pytest.approx(losses(taught, "in_epochs")[:1], rel=1e-6)
    assert "views" in refused(taught, "distill", taught / "dive.yaml", *in_steps, "schedule.steps=22")
    images = ["distill.teacher=t", "schedule.epochs=null", "schedule.samples=240", "--dry-run"]
    assert "would write 3 views" in run("cache_logits", taught / "dive.yaml", *images, cwd=taught).stdout


@pytest.mark.parametrize(("sampling", "power"), [("class_balanced", 0), ("square_root", 0.5)])
def test_a_sampling_by_class_says_how_often_it_shows_the_views_of_rare_images(
    taught: Path, tiny: Path, sampling: str, power: float
) -> None:
    counts = Records(tiny / "train.beton").class_counts.astype(float)
    shown = 3 * 112 * counts.min() ** (power - 1) / (counts**power).sum()  # 7 batches of 16, three epochs
    given = ["teacher", taught / "bsce.yaml", f"data.sampling={sampling}", "--dry-run"]
    line = f"3 views for 3 epochs: of an image of the rarest class each is used {shown / 3:.1f} times\n"
    assert shown > 3.3 and line in run(*given, cwd=taught).stdout
    assert "each is used" not in run(*given, f"data.views={int(shown) + 1}", cwd=taught).stdout


def write_images(path: Path, positions: Iterable[int], prefix: str) -> None:
    """Different images by number, two of each class; the same number is the same image under any name."""
    samples = [
        Sample(f"{prefix}/{i}", i % 5, np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8))
        for i in positions
    ]
    write_records(path, samples, [f"class_{c}" for c in range(5)], kind="test", force=True)


@pytest.fixture
def splits(taught: Path, tmp_path: Path) -> list[str]:
    """Settings of three splits without a common image."""
    for name, positions in (("train", range(100, 140)), ("val", range(10)), ("test", range(20, 30))):
        write_images(tmp_path / f"{name}.beton", positions, name)
    named = [f"data.{name}={tmp_path}/{name}.beton" for name in ("train", "val", "test")]
    return [str(taught / "bsce.yaml"), *named, "optim.batch=8", "eval.every_epochs=1", "run=overlap", "--dry-run"]


def test_splits_without_a_common_image_say_nothing(taught: Path, splits: list[str], tmp_path: Path) -> None:
    assert "share" not in run("teacher", *splits, "save.keep_best=val", cwd=taught).stdout
    write_images(tmp_path / "val.beton", [*range(6), 20, 21, 22, 23, 24], "val")  # less than half
    assert "share" not in run("teacher", *splits, "save.keep_best=val", cwd=taught).stdout


@pytest.mark.parametrize(
    "name, words",
    [
        ("test.beton", "would select on the test split: data.test and data.val share 100% of their images"),
        ("link.beton", "would select on the test split"),
        ("copy.beton", "would select on the test split"),
        ("renamed.beton", "would select on the test split"),
        ("half.beton", "would select on the test split"),
        ("more.beton", "would select on the test split"),
        ("train.beton", "would select on training images: data.val and data.train share 100% of their images"),
    ],
)
def test_a_selection_on_other_images_than_those_of_val(
    taught: Path, splits: list[str], tmp_path: Path, name: str, words: str
) -> None:
    """Whatever the file is called: by its images."""
    (tmp_path / "link.beton").symlink_to("test.beton")
    shutil.copy(tmp_path / "test.beton", tmp_path / "copy.beton")
    write_images(tmp_path / "renamed.beton", range(20, 30), "other")
    write_images(tmp_path / "half.beton", range(20, 25), "half")
    write_images(tmp_path / "more.beton", [*range(20, 30), *range(5)], "more")
    val = f"data.val={tmp_path}/{name}"
    line = refused(taught, "teacher", *splits, val, "save.keep_best=val")
    assert words in line and "give data.val images of its own" in line
    assert ("save.keep_best=test_split_knowingly or save.keep_best=no" in line) == (
        "test split:" in words or "test split" in words
    )
    share = "data.train" if name == "train.beton" else "data.val"
    told = run("teacher", *splits, val, cwd=taught).stdout  # selects nothing: told, on the first screen
    assert "warning: data." in told and share in told
    knowingly = run("teacher", *splits, val, "save.keep_best=test_split_knowingly", cwd=taught)
    assert "warning: data." in knowingly.stdout


def test_training_images_as_test_images_are_told(taught: Path, splits: list[str], tmp_path: Path) -> None:
    told = run("teacher", *splits, f"data.test={tmp_path}/train.beton", cwd=taught).stdout
    assert "warning: data.test and data.train share 100% of their images" in told


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            "data.recipe.crop=center data.recipe.size=20000",
            "data.recipe.size=20000: a batch of 8 such views takes 48.0 GB",
        ),
        ("schedule.epochs=1000000000", "schedule.epochs=1000000000: must be at most 99,999,999"),
        ("schedule.epochs=99999999", "steps in all, 5 an epoch: a training has at most 99,999,999"),
        ("optim.batch=1000000000", "optim.batch=1000000000 is larger than the 40 training images"),
        ("data.workers=1000000", "data.workers=1000000: must be from 1 to 1024"),
        ("profile.steps=1000000000", "profile.steps=1000000000: must be from 0 to 1000"),
    ],
)
def test_numbers_that_no_machine_could_serve(taught: Path, splits: list[str], monkeypatch, settings, words) -> None:
    monkeypatch.setattr("train.data.psutil.virtual_memory", lambda: SimpleNamespace(total=10**10))
    assert words in refused(taught, "teacher", *splits, *settings.split())


@pytest.mark.parametrize("settings", ["data.views=2000000000", "eval.batch=1000000000", "schedule.epochs=19999999"])
def test_large_numbers_that_cost_nothing(taught: Path, splits: list[str], settings: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "dry run: loss" in run("teacher", *splits, settings, cwd=taught).stdout
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kB
