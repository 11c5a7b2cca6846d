import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pipelines.errors import UserError
from train.checkpoint import SaveConfig
from train.config import Config, load
from train.optim import OptimConfig
from train.run import FREE_KEYS, PLACES, Lock, Run, _git_state, guard, make_accelerator, run_name

ROOT = Path(__file__).parent.parent
SCRIPT = "train/distill.py"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch):
    """An empty current directory, the CPU, no launcher, and torch's switches as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or name in (
            "WORLD_SIZE",
            "RANK",
            "LOCAL_RANK",
            "CUBLAS_WORKSPACE_CONFIG",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    before = dict(os.environ)
    yield
    AcceleratorState._reset_state(True)
    for name in set(os.environ) - set(before):  # accelerate sets RANK and the like itself
        del os.environ[name]
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def accelerator(surroundings) -> Accelerator:
    return make_accelerator(Config())


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# ---- one run, several sessions ----


def test_a_run_from_start_to_result(accelerator):
    config = Config(optim=OptimConfig(lr=0.3))
    with Run.open(config, "first", SCRIPT, accelerator) as run:
        assert (run.folder, run.is_main, run.resumed, run.changes) == (Path("runs/first"), True, False, [])
        assert run.result() is None
        assert load(Config, run.folder / "config.yaml") == config
        during = record(run.folder)
        assert during["status"] == during["sessions"][0]["status"] == "running"
        run.finish({"top1": 0.5})
        assert run.result() == {"top1": 0.5}
    written = record(run.folder)
    assert (written["script"], written["status"]) == (SCRIPT, "finished")
    (session,) = written["sessions"]
    assert session["status"] == "finished" and session["started"] <= session["ended"]
    environment = session["environment"]
    assert environment["torch"] == torch.__version__ and environment["world_size"] == 1
    assert environment["host"] == platform.node() and environment["device"].startswith("cpu: ")
    assert {"accelerate", "numpy", "numba", "python"} <= environment.keys()
    assert written["command"].startswith("python ")

    before = sorted((path.name, path.read_bytes()) for path in run.folder.iterdir() if path.name != Lock.NAME)
    with Run.open(config, "first", SCRIPT, accelerator) as again:
        assert again.result() == {"top1": 0.5}
    after = sorted((path.name, path.read_bytes()) for path in run.folder.iterdir() if path.name != Lock.NAME)
    assert after == before  # looking at a finished run leaves no trace


def test_how_a_session_ended_is_written(accelerator):
    def end(error: BaseException | None) -> dict:
        expected = pytest.raises(type(error)) if error is not None else contextlib.nullcontext()
        with expected, Run.open(Config(), "a", SCRIPT, accelerator):
            if error is not None:
                raise error
        written = record(Path("runs/a"))
        assert written["status"] == written["sessions"][-1]["status"] and written["sessions"][-1]["ended"]
        return {name: written["sessions"][-1][name] for name in ("status", "message")}

    assert end(None) == {"status": "stopped", "message": ""}
    assert end(KeyboardInterrupt()) == {"status": "stopped", "message": "KeyboardInterrupt"}
    assert end(UserError("bad record")) == {"status": "error", "message": "bad record"}
    assert end(RuntimeError("out of memory")) == {
        "status": "error",
        "message": "RuntimeError('out of memory')",
    }
    assert len(record(Path("runs/a"))["sessions"]) == 4


def test_a_killed_session_is_recognised(accelerator):
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from train.config import Config
        from train.run import Run, make_accelerator
        config = Config()
        Run.open(config, "a", {SCRIPT!r}, make_accelerator(config)).note(backend="ffcv")
        os.kill(os.getpid(), 9)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert process.returncode == -signal.SIGKILL
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        assert run.resumed and run.changes == [] and run.facts == {"backend": "ffcv"}
        assert [session["status"] for session in record(run.folder)["sessions"]] == ["killed", "running"]


def test_facts_outlive_the_session(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run.note(backend="ffcv")
        run.note(steps=100)
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        assert run.facts == {"backend": "ffcv", "steps": 100}
        run.note(steps=101)
    assert record(Path("runs/a"))["facts"] == {"backend": "ffcv", "steps": 101}


def test_killed_between_result_and_status(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        (run.folder / "result.json").write_text('{"top1": 1}')
        run._let_go()  # nothing is said at the end
    assert record(run.folder)["status"] == "running"
    assert Run.open(Config(), "a", SCRIPT, accelerator).result() == {"top1": 1}
    assert record(run.folder)["status"] == "finished"


def test_other_versions_are_told(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        pass
    written = record(run.folder)
    written["sessions"][0]["environment"] |= {"torch": "2.11", "world_size": 8}
    del written["sessions"][0]["environment"]["numba"]
    (run.folder / "run.json").write_text(json.dumps(written))
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        numba = record(run.folder)["sessions"][1]["environment"]["numba"]
        assert sorted(run.changes) == sorted(
            [f"torch: 2.11 -> {torch.__version__}", "world_size: 8 -> 1", f"numba: None -> {numba}"]
        )


# ---- refusals ----


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        Run.open(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_settings_are_refused_with_the_difference(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    before = (Path("runs/a/config.yaml").read_bytes(), Path("runs/a/run.json").read_bytes())
    message = refusal(Config(seed=1, optim=OptimConfig(lr=0.2)), "a", SCRIPT, accelerator)
    assert "run runs/a was started with other settings" in message
    assert "optim.lr: 0.1 -> 0.2; seed: 0 -> 1. Give the stored ones, or another run=NAME" in message
    for fixed in (Config(compile=True), Config(precision="bf16"), Config(deterministic=True)):
        refusal(fixed, "a", SCRIPT, accelerator)
    assert before == (Path("runs/a/config.yaml").read_bytes(), Path("runs/a/run.json").read_bytes())
    Run.open(Config(), "a", SCRIPT, accelerator).close("stopped")  # a refusal holds no lock


def test_free_settings_may_change_and_are_written_down(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    data = replace(Config().data, workers=3, verify="always")
    changed = Config(data=data, save=SaveConfig(keep_last=5), run="./runs/a")
    with Run.open(changed, "./runs/a", SCRIPT, accelerator) as run:
        assert run.changes == [
            "data.verify: first -> always",
            "data.workers: null -> 3",
            "save.keep_last: 2 -> 5",
            "run: null -> ./runs/a",
        ]
        assert load(Config, run.folder / "config.yaml") == changed
        assert record(run.folder)["sessions"][1]["changes"] == run.changes


def test_free_keys_exist():
    """Every free key is a key or a section: a renamed one would silently be free no more."""
    for key in FREE_KEYS + PLACES:
        value = Config()
        for name in key.split("."):
            value = getattr(value, name)


def test_a_finished_run_with_other_settings_is_refused(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run.finish({})
    assert "seed: 0 -> 1" in refusal(Config(seed=1), "a", SCRIPT, accelerator)


def test_another_scripts_run_is_refused(accelerator):
    with Run.open(Config(), "a", "train/teacher.py", accelerator):
        pass
    message = refusal(Config(), "a", SCRIPT, accelerator)
    assert message == "runs/a is a run of train/teacher.py; give train/distill.py another run=NAME"


def test_a_folder_that_is_no_run_is_left_alone(accelerator):
    folder = Path("somewhere/photos")
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    message = refusal(Config(), "somewhere/photos", SCRIPT, accelerator)
    assert message == "somewhere/photos exists and is no run (it holds a.jpg); give another run=NAME"
    assert os.listdir(folder) == ["a.jpg"]
    (folder / "a.jpg").unlink()
    (folder / ".config.yaml.1-ab.tmp").touch()  # killed while it wrote the first file
    (folder / "lock").touch()
    with Run.open(Config(), "somewhere/photos", SCRIPT, accelerator) as run:
        assert run.folder == folder and not run.resumed


def test_a_folder_that_cannot_be_made(accelerator):
    Path("runs").touch()
    assert refusal(Config(), "a", SCRIPT, accelerator).startswith("cannot make the run folder runs/a: ")
    Path("b/lock").mkdir(parents=True)  # nobody can open this for writing, root neither
    assert refusal(Config(), "./b", SCRIPT, accelerator).startswith("cannot write in b: ")


def test_a_run_in_use_is_refused_and_free_when_its_process_is_gone(accelerator):
    code = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from multiprocessing import get_context
        from train.run import Lock
        lock = Lock(Path("runs/a"))
        worker = get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    Path("runs/a").mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        message = refusal(Config(), "a", SCRIPT, accelerator)
        assert message.startswith(f"run a is in use by process {holder.pid} on {platform.node()} since 20")
        assert os.listdir("runs/a") == ["lock"]
        holder.kill()
        holder.wait()
        with Run.open(Config(), "a", SCRIPT, accelerator):  # although its forked worker lives on
            os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()
        holder.stdout.close()


def test_a_run_in_use_by_this_very_process_is_refused(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        message = refusal(Config(), "./runs/../runs/a", SCRIPT, accelerator)
        assert f"in use by process {os.getpid()} on {platform.node()}" in message
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass


def test_damaged_record(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    Path("runs/a/run.json").write_text("{")
    assert "runs/a/run.json is damaged" in refusal(Config(), "a", SCRIPT, accelerator)


def test_run_names():
    assert run_name(None, Path("configs/cifar100_lt/dive_if100.yaml"), 3) == "dive_if100-s3"
    assert run_name("007", Path("x.yaml"), 3) == "007"
    for wrong in (".", "..", " "):
        with pytest.raises(UserError, match="a run needs a name"):
            run_name(wrong, Path("x.yaml"), 0)


# ---- two ranks ----

TWO_RANKS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipelines.errors import UserError
from train.config import Config
from train.run import Run, guard, make_accelerator

def main(argv):
    accelerator = make_accelerator(Config())
    rank = accelerator.process_index
    with Run.open(Config(), "new", {SCRIPT!r}, accelerator) as run:
        assert (run.is_main, run.result()) == (rank == 0, None)
        run.note(world_size=accelerator.num_processes)
        accelerator.wait_for_everyone()
    with Run.open(Config(), "new", {SCRIPT!r}, accelerator) as run:
        assert run.resumed and run.facts == {{"world_size": 2}}
        run.finish({{"top1": 1}})
    accelerator.wait_for_everyone()
    assert Run.open(Config(), "new", {SCRIPT!r}, accelerator).result() == {{"top1": 1}}
    try:
        Run.open(Config(seed=1), "new", {SCRIPT!r}, accelerator)
    except UserError as error:
        Path(f"settings{{rank}}").write_text(str(error))
    try:
        Run.open(Config(), "held", {SCRIPT!r}, accelerator)
    except UserError as error:
        Path(f"held{{rank}}").write_text(str(error))
        accelerator.wait_for_everyone()
        raise

sys.exit(guard(main))
"""


