"""The loop's own small parts: what is periodic, sums on the device, the step whose loss was not finite."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from launch import run, tiny_config

from pipelines.errors import UserError
from train.loop import Meters, due


def test_due() -> None:
    assert [n for n in range(1, 11) if due(n, 3, 10)] == [3, 6, 9, 10]
    assert [n for n in range(1, 11) if due(n, 5, 10)] == [5, 10]  # the end and the period coincide: once
    assert [n for n in range(1, 11) if due(n, 0, 10)] == [10]


def test_meters_average_between_reads() -> None:
    meters, accelerator = Meters(torch.device("cpu")), Accelerator(cpu=True)
    for step, loss in enumerate([1.0, 2.0, 6.0]):
        meters.add(step, torch.tensor(loss), {"kl": torch.tensor(loss / 2)})
    assert meters.read(accelerator) == {"loss": 3.0, "kl": 1.5}
    meters.add(3, torch.tensor(5.0), {"kl": torch.tensor(0.0)})
    assert meters.read(accelerator) == {"loss": 5.0, "kl": 0.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_that_was_not_finite_is_named(value: float) -> None:
    meters = Meters(torch.device("cpu"))
    for step, loss in enumerate([1.0, value, 2.0, value]):
        meters.add(step, torch.tensor(loss), {})
    with pytest.raises(UserError, match="loss of step 1 is not finite"):
        meters.read(Accelerator(cpu=True))


def test_a_diverging_run_stops_and_keeps_no_bad_checkpoint(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    done = run("teacher", config, "run=bad", "optim.lr=1e30", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "is not finite" in done.stderr and "optim.lr" in done.stderr
    assert not list((tmp_path / "runs/bad").glob("checkpoints/step_*"))
    assert json.loads((tmp_path / "runs/bad/run.json").read_text())["status"] == "error"


def test_learning_rates_are_those_of_the_schedule(tiny: Path, tmp_path: Path) -> None:
    """Seven steps an epoch; cosine per epoch over three epochs from 0.05."""
    run("teacher", tiny_config(tmp_path, tiny), "run=r", "eval.every_epochs=2", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], round(line["lr"], 6)) for line in lines if "lr" in line] == [
        (7, 0.05),
        (14, 0.0375),
        (21, 0.0125),
    ]
    assert [line["step"] for line in lines if "test" in line] == [14]


def test_a_training_in_steps_ends_within_an_epoch(tiny: Path, tmp_path: Path) -> None:
    """17 steps, 7 an epoch: the last is logged and saved, evaluation goes by steps, a resumed run says how far it was."""
    length = ["schedule.epochs=null", "schedule.steps=17", "schedule.per=step", "eval.every_steps=5"]
    run("teacher", tiny_config(tmp_path, tiny), *length, "run=r", "optim.lr_scale=linear", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test" in line] == [5, 10, 15]
    # 0.05 x 16 / 256 at first
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    expected = {done: 0.05 / 16 * (1 + math.cos(math.pi * (done - 1) / 17)) / 2 for done in (7, 14, 17)}
    assert rates == pytest.approx(expected)
    result = json.loads((tmp_path / "runs/r/result.json").read_text())
    assert (result["steps"], result["epochs"]) == (17, 17 / 7)
    (tmp_path / "runs/r/result.json").unlink()
    again = run("teacher", tmp_path / "bsce.yaml", *length, "run=r", "optim.lr_scale=linear", cwd=tmp_path).stdout
    assert "resumed after step 17 (epoch 2.42857 of 2.42857)" in again
    assert "learning rate 0.003125 = optim.lr 0.05 x 16 / 256 (optim.lr_scale=linear)" in again
