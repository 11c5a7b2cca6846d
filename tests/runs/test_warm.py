"""The warm Python of the tests (helpers.warm) runs a program, and ends, as a new interpreter does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import warm

SHOW = """
import os, sys, torch
print(*sys.argv, os.getcwd(), sorted(os.environ), __name__, __file__, sys.path[:2], torch.get_num_threads(), sep='\\n')
print(sys.stdin.read(), file=sys.stderr)
import beside
"""
TWO = """
import os
print(os.environ["RANK"], flush=True)
"""


WAITS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background, which ignores it
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("Ctrl-C")
"""


def outcome(python: str, *words: str, **how: object) -> tuple[int, str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"OMP_NUM_THREADS": "1", "GIVEN": "1", "PYTHONPATH": "/nowhere"}
    done = subprocess.run([python, *words], env=env, text=True, capture_output=True, **how)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def test_a_script_finds_what_it_would_in_a_new_interpreter(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/show.py").write_text(SHOW)
    (tmp_path / "there/beside.py").write_text("import atexit; atexit.register(print, 'at the end')")
    new, forked = (
        outcome(python, "there/show.py", "a", "b c", input="given", cwd=tmp_path)
        for python in (sys.executable, warm.python())
    )
    assert forked[1].splitlines() == new[1].splitlines()
    assert forked == new and new[0] == 0 and new[1].endswith("at the end\n") and new[2] == "given\n"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('words')", 1, "words\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os._exit(3)", 3, ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_a_new_interpreter_does(code: str, status: int, said: str) -> None:
    found = outcome(warm.python(), "-c", code)
    assert found[0] == status and found[2].endswith(said) and bool(found[2]) == bool(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_signals_reach_the_fork(number: signal.Signals) -> None:
    """SIGKILL ends the fork, too: only then is the end of its output seen."""
    process = subprocess.Popen([warm.python(), "-c", WAITS], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(number)
    rest, _ = process.communicate(timeout=300)
    assert (process.returncode, rest) == ((0, "Ctrl-C\n") if number == signal.SIGINT else (-number, ""))


def test_torchs_launcher_starts_warm_ranks(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    words = [warm.python(), "-m", "torch.distributed.run", "--nproc_per_node", "2", "two.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm.python()}
    done = subprocess.run(words, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300)
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["0", "1"]), done.stderr
