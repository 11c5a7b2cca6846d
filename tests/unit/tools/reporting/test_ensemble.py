"""tools/reporting/ensemble.py: the means against torch's, whatever the order of the rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.made_predictions import made_run, reordered

from pipelines.errors import UserError
from tools.reporting.ensemble import ensembles

CLASSES, COUNTS = ("a", "b", "c"), (300, 50, 5)


def test_means_of_logits_and_of_probabilities() -> None:
    runs = [made_run(f"r{seed}", CLASSES, COUNTS, seed=seed, method="bsce") for seed in range(3)]
    mixed = np.random.default_rng(0).permutation(len(runs[0].predictions.keys))
    given = [runs[0], replace(runs[1], predictions=reordered(runs[1].predictions, mixed)), runs[2]]
    logits, probabilities = ensembles(given)
    assert [logits.title, probabilities.title] == ["all 3, mean of logits", "all 3, mean of probabilities"]
    each = torch.from_numpy(np.stack([run.predictions.logits for run in runs])).double()
    assert np.allclose(logits.predictions.logits, each.mean(dim=0), atol=1e-5)
    mean = each.softmax(dim=-1).mean(dim=0)
    assert np.allclose(np.exp(probabilities.predictions.logits), mean, rtol=1e-5)
    for found in (logits.predictions, probabilities.predictions):
        first = runs[0].predictions
        assert np.array_equal(found.keys, first.keys) and np.array_equal(found.labels, first.labels)
        assert np.array_equal(found.train_counts, COUNTS) and found.method == "bsce" and found.features is None


def test_rows_follow_the_list() -> None:
    """The first run's rows may be in any order, too."""
    one, other = (made_run(f"r{seed}", CLASSES, None, seed=seed) for seed in range(2))
    mixed = np.random.default_rng(1).permutation(len(one.predictions.keys))
    again = ensembles([replace(one, predictions=reordered(one.predictions, mixed)), other])
    for found, expected in zip(again, ensembles([one, other]), strict=True):
        assert np.array_equal(found.predictions.logits, expected.predictions.logits)
        assert list(found.predictions.names) == list(one.predictions.names)


def test_large_logits_do_not_overflow() -> None:
    one, other = (made_run(f"r{seed}", CLASSES, COUNTS, seed=seed) for seed in range(2))
    large = [
        replace(run, predictions=replace(run.predictions, logits=run.predictions.logits * 1e4)) for run in (one, other)
    ]
    _, probabilities = ensembles(large)
    found = torch.from_numpy(probabilities.predictions.logits).double()
    expected = (
        torch.from_numpy(np.stack([run.predictions.logits for run in large])).double().softmax(dim=-1).mean(dim=0)
    )
    assert torch.isfinite(found).all() and torch.allclose(found.exp(), expected, atol=1e-4)


def test_methods_that_differ_are_not_one() -> None:
    one, other = (made_run(method, CLASSES, COUNTS, method=method) for method in ("bsce", "ce"))
    assert ensembles([one, other])[0].rule is None


def test_refusals() -> None:
    one = made_run("one", CLASSES, COUNTS)
    with pytest.raises(UserError, match="--ensemble needs two runs or more, and one is the only one"):
        ensembles([one])
    run, export, other = (
        made_run(title, CLASSES, COUNTS, weights=weights)
        for title, weights in (("run", "a"), ("export", "a"), ("b", "b"))
    )
    with pytest.raises(
        UserError, match="run and export are the same network, which --ensemble counts once; leave one out"
    ):
        ensembles([run, other, export])
    with pytest.raises(UserError, match="other images"):
        ensembles([one, made_run("two", CLASSES, COUNTS, each=7)])
