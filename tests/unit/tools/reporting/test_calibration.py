"""Reliability: bins and errors by shot group, against a calculation of its own."""

import numpy as np
import pytest
from helpers.report_runs import COUNTS, made_run, material, random_predictions

from tools.reporting.calibration import bins_of, errors, section


def test_bins_add_up_and_give_the_error() -> None:
    (entry,) = material(made_run("a-s0", seed=0), made_run("a-s1", seed=1)).entries
    found = bins_of(entry)
    assert found["all"].samples.sum() == 180 and found["few"].samples.sum() == 60
    assert sum(found[group].samples for group in ("many", "medium", "few")).tolist() == found["all"].samples.tolist()
    for run, shown in zip(entry.runs, ("first", "second"), strict=True):
        logits = run.predictions.logits.astype(float)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        confidence, right = shares.max(axis=1), shares.argmax(axis=1) == run.predictions.labels
        few = np.flatnonzero(COUNTS < 20)
        for part, members in (("all", right | True), ("few", np.isin(run.predictions.labels, few))):
            error = 0.0
            for low in range(15):
                inside = members & (confidence > low / 15) & (confidence <= (low + 1) / 15)
                if inside.any():
                    error += inside.sum() / members.sum() * abs(confidence[inside].mean() - right[inside].mean())
            (single,) = material(run).entries
            assert float(errors(single)[part]) == pytest.approx(100 * error, abs=0.006), shown


def test_without_training_images_only_the_whole() -> None:
    made = section(material(made_run("a", predictions=random_predictions(counts=None))))
    assert made.tables[0].rows[0][2:] == ["–"] * 3 and len(made.tables[1].columns) == 4
