"""Predictions and records of made-up images, for tests of reports: features in clouds, answers right at a chosen rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.records.layout import sample_key
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from tools.reporting.runs import Run
from train.evaluation.predictions import Predictions


def made_run(title: str, class_names: Sequence[str], counts: Sequence[int] | None, each: int = 6, **given: Any) -> Run:
    """`each` images of each class in turn; keyword arguments replace what is made up: seed, spread, accuracy, and any field."""
    rng = np.random.default_rng(given.pop("seed", 0))
    classes, n = len(class_names), each * len(class_names)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, 8)) * given.pop("spread", 3.0)
    logits = rng.normal(size=(n, classes))
    right = rng.random(n) < given.pop("accuracy", 0.5)
    logits[np.arange(n), labels] += np.where(right, 9, -9)
    names = [f"s/{i}" for i in range(n)]
    fields: dict[str, Any] = {
        "keys": np.array([sample_key(name) for name in names]),
        "labels": labels,
        "logits": logits.astype(np.float32),
        "positions": np.arange(n),
        "names": np.array(names),
        "class_names": np.array(class_names),
        "train_counts": None if counts is None else np.array(counts),
        "features": (centres[labels] + rng.normal(size=(n, 8))).astype(np.float32),
    }
    return Run(title=title, predictions=Predictions(**(fields | given)))


def reordered(found: Predictions, order: np.ndarray) -> Predictions:
    """The same predictions in another order of rows."""
    per_sample = ("keys", "labels", "logits", "positions", "names", "features")
    return Predictions(**(vars(found) | {name: getattr(found, name)[order] for name in per_sample}))


def made_records(
    path: Path, class_names: Sequence[str], each: int = 6, sizes: Sequence[tuple[int, int]] = ((8, 8),)
) -> Records:
    """Raw images for `made_run`, of these widths and heights in turn."""
    rng, samples = np.random.default_rng(0), []
    for i in range(each * len(class_names)):
        width, height = sizes[i % len(sizes)]
        samples.append(Sample(f"s/{i}", i % len(class_names), rng.integers(0, 256, (height, width, 3), np.uint8)))
    write_records(path, samples, class_names, kind="test")
    return Records(path)
