"""Under real launchers: they are killed, they start failed processes again, they report errors, they were asked for more."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from drills.launchers import ACCELERATE, HELD, SEVERAL, alive, killed_launcher, launched, sessions, until
from helpers.launch import ROOT, tiny_config
from helpers.ports import free_port

DOCS = (ROOT / "docs/runs.md").read_text()


def ranks(folder: Path) -> list[int]:
    """Those of torch's launcher among them, in the order of their ranks."""
    return sorted(one.pid for one in alive(folder) if "-u" in one.cmdline())


def listens(port: str) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(port))) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGKILL)])
def test_no_process_outlives_its_launcher(processes: int, number: int, tiny: Path, tmp_path: Path) -> None:
    """Every signal, of one process and of two: tests/drills/long.py --full --only launchers."""
    killed_launcher(processes, number, tiny, tmp_path)


def test_what_dies_is_started_again_and_what_was_stopped_is_not(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # docs/runs.md says why
    config, folder = tiny_config(tmp_path, tiny), tmp_path / "runs/r"
    torchs = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=2")
    launcher = launched(torchs, config, "schedule.epochs=2000", "run=r", cwd=tmp_path, script=HELD)
    until((folder / "checkpoints/latest").exists)
    os.kill(ranks(tmp_path)[1], signal.SIGKILL)
    until(lambda: len(sessions(folder)) == 2)
    (folder / "stop").touch()
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "Traceback" not in said and "fault of the program" not in said, said
    assert "resumed after step" in said and said.count("stopped by the stop file after step") == 1
    assert len(sessions(folder)) == 2 and sessions(folder)[-1] == "stopped" and not alive(tmp_path)


@pytest.mark.slow
def test_a_machine_that_went_comes_back(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/runs.md has it, both launchers on this machine. When one is killed its process goes, too, and the other waits."""
    config, folder = tiny_config(tmp_path, tiny), tmp_path / "runs/r"
    (line,) = re.findall(r"^ +(export TORCH_\S+)$", DOCS, re.MULTILINE)
    monkeypatch.setenv(*line.removeprefix("export ").split("="))
    (options,) = re.findall(r"accelerate launch (.*--machine_rank RANK.*)\\\n", DOCS)
    options = options.replace("--num_processes 16", "--num_processes 2")
    address = ("--main_process_ip", "127.0.0.1", "--main_process_port", free_port())

    def machine(rank: int) -> subprocess.Popen[str]:
        words = options.replace("RANK", str(rank)).split()
        launcher = ("accelerate.commands.launch", *words, *address)
        return launched(
            launcher, config, "schedule.epochs=4000", "run=r", cwd=tmp_path, script=HELD, python=sys.executable
        )

    first = machine(0)
    until(lambda: listens(address[3]))  # the address is that of the first
    second = machine(1)
    until((folder / "checkpoints/latest").exists)
    second.kill()
    second.communicate(timeout=300)
    until(lambda: sessions(folder) == ["stopped"])
    second = machine(1)
    until(lambda: len(sessions(folder)) == 2)
    (folder / "stop").touch()
    for one in (first, second):
        said, _ = one.communicate(timeout=300)
        assert one.returncode == 0, said
    assert sessions(folder) == ["stopped", "stopped"] and not alive(tmp_path)


def test_of_two_processes_one_tells_an_error_and_the_launcher_ends_with_it(tmp_path: Path) -> None:
    """What torch's launcher prints around it is its own."""
    launcher = launched(
        (*ACCELERATE, *SEVERAL), ROOT / "configs/cifar100_lt/bsce_if100.yaml", "optim.lrr=1", cwd=tmp_path
    )
    said, _ = launcher.communicate(timeout=300)
    line = "error: unknown key 'optim.lrr' (command line); nearest: optim.lr"
    assert launcher.returncode == 1 and said.splitlines().count(line) == 1, said
    assert f"traceback : {line}" in said.partition("Root Cause")[2]


def test_several_processes_that_accelerate_does_not_start(tmp_path: Path) -> None:
    """With --quiet nothing of accelerate's own stands around the line."""
    one = ("accelerate.commands.launch", "--quiet", "--cpu", "--num_processes=2", *ACCELERATE[1:])
    launcher = launched(one, ROOT / "configs/cifar100_lt/bsce_if100.yaml", cwd=tmp_path)
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 1 and said.startswith("error: accelerate launch was asked for several processes")
    assert "type accelerate launch --multi_gpu --num_processes N" in said and said.count("\n") == 1
