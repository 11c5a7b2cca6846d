"""The run directory, and what a run needs from its surroundings: accelerator, launcher settings, exit codes.

    RUN/config.yaml   the settings
    RUN/run.json      every session: command, versions, device, git state, how it ended
    RUN/lock          held while a process trains; names its holder
    RUN/result.json   written last

Owns these four files; metrics, checkpoints and weights in the same folder are tracking.py's and
checkpoint.py's. Invariant: at most one process writes a run, with the settings it was started with, and all
ranks agree on that.
"""

import atexit
import contextlib
import errno
import fcntl
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed import TCPStore

from pipelines.errors import UserError
from pipelines.files import is_temporary, read_json, write_bytes_atomic, write_json_atomic
from train.checkpoint import run_folder
from train.config import Config, diff, load, to_yaml
from train.stops import EXIT_CODE as STOPPED
from train.stops import Stopped

# Settings (and whole sections) that a run may be resumed with other values of: they change when and how fast
# things happen, or how closely they are checked, never the weights. (Another optim.accumulate is like another number of
# processes: the same samples and views, rounded otherwise.)
FREE_KEYS = (
    *("run", "resume", "save", "eval", "track", "profile", "data.workers", "data.verify", "cache.check"),
    "optim.accumulate",
)
# Where things lie. A resumed run may find them elsewhere, because the digests in run.json's facts say whether they are the same.
PLACES = (
    *("data.train", "data.val", "data.test", "cache.paths", "cache.dir"),
    *("distill.teacher", "distill.teacher_classes"),
)
PACKAGES = (
    *("torch", "accelerate", "numpy", "numba", "omegaconf", "safetensors", "pillow", "timm", "ffcv"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
)
Status = Literal["running", "finished", "stopped", "error", "killed"]


def run_name(run: str | None, config_file: Path, seed: int) -> str:
    """The name of a run: as given by `run=`, or the config file's stem and the seed."""
    name = run or f"{config_file.stem}-s{seed}"
    if name.strip() in ("", ".", ".."):
        raise UserError(f"run={name}: a run needs a name, e.g. run=first, or a folder with a slash, e.g. run=./first")
    return name


# ---- the run ----


def stored_facts(folder: Path) -> dict[str, Any]:
    """What the sessions so far of the run in `folder` have found out (`Run.note`); nothing where there is no run."""
    path = folder / "run.json"
    return read_json(path).get("facts", {}) if path.exists() else {}


@dataclass
class Run:
    """An open run. Only the main process holds the lock and writes; the other ranks have the same answers.

    changes: lines for the log of a resumed run: free settings and versions that differ from the last session.
    facts: what an earlier session resolved once and for all (`note`).
    """

    folder: Path
    is_main: bool
    resumed: bool = False
    changes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _result: dict[str, Any] | None = None
    _record: dict[str, Any] = field(default_factory=dict)
    _lock: "Lock | None" = None

    @classmethod
    def open(cls, config: Any, name: str, script: str, accelerator: Accelerator) -> "Run":
        """Create or resume the run `name` of `script` (e.g. "train/distill.py"), on every rank at once.

        A refusal (in use, other settings, another script's run) is a UserError on every rank.
        """
        run = cls(run_folder(name), accelerator.is_main_process)
        failure: Exception | None = None
        if run.is_main:
            try:
                run._open(config, script, accelerator)
            except Exception as error:  # the other ranks wait in the broadcast: tell them, then raise it here
                failure = error
        words = str(failure) if isinstance(failure, UserError) or failure is None else f"rank 0: {failure!r}"
        answer = [(failure is not None, words, run.resumed, run.changes, run.facts, run._result)]
        broadcast_object_list(answer)
        failed, words, run.resumed, run.changes, run.facts, run._result = answer[0]
        if failure is not None:
            raise failure
        if failed:
            raise UserError(words)
        return run

    def _open(self, config: Any, script: str, accelerator: Accelerator) -> None:
        self._refuse_foreign_folder()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {self.folder}: {error.strerror}; give another run=NAME"
            ) from error
        self._lock = Lock(self.folder)
        try:
            self._check_and_record(config, script, accelerator)
        except BaseException:
            self._let_go()
            raise
        if self._result is not None:
            self._let_go()  # nothing more will be written

    def _refuse_foreign_folder(self) -> None:
        """A folder that holds things but no run would be littered."""
        if not self.folder.is_dir() or (self.folder / "config.yaml").exists():
            return
        others = sorted(
            path.name for path in self.folder.iterdir() if path.name != Lock.NAME and not is_temporary(path)
        )
        if others:
            raise UserError(
                f"{self.folder} exists and is no run (it holds {', '.join(others[:3])}); give another run=NAME"
            )

    def _check_and_record(self, config: Any, script: str, accelerator: Accelerator) -> None:
        if (self.folder / "run.json").exists():
            self._record = read_json(self.folder / "run.json")
            if self._record["script"] != script:
                raise UserError(f"{self.folder} is a run of {self._record['script']}; give {script} another run=NAME")
        self._check_settings(config)
        if (self.folder / "result.json").exists():
            self._result = read_json(self.folder / "result.json")
            if self._record.get("status") == "running":  # killed between the two files of `finish`
                self._set_status("finished")
            return
        self._start_session(script, accelerator)

    def _check_settings(self, config: Any) -> None:
        path = self.folder / "config.yaml"
        if not path.exists():
            write_bytes_atomic(path, to_yaml(config).encode())
            return
        if config.resume == "never":
            raise UserError(f"run {self.folder} exists, and resume=never; give another run=NAME, or leave resume out")
        self.resumed = True
        changed = diff(load(type(config), path), config)
        refused = binding(changed, FREE_KEYS + PLACES)
        if refused:
            raise UserError(
                f"run {self.folder} was started with other settings (stored -> given): {'; '.join(refused)}. "
                "Give the stored ones, or another run=NAME"
            )
        if changed:
            write_bytes_atomic(path, to_yaml(config).encode())
            self.changes += changed

    def _start_session(self, script: str, accelerator: Accelerator) -> None:
        environment = describe_environment(accelerator)
        sessions = self._record.get("sessions", [])
        if sessions:
            if sessions[-1]["status"] == "running":
                sessions[-1] |= {"status": "killed"}  # it holds no lock and said no goodbye
            self.changes += _differences(sessions[-1]["environment"], environment)
        command = shlex.join(["python", *sys.argv])
        sessions.append({"started": _now(), "ended": None, "status": "running", "message": ""})
        sessions[-1] |= {"command": command, "environment": environment, "changes": self.changes}
        self.facts = self._record.get("facts", {})
        self._record = {
            "script": script,
            "status": "running",
            "command": command,
            "facts": self.facts,
            "sessions": sessions,
        }
        self._write_record()

    def result(self) -> dict[str, Any] | None:
        """What the finished run ended with; None while there is something left to do."""
        return self._result

    def note(self, **facts: Any) -> None:
        """Store what was resolved once and for all, e.g. which backend `auto` meant, for later sessions."""
        self.facts |= facts
        if self.is_main:
            self._record["facts"] = self.facts
            self._write_record()

    def finish(self, result: dict[str, Any]) -> None:
        """The run is done: from now on the same command prints `result`."""
        self._result = result
        if self.is_main:
            write_json_atomic(self.folder / "result.json", result)
        self.close("finished")

    def close(self, status: Status, message: str = "") -> None:
        """Say how this session ended and let go of the run; a run that is closed stays as it was closed."""
        if self._lock is None:
            return
        try:
            self._set_status(status, message)
        finally:
            self._let_go()

    def _set_status(self, status: Status, message: str = "") -> None:
        self._record["status"] = status
        self._record["sessions"][-1] |= {"status": status, "message": message, "ended": _now()}
        self._write_record()

    def _write_record(self) -> None:
        write_json_atomic(self.folder / "run.json", self._record)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit, Stopped)):
            self.close("stopped", (str(error) or type(error).__name__) if error else "")
            return
        words = str(error) if isinstance(error, UserError) else repr(error)
        if not self.is_main:
            _share_failure(words)
        elif not isinstance(error, UserError):  # perhaps only that another rank is gone: why it went says more
            words = _shared_failure() or words
        with contextlib.suppress(
            OSError
        ):  # a full disk: `error` says so, and the next session finds this one "running"
            self.close("error", words)

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def binding(changes: list[str], free: tuple[str, ...] = FREE_KEYS) -> list[str]:
    """Those lines of `diff` that are about settings (or in sections) not named in `free`."""
    keys = {line: line.partition(":")[0] for line in changes}
    return [line for line, key in keys.items() if not any(key == one or key.startswith(f"{one}.") for one in free)]


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Lock:
    """The exclusive right to write in a run folder, for as long as this process lives or until `release`.

    A POSIX record lock: the kernel drops it when the process dies, however it dies, and forked workers do not
    inherit it, so an orphan of a killed run blocks nobody. It excludes nothing within one process: `_held`
    does.
    """

    NAME = "lock"
    _held: set[Path] = set()

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        if self._folder in Lock._held:
            raise self._refusal(_holder_line())
        try:
            handle = os.open(folder / Lock.NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}; give another run=NAME") from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 1000, 0).decode(errors="replace").strip()
            os.close(handle)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise self._refusal(holder or "another process") from error
            raise UserError(
                f"cannot lock {folder}: {error.strerror}; give a run=FOLDER on another file system"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, _holder_line().encode(), 0)
        self._handle = handle
        Lock._held.add(self._folder)

    def _refusal(self, holder: str) -> UserError:
        return UserError(
            f"run {self._folder.name} is in use by {holder}; stop it, wait for it, or give another run=NAME"
        )

    def release(self) -> None:
        """Let others have it."""
        Lock._held.discard(self._folder)
        os.close(self._handle)


