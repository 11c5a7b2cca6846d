"""Running tasks as processes of their own, several at a time, until all are done or a signal stops this program.

Owns processes, signals, logs (OUT/logs/NAME.log) and the lock of OUT, for tools/reproduce.py and sweep.py. Knows nothing of
trainings. Invariant: however this program ends, the processes that it started are asked to stop, by the kernel if need be, and
end too.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Generic, NamedTuple, Protocol, TypeVar

import torch

from pipelines.errors import UserError
from pipelines.files import Held, lock
from tools.paper.plan import Task
from train.run.lock import holder_line
from train.watch.text import clock

LOGS = "logs"
_PROMPT = "$ python "  # begins a session in a log
_LOCK = "reproduce.lock"
_THREADS = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")  # each would be all cores, in every job
_POLL_SECONDS = 0.2
_STILL_SECONDS = 300.0  # between two lines that say what is running
_GRACE_SECONDS = 90.0  # for a process that was asked to stop: an entry script needs at most 30
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # what stops a training, too
_AGAIN = "run the same command again"  # how a script says that the fault was not its own, and is put right
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl


class Ending(NamedTuple):
    """How a task ended: exit code (None = it was never started), seconds, and what there is to say of a failure."""

    code: int | None
    seconds: float
    words: str


class Stopped(Exception):
    """A signal asked this program to stop. code: its exit code; ended: how tasks had ended before."""

    def __init__(self, number: int, ended: dict[str, Ending]):
        super().__init__(signal.Signals(number).name)
        self.code, self.ended = 128 + number, ended


@contextmanager
def claimed(out: Path, option: str = "--out") -> Iterator[None]:
    """Make OUT and keep others out of it, for as long as this process or one that it started lives.

    option: what named OUT on the command line, for messages.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror}; give another {option}") from error
    try:
        os.set_inheritable(handle, True)  # the lock goes with the open file, so that a training holds it too
        try:
            lock(handle, holder=holder_line())
        except Held as held:
            holder = str(held) or "another such command"
            raise UserError(
                f"{out} is in use by {holder}, or by a training that it left and that is still saving: wait for it, stop it, or "
                f"give another {option}"
            ) from held
        yield
    finally:
        os.close(handle)


def _stop_with_parent() -> None:
    """In the child: have the kernel send SIGINT when this program dies, even of SIGKILL."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def gpus() -> list[str]:
    """Names of the GPUs to share out, as CUDA_VISIBLE_DEVICES has them; none where there is nothing to choose."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    return names if len(names) > 1 else []


