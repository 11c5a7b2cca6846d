"""Drills: processes killed with SIGKILL and started again, and two real ranks. Small, real, from the command line."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.launch import finish, run, start, tiny_config

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"
VIEWS, EPOCHS = "data.views=12", "schedule.epochs=6"


def kill_when(process, sign, seed: int) -> None:
    """SIGKILL a started script at a random moment after `sign()` is true (a first line, a first file)."""
    deadline = time.monotonic() + 120
    while not sign() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
    time.sleep(random.Random(seed).uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    process.communicate()


def killed_and_resumed(script: str, *arguments: object, cwd: Path, sign, seed: int) -> None:
    process = start(script, *arguments, cwd=cwd)
    kill_when(process, sign, seed)
    assert process.returncode == -signal.SIGKILL
    run(script, *arguments, cwd=cwd)


def cache_bytes(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.suffix in (".lc", ".bin") or p.name == "identity.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def training_lines(folder: Path) -> list[tuple]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line.get("loss"), line.get("lr"), json.dumps(line.get("test"))) for line in lines]


@pytest.mark.slow
def test_killed_anywhere_the_same_commands_give_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    """Teacher, cache writing and student, each killed once at a random moment, against three undisturbed runs."""
    weights, caches = {}, {}
    for kind in ("calm", "killed"):
        folder = tmp_path / kind
        folder.mkdir()
        bsce, dive = tiny_config(folder, tiny, "bsce"), tiny_config(folder, tiny, "dive", DIVE)
        commands = [
            ("teacher", bsce, "run=t", "data.seed=1", EPOCHS, "eval.every_epochs=2"),
            ("cache_logits", dive, "distill.teacher=t", VIEWS, "cache.batch=8"),
            ("distill", dive, "run=s", "cache.paths=[caches]", VIEWS, EPOCHS),
        ]
        signs = [
            (folder / "runs/t").joinpath("checkpoints/latest").exists,
            lambda folder=folder: any(folder.rglob("*.lc")),
            (folder / "runs/s").joinpath("checkpoints/latest").exists,
        ]
        for seed, (command, sign) in enumerate(zip(commands, signs, strict=True)):
            if kind == "calm":
                run(*command, cwd=folder)
            else:
                killed_and_resumed(*command, cwd=folder, sign=sign, seed=seed)
        weights[kind] = [(folder / f"runs/{name}/model.safetensors").read_bytes() for name in ("t", "s")]
        caches[kind] = cache_bytes(folder / "caches")
        assert len(caches[kind]) == 12 + 2
    assert weights["calm"] == weights["killed"]
    assert caches["calm"] == caches["killed"]
    for name in ("t", "s"):
        calm, killed = (training_lines(tmp_path / kind / "runs" / name) for kind in ("calm", "killed"))
        assert calm == killed
    record = json.loads((tmp_path / "killed/runs/t/run.json").read_text())
    assert [session["status"] for session in record["sessions"]] == ["killed", "finished"]


def test_two_ranks_train_evaluate_and_write_one_run(tiny: Path, tmp_path: Path) -> None:
    """Each rank takes half of every batch; the 37 test images are counted once; the loss is that of one process
    up to batch norm, which sees half batches."""
    config = tiny_config(tmp_path, tiny, "bsce")
    run("teacher", config, "run=two", "optim.lr=0.01", cwd=tmp_path, ranks=2)
    run("teacher", config, "run=one", "optim.lr=0.01", cwd=tmp_path)
    one, two = (json.loads((tmp_path / f"runs/{name}/result.json").read_text()) for name in ("one", "two"))
    assert two["test"]["samples"] == one["test"]["samples"] == 37
    losses = [[line[1] for line in training_lines(tmp_path / "runs" / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    record = json.loads((tmp_path / "runs/two/run.json").read_text())
    assert record["sessions"][0]["environment"]["world_size"] == 2


def test_ranks_that_do_not_know_each_other_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Without a GPU and without ACCELERATE_USE_CPU each of two launched processes would take itself for the only one."""
    done = finish(
        start(
            "teacher", tiny_config(tmp_path, tiny), cwd=tmp_path, env={"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"}
        )
    )
    assert done.returncode == 2 and "ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "runs").exists()
