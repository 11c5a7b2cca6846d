"""Drills on whole runs, short in the suite and long in tests/drills/long.py: kills, stops, full disks, memory.

Each compares what is left on the disk with what an undisturbed run leaves, bit for bit.
"""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from helpers.launch import finish, run, start, tiny_config
from PIL import Image

from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.networks.final import why_not_final

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"
KEPT = ("step", "epoch", "loss", "hard", "kl", "diversity", "lr", "test", "test_ema")


class Variant(NamedTuple):
    """One way to train: the script's additional settings, and what must exist before: the cache of a teacher with `teacher`.

    stops: after which of six steps, in two epochs, the short drill stops it.
    """

    settings: list[str]
    jpeg: bool = False
    cached: bool = False
    routed: bool = False
    teacher: tuple[str, ...] = ()
    stops: tuple[int, ...] = (3,)


_EVERYTHING = ["ema.decay=0.9", "eval.every_epochs=1"]
_SIX = ("model.head=cosine", "model.experts=6", "model.expert_width=0.5")
_FOUR = ("model.head=cosine", "model.experts=4", "model.expert_width=0.5")
_SWITCH = ("distill.diversity=-0.2", "distill.diversity_from=1")  # with the second epoch
_AROUND = (2, 5)  # the switch is after step 3
VARIANTS = {
    "ffcv": Variant(["data.backend=ffcv"]),
    "resident": Variant(["data.backend=resident"]),
    "reference": Variant(["data.backend=reference"]),
    "dali": Variant(
        ["data.backend=dali", "data.recipe.crop=random_resized_crop", "data.recipe.short_side=18"], jpeg=True
    ),
    "cache": Variant([], cached=True),
    "router": Variant([], routed=True),
    "accumulate": Variant(["optim.accumulate=4", "optim.clip=1.0"]),
    "ride": Variant(
        ["model.head=cosine", "model.experts=2", *_SWITCH, "distill.method=ldam", "distill.drw_from=1"], stops=_AROUND
    ),
    "six experts": Variant([*_SIX, *_SWITCH], stops=_AROUND),
    "four of six": Variant(
        [*_FOUR, *_SWITCH, "distill.alpha=0.75"], cached=True, teacher=(*_SIX, "schedule.epochs=1"), stops=_AROUND
    ),
}


def write_jpegs(tiny: Path, folder: Path) -> None:
    """The tiny records again, as JPEGs of 24 pixels."""
    for split in ("train", "test"):
        records = Records(tiny / f"{split}.beton")
        samples = []
        for i in range(len(records)):
            noise = np.random.default_rng(int(records.keys[i]) % 2**32).integers(0, 64, (24, 24, 3))
            buffer = io.BytesIO()
            image = Image.fromarray((noise + 32 * int(records.labels[i])).astype(np.uint8))
            image.save(buffer, "JPEG", quality=95, subsampling=0)
            path = folder / split / f"{records.labels[i]}-{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            samples.append(Sample(records.name(i), int(records.labels[i]), path))
        write_records(folder / f"{split}.beton", samples, list(records.class_names), kind="test")


def prepare(variant: Variant, tiny: Path, folder: Path) -> tuple[str, list[Any]]:
    """(script, its arguments without the run's name) of a variant, in `folder`, where its records, teacher and cache are made."""
    data = tiny
    if variant.jpeg:
        data = folder / "jpeg"
        if not (data / "test.beton").exists():
            write_jpegs(tiny, data)
    if variant.routed:
        experts = ["model.experts=3", "model.head=cosine"]
        if not (folder / "runs/base").exists():
            run("teacher", tiny_config(folder, data), "run=base", *experts, cwd=folder)
        routers = [*experts, "model.router=4", "model.init=base", "data.sampling=class_balanced", "optim.lr=0.01"]
        return "router", [tiny_config(folder, data, "router"), *_EVERYTHING, *routers]
    if not variant.cached:
        return "teacher", [tiny_config(folder, data), *_EVERYTHING, *variant.settings]
    config = tiny_config(folder, data, "dive", DIVE)
    if not (folder / "caches").exists():
        run("teacher", tiny_config(folder, data), "run=t", "data.seed=1", *variant.teacher, cwd=folder)
        run("cache_logits", config, "distill.teacher=t", "data.views=2", cwd=folder)
    return "distill", [config, *_EVERYTHING, "cache.paths=[caches]", "data.views=2", *variant.settings]


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on interruptions: weights, average, optimizer, metrics, result."""
    (newest,) = sorted((folder / "checkpoints").glob("step_*"))[-1:]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    result = json.loads((folder / "result.json").read_text())
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "average": (folder / "model_ema.safetensors").read_bytes(),
        **{path.stem: path.read_bytes() for path in newest.glob("*.safetensors")},
        "metrics": [{name: line[name] for name in KEPT if name in line} for line in lines],
        "result": {name: value for name, value in result.items() if name not in ("run", "speed")},
    }


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the entries that differ."""
    return [name for name in one | other if one.get(name) != other.get(name)]