def start_process(
    command: list[str], folder: Path, log: IO[str], threads: int, gpu: str | None = None
) -> subprocess.Popen[str]:
    """`python COMMAND` in `folder`, on so many threads and one GPU, writing to `log`; the terminal's Ctrl-C does not reach it."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=dict.fromkeys(_THREADS, str(threads)) | os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        close_fds=False,  # the lock of OUT goes with it
        start_new_session=True,
        preexec_fn=_stop_with_parent,
    )


class Job(Protocol):
    """One command. needs: the names of those that must have ended before."""

    @property
    def name(self) -> str: ...

    @property
    def command(self) -> list[str]:
        """What follows `python`."""
        ...

    @property
    def needs(self) -> tuple[str, ...]: ...


J = TypeVar("J", bound=Job)


class _Running(NamedTuple, Generic[J]):
    task: J
    process: subprocess.Popen[str]
    since: float
    slot: int


class Jobs(Generic[J]):
    """At most `slots` tasks at a time, each on `threads` threads; of several GPUs the slots take turns.

    out: OUT, for the logs; folder: in which the commands run, if not in OUT. say: a function for lines on the screen. left: given
    the tasks not ended yet, a text such as "about 1:00:00 left".
    state: how far a running task is, as text.
    """

    def __init__(
        self,
        out: Path,
        slots: int,
        threads: int,
        say: Callable[[str], None],
        left: Callable[[Sequence[J]], str] = lambda tasks: "",
        state: Callable[[J], str] = lambda task: "",
        folder: Path | None = None,
    ):
        self._folder = folder or out
        self._out, self._slots, self._threads = out, slots, threads
        self._say, self._left, self._state = say, left, state
        self._gpus = gpus()
        self._running: list[_Running[J]] = []
        self._tried_again: set[str] = set()
        self._signal: int | None = None
        self._asked = 0.0

    def run(self, tasks: Sequence[J]) -> dict[str, Ending]:
        """Run all tasks, each after those of its needs that are among them; returns {name: how it ended}, or raises Stopped.

        A task that fails takes only those with it that need it. One that says that the same command will do is tried once more.
        """
        waiting, ended = list(tasks), dict[str, Ending]()
        said = time.monotonic()
        with self._listening():
            while self._running or (waiting and self._signal is None):
                for task, end in self._reap():
                    again = _AGAIN in end.words and task.name not in self._tried_again
                    if again:
                        self._tried_again.add(task.name)
                        waiting.insert(0, task)
                    elif end.code == 0 or self._signal is None:  # one that was stopped has not failed
                        ended[task.name] = end
                    self._report(task, end, len(ended), len(tasks), waiting)
                waiting = [task for task in waiting if not self._give_up(task, ended)]
                self._fill(waiting, ended)
                if time.monotonic() - said >= _STILL_SECONDS:
                    said = time.monotonic()
                    self._say(
                        "running: " + ", ".join(f"{one.task.name} {self._state(one.task)}" for one in self._running)
                    )
                self._wait()
        if self._signal is not None:
            raise Stopped(self._signal, ended)
        return ended

    # ---- the processes ----

    def _fill(self, waiting: list[J], ended: dict[str, Ending]) -> None:
        """Start what can start."""
        open_names = {task.name for task in waiting} | {one.task.name for one in self._running}
        for task in list(waiting):
            if self._signal is not None or len(self._running) >= self._slots:
                return
            if not open_names.intersection(task.needs):
                waiting.remove(task)
                self._start(task)

    def _start(self, task: J) -> None:
        log = self.log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.write(f"{_PROMPT}{shlex.join(task.command)}\n")
            file.flush()
            slot = min(set(range(self._slots)) - {one.slot for one in self._running})
            gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
            since = time.monotonic()
            process = start_process(task.command, self._folder, file, self._threads, gpu)
            self._running.append(_Running(task, process, since, slot))
        if self._signal is not None:  # a signal that arrived meanwhile has not reached this new process
            self._running[-1].process.send_signal(signal.SIGINT)
        self._say(f"start: {task.name}")

    def log(self, task: J) -> Path:
        """Where a task's output goes."""
        return self._out / LOGS / f"{task.name}.log"

    def _reap(self) -> Iterator[tuple[J, Ending]]:
        """Remove the processes that have ended from the list."""
        for one in list(self._running):
            code = one.process.poll()
            if code is None:
                continue
            self._running.remove(one)
            words = "" if code == 0 else f"{_last_words(self.log(one.task))} (exit code {code})"
            yield one.task, Ending(code, time.monotonic() - one.since, words)

    def _give_up(self, task: J, ended: dict[str, Ending]) -> bool:
        """Whether a task can never start, because one that it needs has failed."""
        lost = [name for name in task.needs if name in ended and ended[name].code != 0]
        if lost:
            ended[task.name] = Ending(None, 0.0, f"it needs {lost[0]}, which failed")
            self._say(f"not run: {task.name}: {ended[task.name].words}")
        return bool(lost)

    def _report(self, task: J, end: Ending, done: int, total: int, waiting: Sequence[J]) -> None:
        if self._signal is not None:
            self._say(f"stopped: {task.name}" if end.code else f"done: {task.name}")
        elif end.code:
            self._say(f"failed: {task.name}: {end.words}; log: {self.log(task)}")
        else:
            left = self._left([*waiting, *(one.task for one in self._running)])
            self._say(f"done: {task.name} in {clock(end.seconds)} {self._state(task)}[{done}/{total}{left}]")

    # ---- signals ----

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass each stop signal on to the running processes, once each time it arrives."""
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end_all()

    def _end_all(self) -> None:
        """After an error of our own: what is still running may save before it goes."""
        for one in self._running:
            one.process.send_signal(signal.SIGINT)
        until = time.monotonic() + _GRACE_SECONDS
        for one in self._running:
            try:
                one.process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()

    def _stop(self, number: int, _: object) -> None:
        self._signal = self._signal or number
        self._asked = self._asked or time.monotonic()
        for one in self._running:
            one.process.send_signal(signal.SIGINT)

    def _wait(self) -> None:
        time.sleep(_POLL_SECONDS if self._running else 0)
        if self._signal is not None and time.monotonic() - self._asked > _GRACE_SECONDS:
            for one in self._running:
                one.process.kill()


def _last_words(log: Path) -> str:
    """The line of the last session in a log that says why it ended: its last error, or simply its last line."""
    session = log.read_text(errors="replace").rpartition(_PROMPT)[2]
    lines = [line.strip() for line in session.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def makespan(tasks: Sequence[Task], seconds: Callable[[Task], float], slots: int) -> float:
    """Seconds until all are done when `slots` of them run at a time, each after those of its needs that are among them."""
    waiting, running, now = list(tasks), list[tuple[float, Task]](), 0.0
    while waiting or running:
        open_names = {task.name for task in waiting} | {task.name for _, task in running}
        for task in [task for task in waiting if not open_names.intersection(task.needs)][: slots - len(running)]:
            waiting.remove(task)
            running.append((now + seconds(task), task))
        first = min(running, key=lambda one: one[0])
        running.remove(first)
        now = first[0]
    return now