def _holder_line() -> str:
    return f"process {os.getpid()} on {platform.node()} since {_now()}"


# ---- the surroundings ----


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """What may change results or speed between two sessions of a run, as a flat dictionary."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "host": platform.node(),
        "device": device_name(accelerator.device),
        "world_size": accelerator.num_processes,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version is not None},
        "cuda": torch.version.cuda,
        **_git_state(Path(__file__).resolve().parent.parent),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type}: {models[0] if models else platform.processor() or platform.machine()}"


def _git_state(root: Path) -> dict[str, Any]:
    """Revision of the code and whether tracked files were changed; empty when `root` is no git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {}
        return {
            "git_revision": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def resolve_precision(setting: str) -> str:
    """fp32, bf16 or fp16; auto is bf16 on a GPU that computes in it, and fp32 elsewhere."""
    if setting != "auto":
        return setting
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in (
        "true",
        "1",
        "yes",
    )
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def precision_of(accelerator: Accelerator) -> str:
    """The settings' word for what the accelerator computes in."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def _accelerates_word(precision: str) -> str:
    return "no" if precision == "fp32" else precision


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator that the settings ask for; UserError when the launcher asked for something else."""
    precision = _accelerates_word(resolve_precision(config.precision))
    _check_launcher(precision)
    if config.deterministic:
        # cuBLAS reads the variable when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Nobody reads memory before it is written: filling it would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    torch.backends.cudnn.benchmark = not config.deterministic  # input sizes are constant: trying pays off
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise UserError(f"accelerate does not start (precision={config.precision}): {error}") from error
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU (accelerate would train in fp32); on a CPU use fp32 or bf16")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, but accelerate counts {accelerator.num_processes}: each "
            "would believe to be the only one. Without a GPU, type ACCELERATE_USE_CPU=true before the command"
        )
    return accelerator


