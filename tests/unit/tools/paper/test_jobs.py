"""Processes: their order and number, failures, signals, GPUs, and the lock of OUT."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.paper_runs import IF10, small_choice

from pipelines.errors import UserError
from tools.paper import jobs as reproduce_jobs
from tools.paper.jobs import Jobs, Stopped, claimed, makespan, start_process
from tools.paper.plan import Task, table_tasks

STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: open('asked', 'w').close())
open('ready', 'w').close()
while True: time.sleep(0.05)
"""


def program(name: str, text: str, *needs: str) -> Task:
    return Task(name=name, kind="data", role="x", dataset=IF10, folder=name, arguments=(text,), needs=needs)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, list[str]], Jobs]]:
    """Makes Jobs that run the Python texts of `program`, without imports."""
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        reproduce_jobs,
        "start_process",
        lambda command, *rest: start_process(["-I", "-S", "-c", command[1]], *rest),
    )
    yield lambda slots, said: Jobs(tmp_path, slots, 1, said.append)


def test_makespan_keeps_the_order_and_the_slots() -> None:
    tasks = table_tasks(small_choice(), [IF10], [0])  # data, bsce, cache, dive, ce
    seconds = {"data": 1.0, "bsce": 10.0, "cache": 5.0, "dive": 10.0, "ce": 12.0}
    assert makespan(tasks, lambda task: seconds[task.role], 1) == 38
    assert makespan(tasks, lambda task: seconds[task.role], 2) == 26
    assert makespan(tasks[3:], lambda task: seconds[task.role], 2) == 12, "what is not among them is there already"


def test_a_failure_takes_only_what_needs_it(jobs: Callable[[int, list[str]], Jobs]) -> None:
    said: list[str] = []
    tasks = [
        program("a", "print('error: no room'); print('more'); raise SystemExit(2)"),
        program("b", "", "a"),
        program("c", "", "b"),
        program("d", "print('fine')"),
    ]
    ended = jobs(1, said).run(tasks)
    assert (ended["a"].code, ended["a"].words) == (2, "error: no room (exit code 2)")
    assert (ended["b"].code, ended["b"].words) == (None, "it needs a, which failed") and ended["c"].code is None
    assert ended["d"].code == 0 and any(line.startswith("failed: a: error: no room") for line in said)


def test_as_many_at_a_time_as_asked_for(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    """Two that wait for each other, and one after both."""
    meet = "import os, time\nopen('{0}', 'w').close()\nend = time.monotonic() + 20\n"
    meet += "while not os.path.exists('{1}'): time.sleep(0.01 if time.monotonic() < end else -1)"
    said: list[str] = []
    tasks = [
        program("a", meet.format("a", "b")),
        program("b", meet.format("b", "a")),
        program("c", "open('a')", "a", "b"),
    ]
    ended = jobs(2, said).run(tasks)
    assert [end.code for end in ended.values()] == [0, 0, 0] and said[:2] == ["start: a", "start: b"]
    assert said.index("start: c") > max(
        i for i, line in enumerate(said) if line.startswith("done: ") and "done: c" not in line
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_each_once_and_starts_no_more(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, number: signal.Signals
) -> None:
    save = "import time\ntry: open('{0}', 'w').close(); time.sleep(20)\nexcept KeyboardInterrupt: open('{0}.saved', 'x').close()"

    def interrupt() -> None:
        while not all((tmp_path / name).exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        jobs(2, []).run(
            [program("a", save.format("a")), program("b", save.format("b")), program("c", "open('c', 'w')")]
        )
    assert stopped.value.code == 128 + number and signal.getsignal(number) is before
    assert all((tmp_path / f"{name}.saved").exists() for name in "ab") and not (tmp_path / "c").exists()


def test_what_failed_before_a_signal_is_not_forgotten(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    here = f"import os, signal\nos.kill({os.getpid()}, signal.SIGINT)"
    with pytest.raises(Stopped) as stopped:
        jobs(1, []).run([program("a", "raise SystemExit(2)"), program("b", here), program("c", "open('c', 'w')")])
    assert stopped.value.ended["a"].code == 2 and not (tmp_path / "c").exists()


def test_our_own_error_lets_the_others_save(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    (tmp_path / "logs" / "b.log").mkdir(parents=True)  # cannot be opened
    save = "import time\ntry: open('a', 'w').close(); time.sleep(20)\nexcept KeyboardInterrupt: open('a.saved', 'x').close()"
    late = "import os, time\nwhile not os.path.exists('a'): time.sleep(0.01)"
    with pytest.raises(IsADirectoryError):
        jobs(2, []).run([program("a", save), program("first", late), program("b", "", "first")])
    assert (tmp_path / "a.saved").exists()


def test_a_passing_fault_is_tried_once_more(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    text = "import os\nopen('{0}', 'a').write('x')\n"
    text += "if os.path.getsize('{0}') < {1}: raise SystemExit('error: torn: run the same command again')"
    said: list[str] = []
    ended = jobs(1, said).run(
        [program("a", text.format("a", 2)), program("b", text.format("b", 3)), program("c", "", "a")]
    )
    assert [ended[name].code for name in "abc"] == [0, 1, 0]
    assert (tmp_path / "a").read_text() == "xx" and (tmp_path / "b").read_text() == "xx"


def test_gpus_are_shared_out(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    text = "import os, time\nopen('{0}', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    text += "while len(os.listdir('.')) < 4: time.sleep(0.01)"
    jobs(3, []).run([program(name, text.format(name)) for name in "abc"])  # logs, and one file of each
    assert [(tmp_path / name).read_text() for name in "abc"] == ["4", "6", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert reproduce_jobs.gpus() == []


def test_what_does_not_stop_is_killed(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce_jobs, "_GRACE_SECONDS", 2.0)  # in which a busy machine lets it hear the signal

    def interrupt() -> None:
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped) as stopped:
        jobs(1, []).run([program("a", STUBBORN.replace("while True:", "for _ in range(400):"))])
    assert (tmp_path / "asked").exists() and stopped.value.ended == {}


def test_killed_it_leaves_nothing_running_and_out_is_kept_till_then(tmp_path: Path) -> None:
    """kill -9 of the tool: its training is asked to stop by the kernel, and holds OUT for as long as it is still saving."""
    source, target = os.pipe()
    tool = os.fork()
    if tool == 0:  # the tool: no return from here
        with claimed(tmp_path), open(tmp_path / "log", "w") as log:
            process = start_process(["-I", "-S", "-c", STUBBORN], tmp_path, log, 1)
            os.write(target, str(process.pid).encode())
            time.sleep(60)
        os._exit(0)
    training = int(os.read(source, 20))
    try:
        wait_for(tmp_path / "ready")
        os.kill(tool, signal.SIGKILL)
        os.waitpid(tool, 0)
        wait_for(tmp_path / "asked")
        with (
            pytest.raises(UserError, match=rf"is in use by process {tool} on .* that is still saving"),
            claimed(tmp_path),
        ):
            pass
    finally:
        os.kill(training, signal.SIGKILL)
    until = time.monotonic() + 10
    while True:  # the lock goes when the process has gone
        try:
            with claimed(tmp_path):
                break
        except UserError:
            assert time.monotonic() < until
            time.sleep(0.02)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)
