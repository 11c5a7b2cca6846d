"""With a small process in the launcher's place; real launchers are in tests/runs/test_launchers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from train.run import launcher

ROOT = Path(__file__).parents[4]
NAMES = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID", *launcher._SIZES)
SINGLE = {"ACCELERATE_DYNAMO_MODE": "default"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
PARENT = """
import os, subprocess, sys
child, leaves, *variables = sys.argv[1:]
env = os.environ | dict(one.split("=") for one in variables)
process = subprocess.Popen([sys.executable, "-c", child, leaves], env=env, stdout=subprocess.PIPE)
process.stdout.readline()
if not leaves:
    process.wait()
"""
CHILD = """
import os, sys, time
from train.run import launcher
launcher.parent()
print(flush=True)
while sys.argv[1] and os.getppid() == launcher.parent():
    time.sleep(0.001)
print({expression}, file=sys.stderr)
"""


def child_finds(expression: str, own: dict[str, str], given: dict[str, str] | None = None, leaves: str = "") -> str:
    """What a process finds that another has started, with variables of its `own` beside those `given` to that one.

    leaves: not empty if its parent ends before it looks.
    """
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    variables = [f"{name}={value}" for name, value in own.items()]
    command = [sys.executable, "-c", PARENT, CHILD.format(expression=expression), leaves, *variables]
    done = subprocess.run(command, cwd=ROOT, env=clean | (given or {}), stderr=subprocess.PIPE, text=True, check=True)
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("own", "leaves", "gone"),
    [
        (SINGLE, "leaves", "True"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "leaves", "True"),
        (SINGLE, "", "False"),
        ({}, "leaves", "False"),  # nohup python ... &
    ],
)
def test_only_a_launcher_can_be_gone(own: dict[str, str], leaves: str, gone: str) -> None:
    assert child_finds("launcher.gone()", own, leaves=leaves) == gone


@pytest.mark.parametrize(
    ("own", "given", "asked"),
    [
        (SINGLE | ADDRESS, {}, "True"),
        (SINGLE | ADDRESS, ADDRESS | {"MASTER_ADDR": "10.0.0.1"}, "True"),
        (SINGLE | ADDRESS, ADDRESS, "False"),  # the user's own variables
        (SINGLE, {}, "False"),
        (ADDRESS, {}, "False"),  # no launcher
        (SINGLE | ADDRESS | {"WORLD_SIZE": "2"}, {}, "False"),
        (SINGLE | ADDRESS | {"PMI_SIZE": "2"}, {}, "False"),  # mpirun starts the others
    ],
)
def test_several_processes_were_asked_for_and_one_was_started(
    own: dict[str, str], given: dict[str, str], asked: str
) -> None:
    assert child_finds("launcher.asked_for_several()", own, given) == asked


def test_torchs_launcher_repeats_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    launcher.report("error: x")
    failure = ProcessFailure(local_rank=1, pid=0, exitcode=2, error_file=str(path))
    assert "traceback : error: x\n" in str(ChildFailedError("teacher.py", {1: failure}))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone/error.json"))
    launcher.report("error: x")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    launcher.report("error: x")
    assert list(tmp_path.iterdir()) == [path]
