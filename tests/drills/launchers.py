"""The drill of launchers that die: whatever ends them, no process of theirs goes on, and the run can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from helpers import warm
from helpers.launch import ROOT, run, tiny_config

ACCELERATE = ("accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no", "--num_machines=1")
SEVERAL = ("--multi_gpu", "--num_processes=2", "--main_process_port=0")
TEACHER, HELD = ROOT / "train/teacher.py", ROOT / "tests/helpers/held.py"  # the second waits in its middle


def launched(
    launcher: tuple[str, ...], *arguments: object, cwd: Path, script: Path = TEACHER, python: str = ""
) -> subprocess.Popen[str]:
    """A script under a launcher, which is a fork of the warm Python. Its processes are too; of another `python` they are
    its children, as for a user. accelerate's only process always is.
    """
    command = [warm.python(), "-m", *launcher, str(script), *map(str, arguments)]
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python or warm.python()}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=os.environ | env, text=True, start_new_session=True, **streams)


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # to look at all processes takes as long


def alive(folder: Path) -> list[psutil.Process]:
    """The processes that run in `folder`."""
    return [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder)]


def sessions(run: Path) -> list[str]:
    """How the sessions of a run ended; the last may go on."""
    return [one["status"] for one in json.loads((run / "run.json").read_text())["sessions"]]


def killed_launcher(processes: int, number: int, tiny: Path, folder: Path) -> None:
    """The run is saved, its lock is free, and the same command ends with the weights of a run that was left alone."""
    given = (tiny_config(folder, tiny), "schedule.epochs=2")
    work = folder / "work"
    work.mkdir()
    several = SEVERAL if processes > 1 else ("--num_processes=1",)
    launcher = launched((*ACCELERATE, *several), *given, "run=r", cwd=work, script=HELD, python=sys.executable)
    until((work / "runs/r/metrics.jsonl").exists)
    launcher.send_signal(number)
    said, _ = launcher.communicate(timeout=300)
    until(lambda: not alive(work))
    passed_on = processes == 2 and number == signal.SIGTERM  # torch's launcher does
    assert f"stopped by {'SIGTERM' if passed_on else 'the end of its launcher'} after step" in said
    assert sessions(work / "runs/r") == ["stopped"]
    again = run("teacher", *given, "run=r", cwd=work, ranks=processes)
    assert "resumed after step" in again.stdout
    run("teacher", *given, "run=calm", cwd=work, ranks=processes)
    weights = [(work / f"runs/{name}/model.safetensors").read_bytes() for name in ("r", "calm")]
    assert weights[0] == weights[1]
