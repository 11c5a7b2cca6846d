"""Runs the commands of README.md and of the heads of configs/ as written, on small made-up images.

Owns reading a command line, and the images; where an image lies and what is checked are up to the tests. `accelerate launch` is
replaced by this process, unless a test asks for the real one.
"""

import contextlib
import importlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState
from helpers import warm
from helpers.launch import ROOT, run
from PIL import Image

DEBUG = (ROOT / "configs" / "debug.txt").read_text().split()
SMALL = 40  # pixels; larger inputs are reduced to this, and two by two are left of them at the end of a network
CLASSES = ("ant", "bee", "cat", "dog", "eel")


def overlay(config: Any) -> list[str]:
    """The settings with which a run of any configuration takes only seconds."""
    return [*DEBUG, *([f"data.recipe.size={SMALL}"] if config.data.recipe.size > SMALL else [])]


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Blurred noise: no two images are alike, and their JPEGs are small."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_jpegs(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """Write a JPEG of about 96 x 72 pixels for each path below `folder`."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, int(rng.integers(88, 104)), int(rng.integers(66, 80))).save(path, "JPEG", quality=90)


def words_of(line: str) -> tuple[list[str], str, list[str]]:
    """(the launcher's words, script, its arguments) of `python SCRIPT ...` or `accelerate launch [...] SCRIPT ...`."""
    words = shlex.split(line, comments=True)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[:script], words[script], words[script + 1 :]


def run_here(line: str, cwd: Path, extra: Sequence[str] = ()) -> str:
    """Run a command in this process, as one process, with additional arguments; returns what it prints."""
    _, script, arguments = words_of(line)
    folder, name = script.removesuffix(".py").split("/")
    # accelerate fixes one precision per process; here each command stands for its own process.
    AcceleratorState._reset_state()
    try:
        if folder == "train":
            return run(name, *arguments, *extra, cwd=cwd).stdout
        out = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out):
            code = importlib.import_module(f"{folder}.{name}").main([*arguments, *extra])
        assert not code, f"{line} ended with {code}: {out.getvalue()}"
        return out.getvalue()
    finally:
        AcceleratorState._reset_state()


def launch(line: str, cwd: Path, extra: Sequence[str] = (), as_typed: bool = False) -> subprocess.Popen[str]:
    """Start a command with additional arguments, on the CPU, one thread per process.

    as_typed: by the installed program `accelerate`, all of whose processes are new interpreters; else they are warm ones.
    """
    launcher, script, arguments = words_of(line)
    assert launcher[:2] == ["accelerate", "launch"]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if as_typed:
        launcher = [str(Path(sys.executable).with_name("accelerate")), *launcher[1:]]
    else:
        launcher = [warm.python(), "-m", "accelerate.commands.launch", *launcher[2:]]
        env["PYTHON_EXEC"] = warm.python()
    command = [*launcher, script, *arguments, *extra]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
