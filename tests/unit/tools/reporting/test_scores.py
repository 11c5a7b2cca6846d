"""The figures of predictions, against numpy."""

import numpy as np
import pytest
from helpers.report_runs import random_predictions

from tools.reporting import scores as module
from tools.reporting.scores import class_accuracies, mean_probabilities, scores


def test_figures_and_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 60)  # ten samples at a time
    given = random_predictions(3, skill=1.0)
    logits = given.logits.astype(float)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = shares.argmax(axis=1) == given.labels
    assert scores(given)["top1"] == pytest.approx(right.mean()) and scores(given)["few"] == pytest.approx(
        right[60:].mean()
    )
    assert scores(given)["nll"] == pytest.approx(-np.log(shares[np.arange(90), given.labels]).mean())
    assert mean_probabilities(given) == pytest.approx(shares.mean(axis=0))
    assert class_accuracies(given) == pytest.approx(right.reshape(6, 15).mean(axis=1))


def test_without_training_images_there_are_no_groups() -> None:
    found = scores(random_predictions(counts=None))
    assert found["many"] is None and found["few"] is None and found["top1"] is not None