def killed_until_done(script: str, arguments: Sequence[Any], folder: Path, kills: int, seed: int, pause: float) -> int:
    """Start, SIGKILL within `pause` seconds of the session's first checkpoint, start again; after `kills` run to the end.

    Returns during how many of the kills a checkpoint was being written (its temporary folder was left).
    """
    draw, torn = random.Random(seed), 0
    checkpoints = folder / "checkpoints"
    for _ in range(kills):
        before = (checkpoints / "latest").read_text() if (checkpoints / "latest").exists() else ""
        process = start(script, *arguments, f"run={folder}", cwd=folder.parent)
        while process.poll() is None:
            if (checkpoints / "latest").exists() and (checkpoints / "latest").read_text() != before:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, pause))
        if process.poll() is not None:
            raise AssertionError(f"it ended before it could be killed: {finish(process)}")
        process.kill()
        finish(process)
        torn += any(path.name.startswith(".") for path in checkpoints.iterdir())
    run(script, *arguments, f"run={folder}", cwd=folder.parent)
    return torn


def cut_short(backend: str, tiny: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A training whose records are cut to half under it; put back, the same command ends as an undisturbed run.

    Returns how it ended. A byte that is touched between the check and the cut would end it by SIGBUS, which is rare: then the run
    says so, and is tried again; so it is where a busy machine made the cut after the last batch.
    """
    shutil.copytree(tiny, folder / "data")
    records = folder / "data/train.beton"
    whole = records.read_bytes()
    arguments = [tiny_config(folder, folder / "data"), *_EVERYTHING, f"data.backend={backend}", "schedule.epochs=4"]
    run("teacher", *arguments, f"run={folder}/calm", cwd=folder)
    cut = folder / "cut"
    for _ in range(3):
        shutil.rmtree(cut, ignore_errors=True)
        process = start("teacher", *arguments, f"run={cut}", cwd=folder)
        while process.poll() is None and not (cut / "checkpoints/latest").exists():
            time.sleep(0.002)
        os.truncate(records, len(whole) // 2)
        ended = finish(process)
        with open(records, "r+b") as file:
            file.write(whole)
        if ended.returncode not in (0, -signal.SIGBUS):
            break
        assert ended.returncode == 0 or "ended without a word" in why_not_final(cut)
    assert json.loads((cut / "run.json").read_text())["status"] == "error", ended
    assert "resumed after step" in run("teacher", *arguments, f"run={cut}", cwd=folder).stdout
    assert different(outcome(folder / "calm"), outcome(cut)) == []
    return ended


def resident_memory(script: str, arguments: Sequence[Any], folder: Path, epochs: int) -> list[tuple[int, float]]:
    """(step, MB) of a run's resident memory at every line of its metrics, after the end of its first epoch."""
    process = start(script, *arguments, f"run={folder}", f"schedule.epochs={epochs}", cwd=folder.parent)
    watched, seen = psutil.Process(process.pid), []
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.02)
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line)["step"] for line in lines[-1:]]
        if steps and (not seen or steps[0] > seen[-1][0]):
            try:
                seen.append((steps[0], watched.memory_info().rss / 1e6))
            except psutil.Error:
                break
    done = finish(process)
    if done.returncode:
        raise AssertionError(done.stderr)
    return seen


def slope(seen: Sequence[tuple[int, float]]) -> float:
    """MB per 100 steps, by least squares."""
    steps, megabytes = np.array(seen).T
    return float(np.polyfit(steps, megabytes, 1)[0] * 100)


class SmallDisk:
    """Within the block, a file system of `megabytes` is mounted at `path`; needs root."""

    def __init__(self, path: Path, megabytes: int):
        self._path, self._megabytes = path, megabytes

    def __enter__(self) -> Path:
        self._path.mkdir(parents=True, exist_ok=True)
        options = f"size={self._megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._path], check=True, capture_output=True)
        return self._path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self._path], check=True)


def full_disk(tiny: Path, folder: Path) -> str:
    """The message of a run whose disk fills up in mid-training; with space again it resumes, and ends as an undisturbed one."""
    script, arguments = prepare(VARIANTS["ffcv"], tiny, folder)
    run(script, *arguments, f"run={folder}/calm", cwd=folder)
    with SmallDisk(folder / "disk", 64) as disk:
        ballast = disk / "ballast"
        for _ in range(3):
            shutil.rmtree(disk / "r", ignore_errors=True)
            ballast.unlink(missing_ok=True)
            process = start(script, *arguments, f"run={disk}/r", "schedule.epochs=3", "save.every_steps=1", cwd=folder)
            while process.poll() is None and not (disk / "r/checkpoints/step_00000002").exists():
                time.sleep(0.002)
            with open(ballast, "wb", buffering=0) as file:  # with a buffer, closing it would fail on the full disk, too
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    pass
            failed = finish(process)
            if failed.returncode != 0:  # it ended before the disk was full: a busy machine
                break
        assert failed.returncode == 2, failed
        ballast.unlink()
        again = run(script, *arguments, f"run={disk}/r", "schedule.epochs=3", "save.every_steps=1", cwd=folder)
        assert "resumed after step" in again.stdout
        assert different(outcome(folder / "calm"), outcome(disk / "r")) == []
    return failed.stderr
