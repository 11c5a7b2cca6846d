"""Ctrl-C in the demo; the tests of the README run its steps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.launch import ROOT

DEMO = """
import sys
from rich.console import Console
from tools import demo
from train.run.endings import exit_code
sys.exit(exit_code(lambda: demo.step(Console(), "a step", ["-c", sys.argv[1], sys.argv[2]]), "interrupted; goes on"))
"""
SAVES = """
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
pathlib.Path(sys.argv[1], "began").touch()
while not asked:
    time.sleep(0.01)
time.sleep(1)
pathlib.Path(sys.argv[1], "saved").touch()
sys.exit(3)
"""


def test_a_step_that_is_interrupted_can_save(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of the terminal: the demo waits until its step, a training, has saved."""
    command = [sys.executable, "-c", DEMO, SAVES, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (tmp_path / "saved").exists() and process.returncode == 130 and said == "interrupted; goes on\n"
