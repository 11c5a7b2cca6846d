"""Splits that do not fit each other, and how many views a training uses."""

from pathlib import Path

import numpy as np
import pytest
from helpers.launch import losses, refused, result, run

from pipelines.records.writing import Sample, write_records


def test_a_class_of_the_test_set_without_training_images_is_named(taught: Path, tmp_path: Path) -> None:
    names = [f"class_{c}" for c in range(5)]
    images = [np.full((16, 16, 3), 40 * c, np.uint8) for c in (0, 1, 2)]
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
