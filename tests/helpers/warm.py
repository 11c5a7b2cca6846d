"""A Python that has imported torch already: it starts in 0.05 s instead of two seconds, by a fork.

`python()` is the path of a program that is typed as `python` is: [-u] SCRIPT|-m MODULE|-c CODE and arguments. It asks a server,
one for each session of tests, to fork; the fork takes over its arguments, directory, environment and standard streams, runs
as __main__ does, and ends as an interpreter does, except that objects are not taken down. What began the program sees the usual
process: signals are passed on (SIGKILL by the end of the connection: wait for the end of the output, as `communicate` does), and
the exit status is the fork's own.

Not passed on: what is read when torch is imported (OMP_NUM_THREADS is 1), limits, ignored signals, sessions. Tests of these, and
of the start itself, use sys.executable. The product is imported from this repository only.
"""

import atexit
import contextlib
import functools
import marshal
import os
import selectors
import signal
import socket
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVED = "DIVE_WARM_PYTHON"  # in the environment: the path, where a process above this one has the server
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
IMPORTED = [
    *("torch.distributed.run", "accelerate.commands.launch", "torch._dynamo", "scipy.linalg", "tools.logits"),
    *(f"train.{script}" for script in ("teacher", "distill", "router", "cache_logits", "evaluate")),
]
OPTIONAL = [  # imported where they are installed
    "torch._inductor.compile_fx",
    "tools.reporting.sections",
    "sklearn.manifold",
    "nvidia.dali.plugin.pytorch",
]


@functools.cache
def python() -> str:
    """The program's path; its server lives as long as the process that called this first, and serves those it starts, too."""
    if served := os.environ.get(SERVED):
        return served
    import shlex
    import shutil
    import subprocess
    import tempfile

    folder = tempfile.mkdtemp(prefix="warm-")
    program, address = f"{folder}/python", f"{folder}/socket"
    with open(os.open(program, os.O_CREAT | os.O_WRONLY, 0o755), "w") as file:
        client = [sys.executable, "-IS", os.path.abspath(__file__), "client", address]
        file.write(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    server = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "server", address],
        env=env | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner and server.stdin:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:  # a process that a test left holds the other end
                server.kill()
                server.wait()
            shutil.rmtree(folder)

    atexit.register(end)
    assert server.stdout and server.stdout.readline() == b"ready\n", "it has said why not"
    return program


def client(address: str, words: list[str]) -> None:
    """Have a fork run the words, and end as it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until they can be passed on
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    data = marshal.dumps((words, os.getcwd(), dict(os.environ)))
    socket.send_fds(line, [len(data).to_bytes(8, "little")], [0, 1, 2])
    line.sendall(data)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: line.send(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    answer = line.recv(4)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    if len(answer) < 4:
        sys.exit("the server of tests/helpers/warm.py is gone")
    status = int.from_bytes(answer, "little")
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


class Server:
    """Forks for each connection; `requests` returns in the forks alone, with (words, directory, environment)."""

    def __init__(self, address: str):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._ended, self._wakes = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(self._wakes, False)
        self._before = {
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),  # it wakes the selector
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        }
        signal.set_wakeup_fd(self._wakes)
        self._selector = selectors.DefaultSelector()
        self._forks: dict[int, socket.socket] = {}

    def requests(self) -> tuple[list[str], str, dict[str, str]]:
        for source in (self._listener, self._ended, 0):
            self._selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data:
                    if key.data in self._forks:  # not reaped a moment ago
                        self._hear(key.data, key.fileobj)
                elif key.fileobj is self._listener:
                    request = self._accept()
                    if request:
                        return request
                elif key.fileobj == self._ended:
                    os.read(self._ended, 4096)
                    self._reap()
                else:  # the end of the input
                    for pid in self._forks:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)

    def _accept(self) -> tuple[list[str], str, dict[str, str]] | None:
        line, _ = self._listener.accept()
        size, streams, _, _ = socket.recv_fds(line, 8, 3)
        data = b""
        while len(data) < int.from_bytes(size, "little"):
            if not (more := line.recv(1 << 20)):
                break
            data += more
        if len(streams) < 3 or len(data) < int.from_bytes(size, "little"):  # killed while it asked
            for stream in streams:
                os.close(stream)
            line.close()
            return None
        pid = os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            self._forks[pid] = line
            self._selector.register(line, selectors.EVENT_READ, pid)
            return None
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._selector.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for other in (self._listener, line, *self._forks.values()):
            other.close()
        for other in (self._ended, self._wakes, *streams):
            os.close(other)
        return marshal.loads(data)

    def _hear(self, pid: int, line: socket.socket) -> None:
        """Signals for a fork; the end of the line is SIGKILL."""
        try:
            numbers = line.recv(64)
        except ConnectionError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(pid, number)
        if not numbers:
            self._selector.unregister(line)

    def _reap(self) -> None:
        while self._forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            line = self._forks.pop(pid)
            if line.fileno() in self._selector.get_map():
                self._selector.unregister(line)
            with contextlib.suppress(ConnectionError):  # it was killed
                line.send(status.to_bytes(4, "little"))
            line.close()


def server(address: str) -> None:
    """Import, serve, and in each fork run what was asked for."""
    import gc
    import importlib

    sys.path[0] = ROOT
    for name in IMPORTED:
        importlib.import_module(name)
    for name in OPTIONAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _first_uses()
    gc.freeze()  # otherwise each fork copies every page at its end, when it looks for garbage
    serving = Server(address)
    print("ready", flush=True)
    words, directory, environment = serving.requests()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == "-u":
        words = words[1:]
    _run_as_main(words, directory, environment)


def _first_uses() -> None:
    """Do what numba and the settings do once in a process: a quarter of a second in each fork otherwise. It starts no thread."""
    from numba.core.registry import cpu_target

    from train import config, settings

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    settings.load(config.Config, f"{ROOT}/configs/cifar100_lt/bsce_if100.yaml")


def _run_as_main(words: list[str], directory: str, environment: dict[str, str]) -> None:
    """Run SCRIPT|-m MODULE|-c CODE with its arguments; return for what the interpreter has to say at the end."""
    import runpy
    import threading
    import types

    kind, words = (words[0], words[1:]) if words[0] in ("-m", "-c") else ("", words)
    sys.argv = ["-c", *words[1:]] if kind == "-c" else words
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        if kind == "-m":
            sys.path[0] = directory
            sys.modules.pop(words[0], None)
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.path[0] = ""
            exec(compile(words[0], "<string>", "exec"), vars(main))
        else:
            main.__file__ = os.path.abspath(words[0])
            sys.path[0] = os.path.dirname(main.__file__)
            with open(main.__file__, "rb") as file:
                exec(compile(file.read(), main.__file__, "exec"), vars(main))
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code & 0xFF)  # to take down torch would take a quarter of a second


if __name__ == "__main__":
    _, kind, address, *words = sys.argv
    client(address, words) if kind == "client" else server(address)
