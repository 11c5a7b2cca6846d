"""Interrupted runs of every kind end bit for bit as undisturbed ones; the long forms are in tests/drills/long.py."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from drills.run_drills import VARIANTS, cut_short, different, full_disk, killed_until_done, outcome, prepare
from helpers.launch import run
from studies import loop_overhead

from train import loop
from train.run.stops import EXIT_CODE

NEEDS = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def _marked(name: str):
    package = NEEDS.get(name)
    missing = package is not None and not importlib.util.find_spec(package)
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


@pytest.mark.parametrize("name", [_marked(name) for name in VARIANTS])
def test_six_steps_are_three_and_three(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the third step, in the middle of an accumulation group where there is one, and resumed.

    With experts: before and after the epoch in which class weights and temperatures are switched on.
    """
    variant = VARIANTS[name]
    script, arguments = prepare(variant, tiny, tmp_path)
    short = [*arguments, "schedule.epochs=2", "optim.batch=36"]  # three steps per epoch
    run(script, *short, "run=calm", cwd=tmp_path)
    add = loop.Meters.add

    def interrupted(meters, step, *rest):
        if step + 1 in variant.stops:
            os.kill(os.getpid(), signal.SIGTERM)
        add(meters, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Meters, "add", interrupted)
        for before, _ in zip((0, *variant.stops), variant.stops, strict=False):
            stopped = run(script, *short, "run=r", cwd=tmp_path, check=False)
            assert stopped.returncode == EXIT_CODE, stopped.stderr
            assert not before or f"resumed after step {before} " in stopped.stdout
    assert f"resumed after step {variant.stops[-1]} " in run(script, *short, "run=r", cwd=tmp_path).stdout
    calm, resumed = (outcome(tmp_path / "runs" / run_name) for run_name in ("calm", "r"))
    assert different(calm, resumed) == []
    assert len(calm["metrics"]) >= 2 and calm["optimizer"]
    assert ("diversity" in calm["metrics"][0]) == ("model.experts" in " ".join(variant.settings))


@pytest.mark.slow
def test_killed_again_and_again(tiny: Path, tmp_path: Path) -> None:
    script, arguments = prepare(VARIANTS["ffcv"], tiny, tmp_path)
    arguments += ["schedule.epochs=3", "save.every_steps=1"]
    run(script, *arguments, "run=./calm", cwd=tmp_path)
    killed_until_done(script, arguments, tmp_path / "killed", kills=2, seed=0, pause=0.1)
    assert different(outcome(tmp_path / "calm"), outcome(tmp_path / "killed")) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", [_marked("ffcv"), "reference"])
def test_records_cut_short_under_a_training_end_it_with_a_line(backend: str, tiny: Path, tmp_path: Path) -> None:
    ended = cut_short(backend, tiny, tmp_path)
    assert ended.returncode == 2, ended
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "data/train.beton: has " in said[0] and "put the whole file back" in said[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_costs_nothing_but_time(tiny: Path, tmp_path: Path) -> None:
    said = full_disk(tiny, tmp_path)  # what meets the full disk first: a checkpoint or a line of metrics.jsonl
    assert "No space left" in said and "make room" in said
    assert f"cannot save a checkpoint in {tmp_path}/disk/r:" in said or "disk/r/metrics.jsonl)" in said, said


def test_the_loop_and_a_bare_loop_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/studies/loop_overhead.py measures the figures themselves; they are never asserted."""
    monkeypatch.setattr(loop_overhead, "BATCH", 8)
    loop_s, bare_s, ratios = loop_overhead.measure("resnet8", steps=3, rounds=2)
    assert loop_s > 0 and bare_s > 0 and len(ratios) == 2
