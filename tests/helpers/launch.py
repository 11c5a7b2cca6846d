"""Runs the entry scripts as a user does: in their own process, from the test's working directory."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from helpers import warm

from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.run.exits import guard

ROOT = Path(__file__).resolve().parents[2]

TINY = """
data:
  train: {data}/train.beton
  test: {data}/test.beton
  recipe: {{crop: pad_crop, size: 8, pad: 2}}
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
model:
  name: resnet8
optim:
  batch: 16
  lr: 0.05
  nesterov: true
schedule:
  kind: cosine
  epochs: 3
eval:
  batch: 40  # a short batch is filled up
distill:
  method: {method}
"""


def write_tiny(folder: Path, names: Sequence[str] = tuple(f"class_{c}" for c in range(5))) -> None:
    """train.beton (118 images, 5 long-tailed classes) and test.beton (37): raw, 8 x 8, learnable."""
    rng = np.random.RandomState(0)
    looks = rng.randint(0, 256, (5, 8, 8, 3))
    for split, counts in (("train", (60, 30, 16, 8, 4)), ("test", (8, 8, 7, 7, 7))):
        samples = []
        for c, count in enumerate(counts):
            for i in range(count):
                noisy = looks[c] * 0.5 + rng.randint(0, 128, (8, 8, 3))
                samples.append(Sample(f"{split}/{names[c]}/{i}", c, noisy.astype(np.uint8)))
        write_records(folder / f"{split}.beton", samples, list(names), kind="test")


def tiny_config(folder: Path, data: Path, method: str = "bsce", extra: str = "") -> Path:
    """A configuration of the `tiny` records, written into `folder`; `extra` continues the distill section."""
    path = folder / f"{method}.yaml"
    path.write_text(TINY.format(data=data, method=method) + extra)
    return path


def start(
    script: str, *arguments: object, cwd: Path, ranks: int = 1, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python train/SCRIPT.py ...`, on one CPU thread; with `ranks` > 1 under torch's launcher.

    It is a warm Python (helpers.warm), whose imports cost nothing; the ranks' too.
    """
    return start_program(ROOT / "train" / f"{script}.py", *arguments, cwd=cwd, ranks=ranks, env=env)


def start_program(
    path: Path, *arguments: object, cwd: Path, ranks: int = 1, env: dict[str, str] | None = None, python: str = ""
) -> subprocess.Popen[str]:
    """`start` for any file; python: another interpreter than the warm one."""
    python = python or warm.python()
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": python} | (env or {"ACCELERATE_USE_CPU": "true"})
    return subprocess.Popen(
        [python, *launcher, str(path), *map(str, arguments)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a started script."""
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(
    script: str, *arguments: object, cwd: Path, ranks: int = 1, check: bool = True, apart: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run an entry script to its end; with `check`, a failure shows its output.

    It runs in this process, unless several ranks need separate ones, or it is the start that is tested: `apart` is in a new
    interpreter, which takes two seconds.
    """
    if apart:
        path = ROOT / "train" / f"{script}.py"
        done = finish(start_program(path, *arguments, cwd=cwd, ranks=ranks, python=sys.executable))
    elif ranks > 1:
        done = finish(start(script, *arguments, cwd=cwd, ranks=ranks))
    else:
        done = _run_here(script, [str(argument) for argument in arguments], cwd)
    if check and done.returncode:
        raise AssertionError(f"{script} {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def _run_here(script: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    main = importlib.import_module(f"train.{script}").main
    out, err = io.StringIO(), io.StringIO()
    argv, threads = sys.argv, torch.get_num_threads()
    sys.argv = [str(ROOT / "train" / f"{script}.py"), *arguments]
    torch.set_num_threads(1)
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guard(main)
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def result(folder: Path, name: str) -> dict:
    """result.json of a run below `folder`."""
    return json.loads((folder / "runs" / name / "result.json").read_text())


def losses(folder: Path, name: str) -> list[float]:
    """The losses in the metrics of a run below `folder`."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def refused(work: Path, script: str, *arguments: object, apart: bool = False) -> str:
    """The one line of a refusal, after checking exit code 2, no traceback, and no run directory left behind."""
    runs = sorted(work.glob("runs/*"))
    done = run(script, *arguments, cwd=work, check=False, apart=apart)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr + done.stdout
    assert sorted(work.glob("runs/*")) == runs
    return lines[0]
