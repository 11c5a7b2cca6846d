"""The figures of an evaluation from its predictions, and how the report words them.

Owns headings, units and decimals; train/evaluation/metrics.py defines the figures. Invariant: what cannot be computed is None.
Shapes: C classes, n samples.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from train.evaluation.counting import answers, columns
from train.evaluation.metrics import Answers, figures
from train.evaluation.predictions import Predictions

_CHUNK = 1 << 24  # logits in float64 at a time


class Shown(NamedTuple):
    """How a figure is shown: times `factor`, with so many decimals."""

    heading: str
    factor: float
    decimals: int


FIGURES = {
    "top1": Shown("all, %", 100, 2),
    "many": Shown("many, %", 100, 1),
    "medium": Shown("medium, %", 100, 1),
    "few": Shown("few, %", 100, 1),
    "top5": Shown("top-5, %", 100, 2),
    "balanced_accuracy": Shown("balanced, %", 100, 2),
    "nll": Shown("NLL, nats", 1, 3),
    "ece": Shown("ECE, %", 100, 2),
}


def _chunks(predictions: Predictions) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits float32 [B, C], labels int64 [B])"""
    rows = max(1, _CHUNK // predictions.logits.shape[1])
    for start in range(0, len(predictions.labels), rows):
        part = slice(start, start + rows)
        yield (
            torch.from_numpy(predictions.logits[part].astype(np.float32)),
            torch.from_numpy(predictions.labels[part].astype(np.int64)),
        )


@functools.cache  # several sections use it
def answered(predictions: Predictions) -> Answers:
    """What each sample was answered."""
    rows = [answers(logits, labels) for logits, labels in _chunks(predictions)]
    return columns(torch.cat([torch.empty((0, len(Answers._fields)), dtype=torch.float64), *rows]))


@functools.cache
def mean_probabilities(predictions: Predictions) -> np.ndarray:
    """float64 [C]: the softmax of the logits, averaged over the samples; NaN without samples."""
    total = np.zeros(predictions.logits.shape[1])
    for logits, _ in _chunks(predictions):
        total += logits.double().softmax(dim=1).sum(dim=0).numpy()
    with np.errstate(invalid="ignore"):
        return total / len(predictions.labels)


@functools.cache
def scores(predictions: Predictions) -> dict[str, float | None]:
    """Those of FIGURES, as fractions; many, medium and few are None where the training images are not known."""
    counts = predictions.train_counts
    found: dict[str, Any] = dict(_figures(predictions))
    return {name: None if counts is None and name in ("many", "medium", "few") else found[name] for name in FIGURES}


@functools.cache
def _figures(predictions: Predictions) -> dict[str, Any]:
    counts = predictions.train_counts
    known = np.zeros(predictions.logits.shape[1], np.int64) if counts is None else counts
    return dict(figures(answered(predictions), known))


def class_accuracies(predictions: Predictions) -> np.ndarray:
    """float64 [C]: of each class, as fractions; NaN for a class without images."""
    return np.array(_figures(predictions)["classes"], float)