def _check_launcher(precision: str) -> None:
    """The launcher's settings are environment variables; what is ours to decide must not be contradicted."""
    allowed = {
        "ACCELERATE_MIXED_PRECISION": (
            ("no", precision),
            "set precision=fp32|bf16|fp16 instead: it belongs to the run",
        ),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "set optim.accumulate=N instead"),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "set compile=true instead"),
        "ACCELERATE_USE_DEEPSPEED": (
            ("false",),
            "each process holds the whole model here: launch with --multi_gpu",
        ),
        "ACCELERATE_USE_FSDP": (
            ("false",),
            "each process holds the whole model here: launch with --multi_gpu",
        ),
    }
    for name, (values, advice) in allowed.items():
        given = os.environ.get(name) or values[0]
        if given.lower() not in values:
            raise UserError(
                f"{name}={given} (from the launcher or its config file) does not fit this trainer; {advice}"
            )


# ---- exit codes ----


def guard(main: Callable[[list[str]], int | None]) -> int:
    """Run an entry script's `main(argv)` and give its exit code: `sys.exit(guard(main))`."""
    try:
        code = main(sys.argv[1:]) or 0
    except Stopped as stop:
        line = f"{stop}; the same command goes on"
        if _first_to_say(line):
            print(line, file=sys.stderr, flush=True)
        code = STOPPED
    except UserError as error:
        line = " ".join(str(error).splitlines())
        if _first_to_say(line):
            print(f"error: {line}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        code = 130
    except Exception as error:
        words = _passing_trouble(error)
        if words is None:
            raise
        print(f"error: {words}: run the same command again", file=sys.stderr, flush=True)
        code = 2
    if torch.distributed.is_initialized():
        if code == 0:
            torch.distributed.destroy_process_group()
        _leave_at_once(code)
    return code


def _passing_trouble(error: Exception) -> str | None:
    """What went wrong and has been, or must be, put right, if the program is not at fault."""
    if torn := _torn_library(error):
        torn.unlink(missing_ok=True)
        return f"{torn}, compiled by torch, was left half-written by a process that was killed; it is deleted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.strerror} ({error.filename or 'a file that is open'}); what was saved before is intact; make room"
        )
    return None


