"""Stopping: real signals at chosen moments of a real run; the same command then ends as an undisturbed run does."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.launch import finish, run, start, tiny_config

from train import experiment, loop
from train.ema import Ema
from train.run import stops
from train.run.stops import EXIT_CODE, Stops

EMA = ["ema.decay=0.9", "eval.every_epochs=1", "save.every_epochs=2", "optim.accumulate=2"]


def files_of(folder: Path) -> dict[str, object]:
    """What must not depend on interruptions: weights, average, and all metrics except speed."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    told = [{name: line.get(name) for name in ("step", "loss", "lr", "test", "test_ema")} for line in lines]
    result = json.loads((folder / "result.json").read_text())
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "ema": (folder / "model_ema.safetensors").read_bytes(),
        "metrics": told,
        "result": {name: value for name, value in result.items() if name != "speed"},
    }


@pytest.fixture(scope="module")
def calm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("calm")
    run("teacher", tiny_config(folder, tiny), "run=r", *EMA, cwd=folder)
    return files_of(folder / "runs/r")


def once(function: Callable, before: Callable[..., bool]) -> Callable:
    """The same function; the first time that `before(arguments)` is true, this process gets a SIGTERM before the call."""
    sent = []

    def wrapped(*arguments, **named):
        if not sent and before(*arguments, **named):
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)

    return wrapped


MOMENTS = {
    "first step": (loop.Meters, "add", lambda meters, step, *_: True),
    "middle of the second epoch": (loop.Meters, "add", lambda meters, step, *_: step == 10),
    "save": (loop.Saver, "save", lambda *_, **__: True),
    "evaluation": (experiment, "evaluate", lambda *_, **__: True),
    "evaluation of the average": (Ema, "applied", lambda *_: True),
    "last evaluation": (experiment.Experiment, "_end", lambda *_: True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_at_any_moment_it_is_saved_and_goes_on(
    moment: str, calm: dict, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, when = MOMENTS[moment]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, once(getattr(owner, name), when))
        done = run("teacher", tiny_config(tmp_path, tiny), "run=r", *EMA, cwd=tmp_path, check=False)
    assert done.returncode == EXIT_CODE, done.stderr
    assert "SIGTERM" in done.stderr and "the same command goes on" in done.stderr
    record = json.loads((tmp_path / "runs/r/run.json").read_text())
    assert record["status"] == "stopped" and "SIGTERM" in record["sessions"][-1]["message"]
    again = run("teacher", tiny_config(tmp_path, tiny), "run=r", *EMA, cwd=tmp_path)
    assert "resumed after step" in again.stdout
    assert files_of(tmp_path / "runs/r") == calm


def test_a_stop_file_stops_and_is_taken_away(tiny: Path, tmp_path: Path) -> None:
    stop = tmp_path / "runs/s/stop"
    threading.Thread(target=_when, args=((tmp_path / "runs/s/metrics.jsonl").exists, stop.touch)).start()
    done = run("teacher", tiny_config(tmp_path, tiny), "run=s", "schedule.epochs=400", *EMA, cwd=tmp_path, check=False)
    assert done.returncode == EXIT_CODE and "stopped by the stop file" in done.stderr
    assert not stop.exists()


def test_stopped_again_in_the_evaluation_that_was_cut_short(
    tiny: Path, tmp_path: Path, calm: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by file twice at one evaluation: it saves and stops each time; then killed after it: its line appears once."""
    given, config = ["run=r", *EMA], tiny_config(tmp_path, tiny)
    folder = tmp_path / "runs/r"
    real = experiment.evaluate

    def asked(*arguments, **named):
        (folder / "stop").touch()
        return real(*arguments, **named)

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(experiment, "evaluate", asked)
            patched.setattr(stops, "_FILE_SECONDS", 0.0)
            done = run("teacher", config, *given, cwd=tmp_path, check=False)
        assert done.returncode == EXIT_CODE and "stopped by the stop file after step 7 of 21, saved" in done.stderr
        assert not (folder / "stop").exists()

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop.Meters, "add", killed)
        with pytest.raises(Killed):
            run("teacher", config, *given, cwd=tmp_path)
    run("teacher", config, *given, cwd=tmp_path)
    assert files_of(folder) == calm


def _when(sign: Callable[[], bool], act: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not sign():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    act()


@pytest.fixture
def control_c() -> Iterator[None]:
    """Handle SIGINT as in a program started at a terminal, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_control_c_twice_leaves_at_once_but_a_launchers_echo_does_not(
    tmp_path: Path, control_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "_TWICE_SECONDS", 60)  # a busy machine may take a second from one line to the next
    with Stops(tmp_path, 1) as heard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.agreed() == "SIGINT"
        heard._interrupted_at -= 61
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored(tmp_path: Path, control_c: None) -> None:
    """As for a run in the background of a script, or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stops(tmp_path, 1) as heard:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert heard.agreed() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard.agreed() == "SIGUSR1"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def ranks(folder: Path) -> list[int]:
    """The processes that torch's launcher has started for a script in `folder`, in the order of their ranks."""
    found = psutil.process_iter(["cwd", "cmdline"])
    return sorted(p.pid for p in found if p.info["cwd"] == str(folder) and "-u" in (p.info["cmdline"] or []))


def _two_ranks(tiny: Path, folder: Path, number: int) -> tuple[int, str, float]:
    """Signal `number` to the second of two ranks in mid-training: (exit code, what was printed, seconds until the end)."""
    process = start("teacher", tiny_config(folder, tiny), "run=two", "schedule.epochs=2000", cwd=folder, ranks=2)
    sent = []

    def send() -> None:
        os.kill(ranks(folder)[1], number)
        sent.append(time.monotonic())

    _when(lambda: (folder / "runs/two/checkpoints/latest").exists() or process.poll() is not None, send)
    done = finish(process)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - sent[0]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_and_one_process_goes_on(tiny: Path, tmp_path: Path) -> None:
    code, told, seconds = _two_ranks(tiny, tmp_path, signal.SIGUSR1)
    assert code != 0 and seconds < 30
    record = json.loads((tmp_path / "runs/two/run.json").read_text())
    assert record["status"] == "stopped" and "SIGUSR1" in record["sessions"][-1]["message"], told
    step = int((tmp_path / "runs/two/checkpoints/latest").read_text().removeprefix("step_"))
    # Same settings, same global batch, now in one process.
    process = start("teacher", tiny_config(tmp_path, tiny), "run=two", "schedule.epochs=2000", cwd=tmp_path)
    _when(
        lambda: len((tmp_path / "runs/two/metrics.jsonl").read_text().splitlines()) > step // 7 + 2, process.terminate
    )
    done = finish(process)
    assert done.returncode == EXIT_CODE, done.stderr
    assert f"resumed after step {step} " in done.stdout and "world_size: 2 -> 1" in done.stdout


def test_a_killed_rank_ends_the_other_within_a_minute(tiny: Path, tmp_path: Path) -> None:
    code, _told, seconds = _two_ranks(tiny, tmp_path, signal.SIGKILL)
    assert code != 0 and seconds < 60