def test_two_ranks_come_to_the_same_answer(accelerator):
    Path("two.py").write_text(TWO_RANKS)
    with Run.open(Config(), "held", SCRIPT, accelerator):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "two.py",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr  # the launcher turns 2 into 1
    assert "AssertionError" not in done.stderr
    settings, held = ([Path(f"{name}{rank}").read_text() for rank in (0, 1)] for name in ("settings", "held"))
    assert settings[0] == settings[1] and "seed: 0 -> 1" in settings[0]
    assert held[0] == held[1] and f"run held is in use by process {os.getpid()}" in held[0]
    assert done.stderr.count("error: run held is in use") == 1  # said once, not by each rank
    assert "exitcode  : 2" in done.stderr
    assert len(record(Path("runs/new"))["sessions"]) == 2  # written by one rank alone


# ---- surroundings ----


def test_precision_and_determinism():
    assert make_accelerator(Config()).mixed_precision == "no"
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    AcceleratorState._reset_state(True)
    assert make_accelerator(Config(precision="bf16", deterministic=True)).mixed_precision == "bf16"
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_fp16_on_a_cpu():
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        make_accelerator(Config(precision="fp16"))


def test_what_accelerate_refuses_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"accelerate does not start \(precision=auto\): .*MASTER_ADDR"):
        make_accelerator(Config())


