"""The committed losses of a DiVE student are reproduced, and would not be if anything that makes them changed."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from runs import golden_run

from train.objectives import objective
from train.objectives.losses import log_prior

GOLDEN = json.loads(golden_run.FIXTURE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden_run.prepare(folder)
    return folder


def test_the_losses_are_the_committed_ones(folder: Path) -> None:
    assert len(GOLDEN["losses"]) == 20
    assert golden_run.compare(GOLDEN, golden_run.losses(folder)) is None


@pytest.mark.parametrize("change", ["distill.tau=3.03", "optim.weight_decay=0.45"])
def test_other_settings_are_noticed(folder: Path, change: str) -> None:
    """Changes of 1 % and of 10 % are found even where only the tolerance applies."""
    found = golden_run.losses(folder, change, change)
    assert "apart, wanted to 0.0001" in str(golden_run.compare(GOLDEN | {"machine": "another"}, found))


def test_another_prior_is_noticed(folder: Path) -> None:
    with mock.patch.object(objective, "log_prior", lambda counts: log_prior(counts + 1)):
        found = golden_run.losses(folder, "prior")
    assert "apart, wanted to 0.0001" in str(golden_run.compare(GOLDEN | {"machine": "another"}, found))


def test_how_it_compares() -> None:
    """Equal to the last bit on the machine that wrote the list, to 1e-4 elsewhere, always with the same number of steps."""
    here, elsewhere = GOLDEN | {"machine": golden_run.machine()}, GOLDEN | {"machine": "another"}
    for relative, exact, near in ((0.0, True, True), (1e-6, False, True), (9e-5, False, True), (1.1e-4, False, False)):
        found = list(GOLDEN["losses"])
        found[13] *= 1 + relative
        assert (golden_run.compare(here, found) is None) == exact
        assert (golden_run.compare(elsewhere, found) is None) == near
    assert "the loss of step 13" in str(golden_run.compare(here, found))
    assert golden_run.compare(elsewhere, GOLDEN["losses"][:-1]) == "19 losses, not 20"
    assert "the loss of step 3 is nan" in str(
        golden_run.compare(elsewhere, [*GOLDEN["losses"][:3], float("nan"), *GOLDEN["losses"][4:]])
    )


def test_the_list_says_where_it_is_from() -> None:
    assert GOLDEN["written by"] == "python tests/runs/golden_run.py --write"
    assert set(GOLDEN["machine"]) == set(golden_run.machine()) == {"cpu", "torch", "threads"}
    assert golden_run.machine()["torch"] == torch.__version__