def _torn_library(error: BaseException) -> Path | None:
    """The file of torch.compile's cache that does not load: torch writes there without a temporary name."""
    found = re.search(r"(/\S+\.so): (?:file too short|invalid ELF header)", str(error))
    return Path(found[1]) if found and Path(found[1]).is_file() else None


def _leave_at_once(code: int) -> NoReturn:
    """End this rank without the interpreter's own end, in which torch 2.13 aborts one time in ten.

    Gloo's threads outlive their group and may still hold the last tensors; a thread that asks for the interpreter while
    that is shutting down is unwound by force, through C++ code that does not allow it.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _launchers_store() -> TCPStore | None:
    """The launcher's store, which outlives every rank; None where there is none, or it does not answer."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
    except (KeyError, ValueError, RuntimeError):
        return None


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _share_failure(words: str) -> None:
    store = _launchers_store()
    if store is not None:
        store.set(f"failure/{_attempt()}", words)


def _shared_failure() -> str | None:
    """Why another rank failed, if one said so."""
    store, name = _launchers_store(), f"failure/{_attempt()}"
    return store.get(name).decode() if store is not None and store.check([name]) else None


def _first_to_say(line: str) -> bool:
    """Whether no other rank has said the same: an error of all ranks is printed once, one of rank 3 too.

    The launcher's store knows, even before torch.distributed is up. Whoever is first must speak: as soon as
    one rank has left, the launcher kills the others, rank 0 perhaps among them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    store = _launchers_store()
    # Nobody to ask: better twice than never.
    return store is None or store.add(f"said/{_attempt()}/{line}", 1) == 1