@pytest.mark.parametrize(
    "name, value, advice",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "set precision=fp32|bf16|fp16 instead"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "set precision="),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "set optim.accumulate=N"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set compile=true"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "launch with --multi_gpu"),
        ("ACCELERATE_USE_FSDP", "true", "launch with --multi_gpu"),
    ],
)
def test_what_the_launcher_may_not_decide(monkeypatch, name, value, advice):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        make_accelerator(Config(precision="bf16"))
    assert str(caught.value).startswith(f"{name}={value} (from the launcher") and advice in str(caught.value)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_the_launcher_says_by_default_or_in_agreement(monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert make_accelerator(Config(precision="bf16")).mixed_precision == "bf16"


def test_processes_that_accelerate_does_not_see(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but accelerate counts 1.*ACCELERATE_USE_CPU=true"):
        make_accelerator(Config())


def test_git_state(tmp_path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert _git_state(tmp_path) == {}
    git("init")
    assert _git_state(tmp_path) == {}  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "one")
    (tmp_path / "untracked").touch()
    state = _git_state(tmp_path)
    assert len(state["git_revision"]) == 40 and state["git_dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert _git_state(tmp_path)["git_dirty"] is True
    (tmp_path / "inner").mkdir()
    assert _git_state(tmp_path / "inner") == {}  # installed somewhere inside another project's checkout


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
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        guard(raises(ZeroDivisionError()))


def test_an_error_is_told_even_if_the_launcher_cannot_be_asked(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)

    def main(argv: list[str]) -> None:
        raise UserError("x")

    assert guard(main) == 2
    assert capsys.readouterr().err == "error: x\n"


def test_a_rank_ends_with_its_code_whatever_happens_at_the_interpreters_end(tmp_path):
    """Gloo's threads abort some ranks that end (1 in 10 measured); here every end of the interpreter does."""
    (tmp_path / "ends.py").write_text(
        textwrap.dedent(
            f"""
            import atexit, os, sys, torch
            sys.path[0] = {str(ROOT)!r}
            from train.run import guard
            class Aborts:
                def __del__(self):
                    os.abort()
            at_the_end = Aborts()
            atexit.register(print, "atexit ran")
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
            def main(argv):
                print("not flushed yet")
                return 7
            sys.exit(guard(main))
            """
        )
    )
    done = subprocess.run([sys.executable, tmp_path / "ends.py"], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (7, "not flushed yet\natexit ran\n"), done.stderr


def test_a_half_written_library_of_torch_compile_is_deleted(capsys, tmp_path):
    """Loaded for real: the loader's own words are what is looked for."""
    torn = tmp_path / "kernel.so"
    for content in (b"", b"\x7fELF", bytes(4096)):
        torn.write_bytes(content)
        assert guard(lambda argv: ctypes.CDLL(str(torn)) and None) == 2
        assert "run the same command again" in capsys.readouterr().err
        assert not torn.exists()
    with pytest.raises(OSError, match="cannot open"):
        guard(lambda argv: ctypes.CDLL(str(torn)) and None)


def test_a_full_disk_is_no_fault_of_the_program(accelerator, capsys):
    """Whatever is being written: one line, and the error that came first is not covered by run.json's."""

    def main(argv):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"0")

    assert guard(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: No space left on device") and "make room: run the same command again" in said
    with pytest.raises(UserError, match="first"), Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run._write_record = lambda: main([])
        raise UserError("first")
