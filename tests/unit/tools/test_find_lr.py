"""The rate finder from its command line to its files, on small real records."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import losses, result, run, tiny_config

from tools import find_lr
from train.run.exits import guard


def find(monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """(exit code, output, errors) of the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.argv", ["tools/find_lr.py", *map(str, words)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return guard(find_lr.main), out.getvalue(), err.getvalue()


def test_picture_numbers_and_what_to_type(tiny: Path, tmp_path: Path, bare_environment: None, monkeypatch) -> None:
    """The first loss is that of the training; the suggestion trains; and optim.lr_scale is taken off what is to be typed."""
    config = tiny_config(tmp_path, tiny)
    code, out, err = find(monkeypatch, config, "--out", "lr", "--steps", 60, "--from", 1e-4, "optim.nesterov=false")
    assert code == 0, err
    found = json.loads((tmp_path / "lr/lr.json").read_text())
    assert out.splitlines()[-4] == f"type: {found['type']}" and "lr/lr.svg" in out
    assert {path.name for path in (tmp_path / "lr").iterdir()} == {f"lr.{end}" for end in ("md", "json", "svg", "png")}
    assert "<svg" in (tmp_path / "lr/lr.svg").read_text() and found["type"] in (tmp_path / "lr/lr.md").read_text()
    assert found["suggestion"] == found["minimum"] / 10 and 1e-4 < found["suggestion"] < 1
    assert len(found["lr"]) == len(found["loss"]) <= 60 and found["settings"]["optim.nesterov"] is False
    assert not (tmp_path / "runs").exists()
    once = ("schedule.epochs=null", "schedule.steps=1", "optim.nesterov=false", "run=once")
    run("teacher", config, *once, cwd=tmp_path)
    assert losses(tmp_path, "once") == [found["loss"][0]]
    run("teacher", config, found["type"], "run=typed", "schedule.epochs=30", "schedule.kind=constant", cwd=tmp_path)
    assert (
        losses(tmp_path, "typed")[-1] < 0.7 * losses(tmp_path, "typed")[0] and result(tmp_path, "typed")["steps"] == 210
    )
    scaled = ("optim.lr_scale=linear", "optim.nesterov=false")  # 16 / 256
    code, out, err = find(monkeypatch, config, "--out", "scaled", "--steps", 60, "--from", 1e-4, *scaled)
    again = json.loads((tmp_path / "scaled/lr.json").read_text())
    assert again["lr"] == found["lr"] and again["loss"] == found["loss"]
    typed = [float(one["type"].removeprefix("optim.lr=")) for one in (found, again)]
    assert typed[1] == pytest.approx(16 * typed[0], rel=0.1)
    code, out, err = find(
        monkeypatch, config, "--out", "adamw", "--steps", 20, "optim.name=adamw", "optim.nesterov=false"
    )
    assert code == 0, err
    adamw = json.loads((tmp_path / "adamw/lr.json").read_text())
    assert adamw["suggestion"] == adamw["steepest"] and "falls fastest" in adamw["rule"] and adamw["type"] in out


def test_it_distils_from_a_cache_too(tiny: Path, tmp_path: Path, bare_environment: None, monkeypatch) -> None:
    """For more epochs than the cache has views, which come round as in a training."""
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", cwd=tmp_path)
    dive, length = tiny_config(tmp_path, tiny, "dive", "  tau: 3\n"), "schedule.epochs=2"
    run("cache_logits", dive, "distill.teacher=t", length, cwd=tmp_path)
    code, _, err = find(monkeypatch, dive, "cache.paths=[caches]", length, "--out", "lr", "--steps", 25)
    assert code == 0, err
    found = json.loads((tmp_path / "lr/lr.json").read_text())
    assert found["settings"]["cache.paths"] == ["caches"] and np.isfinite(found["loss"]).all()


def test_a_loss_that_overflows_ends_the_sweep(tiny: Path, tmp_path: Path, bare_environment: None, monkeypatch) -> None:
    words = (tiny_config(tmp_path, tiny), "--out", "lr", "--steps", 40, "--to", 1e4, "--from", 1e-2)
    code, _, err = find(monkeypatch, *words)
    assert code == 0, err
    found = json.loads((tmp_path / "lr/lr.json").read_text())
    assert found["diverged"] and len(found["loss"]) < 40 and np.isfinite(found["loss"]).all()


def test_refusals_are_one_line_and_a_dry_run_writes_nothing(
    tiny: Path, tmp_path: Path, bare_environment: None, monkeypatch
) -> None:
    config = tiny_config(tmp_path, tiny)
    for words, expected in {
        (config,): "--out is missing",
        (config, "--out", "lr", "--from", "1", "--to", "0.1"): "--from 1 --to 0.1: the rate must rise",
        (config, "--out", "lr", "--from", "-1"): "--from",
        (config, "--out", "lr", "--steps", "3"): "3 given, 20..5000 allowed",
        (config, "--out", "lr", "optim.lrr=1"): "nearest: optim.lr",
        (config, "--out", "lr", "distill.method=kd", "distill.tau=3"): "needs targets",
        (config, "--out", "lr", "cuda_graph=true"): "cuda_graph=true needs a GPU",
        (config, "--out", str(config)): "--out",
    }.items():
        code, _, err = find(monkeypatch, *words)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (2, 1) and expected in lines[0], err
    code, out, _ = find(monkeypatch, config, "--out", "lr", "--dry-run")
    assert code == 0 and "100 steps at rates from 1e-06 to 10" in out and not (tmp_path / "lr").exists()
