import contextlib
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.closed import closed

from pipelines import files
from pipelines.errors import UserError
from pipelines.files import (
    Held,
    alone_in,
    append,
    atomic_writer,
    check_file_place,
    check_folder_place,
    home_expanded,
    is_temporary,
    lock,
    read_json,
    read_object,
    temporary_path,
    write_bytes_atomic,
    write_each,
    write_json_atomic,
)

ROOT = Path(__file__).parents[3]


def test_a_line_that_does_not_fit_is_refused_not_cut(tmp_path: Path):
    """A disk that fills up takes a part of a write without an error; a limit of file size does the same."""
    path, limits = tmp_path / "lines", resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(path, "ab", buffering=0) as file:
        append(file, b"whole\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            with pytest.raises(OSError) as raised:
                append(file, b"too long\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert path.read_bytes() == b"whole\ntoo "


def test_a_full_disk_is_an_error_with_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "full").symlink_to("/dev/full")
    with open(tmp_path / "full", "ab", buffering=0) as file, pytest.raises(OSError, match="No space left.*/full'"):
        append(file, b"line\n")
    for write in (write_bytes_atomic, files.write_durable):
        with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left.*/a.json'"):
            monkeypatch.setattr(files, "open", lambda path, mode, full=full: full, raising=False)
            write(tmp_path / "a.json", b"{}")


def test_a_folder_that_cannot_be_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some file systems have no such call; any other error names the folder."""
    real, number = os.fsync, errno.EINVAL

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    number = errno.EIO
    with pytest.raises(OSError) as caught:
        write_bytes_atomic(tmp_path / "a", b"newer")
    assert caught.value.filename == str(tmp_path)


def test_a_lock_needs_no_room_for_its_holder():
    handle = os.open("/dev/full", os.O_RDWR)
    try:
        lock(handle, holder="we")
    finally:
        os.close(handle)


def test_replaces_whole_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"one" * 1000)
    write_bytes_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic_writer(path) as file:
        file.write(b"half of the n")
        file.flush()
        assert path.read_bytes() == b"old"  # nothing is visible while it is being written
        raise RuntimeError("in the middle")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_over_the_size_limit_leaves_the_old_file(tmp_path: Path):
    """A full disk, simulated by a limit on file sizes in another process."""
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from pipelines.files import write_bytes_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_bytes_atomic(Path(sys.argv[1]), b'n' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_writers_at_once_never_mix(tmp_path: Path):
    path, wholes = tmp_path / "a", [bytes([i]) * 100_000 for i in range(4)]
    threads = [threading.Thread(target=write_bytes_atomic, args=(path, whole)) for whole in wholes * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in wholes
    assert os.listdir(tmp_path) == ["a"]


def test_temporary_names():
    path = Path("folder/a.json")
    one, two = temporary_path(path), temporary_path(path)
    assert one != two and one.parent == path.parent
    assert is_temporary(one) and not is_temporary(path) and not is_temporary(Path(".hidden"))


def test_json_round_trip(tmp_path: Path):
    value = {"x": [1, 0.1, None, "é\n"], "b": 1e-300, "a": {}}
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert list(json.loads((tmp_path / "a.json").read_text())) == [
        "x",
        "b",
        "a",
    ]  # order kept: for human readers


def test_json_refuses_nan_and_keeps_the_old(tmp_path: Path):
    write_json_atomic(tmp_path / "a.json", 1)
    with pytest.raises(ValueError):
        write_json_atomic(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == 1


def test_unreadable_json_is_the_users_business(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read .*a.json: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": 1')
    with pytest.raises(UserError, match="a.json is damaged"):
        read_json(tmp_path / "a.json")


def test_json_of_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """A folder's name may be any bytes; it must not break the end of a training run."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_json_atomic(tmp_path / "a.json", {"class_names": [name]})
    assert read_json(tmp_path / "a.json") == {"class_names": [name]}


HOLDER = """
import os, sys, time
from multiprocessing import get_context
from pipelines.files import lock
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
lock(handle, by_process=sys.argv[2] == "process", holder="the holder")
worker = get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["process", "handle"])
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path, kind: str):
    """A process's lock ends at its death, even if it has forked; a handle's lock, when the last process that inherits it ends."""
    path, by_process = tmp_path / "lock", kind == "process"
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    handle = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(Held, match="^the holder$"):
            lock(handle, by_process=by_process, holder="we")
        holder.kill()
        holder.wait()
        if not by_process:
            with pytest.raises(Held, match="^the holder$"):
                lock(handle, holder="we")
            os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:
            try:
                lock(handle, by_process=by_process, holder="we")
                break
            except Held:  # the kernel has not closed the killed worker's handles yet
                assert not by_process and time.monotonic() < deadline
                time.sleep(0.01)
        assert path.read_bytes() == b"we"
    finally:
        os.close(handle)
        holder.kill()
        holder.stdout.close()
        if by_process:
            os.kill(worker, signal.SIGKILL)


def test_one_at_a_time_in_a_folder(tmp_path: Path):
    inside, most = [], []

    def enter() -> None:
        with alone_in(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_where_folders_have_no_locks_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on some network file systems; none is available here."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refused)
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("place", ["nowhere/a", "folder", "pipe", "file/a", "x" * 300, "x" * 250, "loop/a", "/proc/a"])
def test_a_file_that_could_not_be_written_is_refused_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"^out=1: cannot write .*give a file in a folder that exists"):
        check_file_place(tmp_path / place, "out=1")
    check_file_place(tmp_path / "file", "out=1")
    check_file_place(tmp_path / "folder" / "new", "out=1")
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("place", ["file", "file/a", "x" * 300, "a/" + "x" * 300, "loop/a", "dangling", "/proc/a/b"])
def test_a_folder_that_could_not_be_made_is_refused_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"^run=1: cannot write in .*give another folder"):
        check_folder_place(tmp_path / place, "run=1")
    check_folder_place(tmp_path / "a" / "b" / "c", "run=1")
    check_folder_place(tmp_path, "run=1")
    assert sorted(tmp_path.iterdir()) == before


def test_looking_at_a_place_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two programs that begin at once, one would meet the folder that the other had made, or had just removed again."""
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    check_folder_place(tmp_path / "runs" / "a", "run=a")
    monkeypatch.chdir(tmp_path)
    check_folder_place(Path("runs/a"), "run=a")


def test_one_output_that_fails_leaves_the_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*nowhere.*: No such file.*; also"):
        write_each(
            lambda: write_bytes_atomic(tmp_path / "nowhere" / "a", b""),
            lambda: write_bytes_atomic(tmp_path / "b", b"b"),
            lambda: (_ for _ in ()).throw(UserError("also")),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"a": "1"}'])
def test_an_object_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a.json is damaged"):
        read_object(tmp_path / "a.json", a=int)


@pytest.mark.parametrize("name", ["new", "old", "dangling", "x" * 200])
def test_files_that_can_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    check_file_place(tmp_path / name, "out=1")
    write_bytes_atomic(tmp_path / name, b"x")


@pytest.mark.parametrize(
    "name", [".", "..", "folder", "missing/x", "old/x", "x" * 255, "x" * 256, "closed/x", "closed", "device"]
)
def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "device").symlink_to(os.devnull)
    for folder in ("folder", "closed"):
        (tmp_path / folder).mkdir()
    with (
        closed(tmp_path / "closed"),
        contextlib.chdir(tmp_path),
        pytest.raises(UserError, match="cannot write .*: give a file in a folder that exists and can be written"),
    ):
        check_file_place(Path(name), "out=1")


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    paths = {"~": "/users/me", "~/a": "/users/me/a", "~root": "/root", "a/~": "a/~", "./~": "./~", "": ""}
    assert {path: home_expanded(path) for path in paths} == paths
    with pytest.raises(ValueError, match="~no_such_user is no home folder here; .* is ./~no_such_user/a"):
        home_expanded("~no_such_user/a")
