"""Made-up runs for tests of the report: predictions and settings as given, in a folder where the test needs files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tools.reporting.entries import entries_of
from tools.reporting.runs import Run
from tools.reporting.section import Material
from train.config import Config
from train.evaluation.predictions import Predictions

COUNTS = np.array([300, 120, 60, 30, 10, 4])  # two classes of each shot group
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def predictions(
    logits: Any, labels: Any, names: Any = NAMES, counts: Any = COUNTS, records: str = "r", **known: Any
) -> Predictions:
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels)
    numbered = np.arange(len(labels))
    return Predictions(
        keys=numbered,
        labels=labels,
        logits=logits,
        positions=numbered,
        names=np.array([f"image {i}" for i in numbered]),
        class_names=np.array(names),
        train_counts=None if counts is None else np.asarray(counts),
        records=records,
        weights="w",
        **known,
    )


def random_predictions(seed: int = 0, images: int = 90, skill: float = 2.0, **known: Any) -> Predictions:
    """As many images of each class, in order."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(NAMES)), images // len(NAMES))
    logits = rng.normal(size=(len(labels), len(NAMES)))
    logits[np.arange(len(labels)), labels] += skill
    return predictions(logits, labels, **known)


def config(seed: int = 0, run: str = "a", **distill: Any) -> Config:
    made = Config(run=run, seed=seed)
    return replace(made, distill=replace(made.distill, **{"method": "bsce", **distill}))


def made_run(
    title: str, folder: Path | None = None, seed: int = 0, files: dict[str, Any] | None = None, **known: Any
) -> Run:
    """files: {name: value} of JSON files to write into `folder`."""
    for name, value in (files or {}).items():
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    given = {"predictions": random_predictions(seed), "config": config(seed, title)} | known
    return Run(title=title, folder=folder, **given)


def material(*runs: Run) -> Material:
    return Material(runs, entries_of(runs), "test")
