"""Logits that are not finite: the first sample is named, nothing waits for the device, and clean rows are forgotten."""

from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from pipelines.records.reader import Records
from train.finite import FiniteLogits

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def records(tiny: Path) -> Records:
    return Records(tiny / "test.beton")


@pytest.mark.parametrize("value", BAD)
def test_the_first_bad_row_is_named(records: Records, value: float) -> None:
    finite = FiniteLogits()
    finite.require(records, "the network", "advice")  # nothing seen, nothing wrong
    for batch, rows in enumerate(([], [3, 1], [0])):
        logits = torch.full((5, 4), 3e38)
        logits[rows, 2] = value
        finite.see(logits, records.keys[5 * batch : 5 * batch + 5])
    key, name = int(records.keys[6]), records.name(6)
    with pytest.raises(UserError) as caught:
        finite.require(records, "the network", "advice")
    assert str(caught.value) == (
        f"the network gives NaN or infinite logits for 3 of 15 images of {records.path}, first for {name} (key {key}): advice"
    )


def test_rows_that_were_found_finite_are_forgotten(records: Records) -> None:
    """They would pile up over a training."""
    finite = FiniteLogits()
    for _ in range(3):
        finite.see(torch.zeros(4, 2), records.keys[:4])
        finite.require(records, "the network", "advice")
        assert finite._keys == finite._marks == []
    finite.see(torch.tensor([[0.0, float("nan")]]), records.keys[9:10])
    with pytest.raises(UserError, match=f"1 of 1 images of .*first for {records.name(9)} "):
        finite.require(records, "the network", "advice")
