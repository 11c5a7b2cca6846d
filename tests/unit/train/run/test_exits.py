import ctypes
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.closed import closed

from pipelines.errors import UserError
from train.run import exits
from train.run.endings import exit_code
from train.run.exits import guard

ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_guard(capsys, monkeypatch):
    def raises(error: BaseException):
        def main(argv: list[str]) -> None:
            raise error

        return main

    monkeypatch.setattr(sys, "argv", ["distill.py", "a", "b=c"])
    assert guard(lambda argv: argv != ["a", "b=c"]) == 0
    assert guard(lambda argv: None) == 0
    assert guard(lambda argv: 3) == 3
    assert guard(raises(UserError("two\nlines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert guard(raises(KeyboardInterrupt())) == 130
    assert guard(raises(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"))) == 2
    assert "(CUDA out of memory. Tried): give a smaller optim.batch" in capsys.readouterr().err
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")
    for error in (MemoryError(), full):
        assert guard(raises(error)) == 2
        assert "not enough memory on the host" in capsys.readouterr().err
    assert guard(raises(RuntimeError("can't start new thread"))) == 2
    assert guard(raises(BlockingIOError(11, "Resource temporarily unavailable"))) == 2
    assert capsys.readouterr().err.count("no more processes or threads may be started (ulimit -u") == 2
    with pytest.raises(BlockingIOError):
        guard(raises(BlockingIOError(11, "write could not complete without blocking", 5)))
    assert guard(raises(FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"))) == 2
    assert "set one by TMPDIR=FOLDER in front of the command" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        guard(raises(ZeroDivisionError()))


@pytest.mark.parametrize("place", ["closed/x", "file/x", "loop", "x" * 256, "folder"])
def test_a_place_that_the_file_system_refuses_is_one_line(tmp_path, capsys, place):
    """Wherever in the program it is met."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("closed", "folder"):
        (tmp_path / name).mkdir()
    with closed(tmp_path / "closed"):
        assert guard(lambda argv: (tmp_path / place).write_text("x")) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {tmp_path / place}"[:150])
    assert line.endswith("; give another file or folder, or make this one usable\n") and line.count("\n") == 1


def test_an_error_is_told_even_if_the_launcher_cannot_be_asked(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)

    def main(argv: list[str]) -> None:
        raise UserError("x")

    assert guard(main) == 2
    assert capsys.readouterr().err == "error: x\n"


def test_a_launcher_without_a_store_is_not_asked_for_one(capfd, monkeypatch):
    """TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: before the ranks meet nothing listens there; torch prints a stack for each try."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (given | {"TORCHELASTIC_USE_AGENT_STORE": "False"}).items():
        monkeypatch.setenv(name, value)

    def main(argv: list[str]) -> None:
        raise UserError("x")

    assert guard(main) == 2
    assert capfd.readouterr().err == "error: x\n"


def test_another_rank_that_died_is_no_fault_of_this_one(monkeypatch):
    """Gloo's words; tests/runs/test_launchers.py kills a rank."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    gloo = (
        "[/torch/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:4: Connection reset by peer. This is typically"
    )

    def main(argv: list[str]) -> None:
        raise RuntimeError(argv[0])

    with pytest.raises(UserError, match="^another process of this group has ended before its work was done"):
        exits._until_stopped(main, [gloo])
    with pytest.raises(RuntimeError, match="^a shape$"):
        exits._until_stopped(main, ["a shape"])


@pytest.mark.parametrize(("ending", "code"), [("return 7", 7), ("raise ValueError('a shape')", 1)])
def test_a_rank_ends_with_its_code_whatever_happens_at_the_interpreters_end(tmp_path, ending, code):
    """Gloo's threads abort some ranks at exit (1 in 10 measured); here every exit of the interpreter does.

    After a fault, whose traceback is printed as usual, they would also make it wait for the other ranks.
    """
    (tmp_path / "ends.py").write_text(
        textwrap.dedent(
            f"""
            import atexit, os, sys, torch
            sys.path[0] = {str(ROOT)!r}
            from train.run.exits import guard
            class Aborts:
                def __del__(self):
                    os.abort()
            at_the_end = Aborts()
            atexit.register(print, "atexit ran")
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
            def main(argv):
                print("not flushed yet")
                {ending}
            sys.exit(guard(main))
            """
        )
    )
    done = subprocess.run([sys.executable, tmp_path / "ends.py"], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (code, "not flushed yet\natexit ran\n"), done.stderr
    assert ("Traceback" in done.stderr and "ValueError: a shape" in done.stderr) == (code == 1)


def test_no_network_that_is_let_go_late_frees_the_group(tmp_path):
    """That would join gloo's threads with the interpreter's lock held, which they may need; a loop hung within 500 rounds."""
    (tmp_path / "ends.py").write_text(
        textwrap.dedent(
            f"""
            import atexit, sys, torch
            import torch.distributed.nn  # imported later, its defaults hold the group that there is
            from pathlib import Path
            sys.path[0] = {str(ROOT)!r}
            from train.run.exits import guard
            alive = []
            @atexit.register
            def last():
                alive.clear()
                names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
                print(any("gloo_runloop" in name for name in names))
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
            def main(argv):
                alive.append(torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8)))
                return 0
            sys.exit(guard(main))
            """
        )
    )
    done = subprocess.run(
        [warm.python(), tmp_path / "ends.py"], text=True, capture_output=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_half_written_library_of_torch_compile_is_deleted(capsys, tmp_path):
    """A real load: the code looks for the loader's own message."""
    torn = tmp_path / "kernel.so"
    for content in (b"", b"\x7fELF", bytes(4096)):
        torn.write_bytes(content)
        assert guard(lambda argv: ctypes.CDLL(str(torn)) and None) == 2
        assert "run the same command again" in capsys.readouterr().err
        assert not torn.exists()
    with pytest.raises(OSError, match="cannot open"):
        guard(lambda argv: ctypes.CDLL(str(torn)) and None)


def test_a_full_disk_is_no_fault_of_the_program(capsys):
    def main(argv):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"0")

    assert guard(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: No space left on device") and "make room: run the same command again" in said


def gone_reader() -> int:
    """The write end of a pipe that is no longer read."""
    source, target = os.pipe()
    os.close(source)
    return target


# Buffered, as for users: when unbuffered, argparse handles the closed pipe itself, and exits with 0.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PROGRAM = """
import sys
from train.run.exits import guard

def main(argv):
    {body}

sys.exit(guard(main))
"""


@pytest.mark.parametrize(
    "body",
    [
        "print('x')",  # stays in the buffer until the end
        "[print('x' * 1000) for _ in range(1000)]",
        "import rich.console; rich.console.Console().print('x')",
        "import argparse; argparse.ArgumentParser().parse_args(['--help'])",
    ],
)
def test_a_reader_that_has_gone_ends_it_quietly(body: str) -> None:
    pipe = gone_reader()
    program = PROGRAM.format(body=body)
    done = subprocess.run(
        [warm.python(), "-c", program], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, env=BUFFERED
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("script", ["train/teacher.py", "tools/convert.py", "tools/demo.py"])
def test_help_that_is_not_read_to_its_end(script: str) -> None:
    pipe = gone_reader()
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_no_reader_that_has_gone() -> None:
    program = PROGRAM.format(body="raise BrokenPipeError('of a worker')")
    done = subprocess.run([warm.python(), "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError: of a worker" in done.stderr


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/a", "nowhere/a: No such file or directory"),
        (".", ".: Is a directory"),
        ("x" * 300, "(300 characters): File name too long"),
        ("loop", "loop: Too many levels of symbolic links"),
        ("file/a", "file/a: Not a directory"),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(capsys, path, words):
    """Wherever it was used, and in every program."""
    Path("loop").symlink_to("loop")
    Path("file").touch()

    def main(argv: list[str]) -> None:
        Path(path).write_bytes(b"")

    for end in (guard, lambda main: exit_code(lambda: main([]))):
        assert end(main) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_fault_of_the_program_says_so():
    with pytest.raises(ZeroDivisionError) as caught:
        exit_code(lambda: 1 // 0)
    assert "fault of the program" in caught.value.__notes__[0]


def test_a_current_folder_that_was_deleted(capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_code(lambda: 0) == 2
    assert "the current folder does not exist any more" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("> /dev/full", 2, "the output cannot be written: No space left on device"),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> out", 0, ""),
    ],
)
def test_an_output_that_takes_nothing(tmp_path, shell, code, words):
    """Also in the locale C, with letters that it lacks."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from train.run.endings import exit_code, script; "
        "sys.exit(script(lambda argv: exit_code(lambda: print(chr(252), chr(0xdc80)))))"
    )
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, program],
        cwd=tmp_path,
        env={"LANG": "C", "PYTHONIOENCODING": "ascii", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False) and words in done.stderr
    if shell == "> out":
        assert (tmp_path / "out").read_text() == "\\xfc \\udc80\n"
