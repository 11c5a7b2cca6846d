"""The run directory: its lock, its settings, and how each session ended.

    RUN/config.yaml   the settings
    RUN/run.json      every session: command, versions, device, git state, how it ended
    RUN/lock          held while a process trains; names its holder
    RUN/result.json   written last

Owns these four files; metrics, checkpoints and weights in the same folder are tracking.py's and
checkpoint.py's. Invariant: at most one process writes a run, with the settings it was started with, and all
ranks agree on that.
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pipelines.errors import UserError
from pipelines.files import is_temporary, read_object, write_bytes_atomic, write_json_atomic
from train.run.agreement import PLACES
from train.run.checkpoint import NOT_FINITE, has_trained_nothing
from train.run.environment import describe_environment
from train.run.exits import share_failure, shared_failure
from train.run.facts import Facts
from train.run.lock import ENDED_SILENTLY, Lock, now, text_of
from train.run.place import run_folder
from train.run.stops import Stopped
from train.settings import diff, load, to_yaml

# Settings (and whole sections) that may have other values when a run is resumed: they change when and how fast things
# happen, or how closely they are checked, never the weights. (Another optim.accumulate is like another number of
# processes: the same samples and views, with other rounding.)
FREE_KEYS = (
    *("run", "resume", "save", "track", "profile", "data.workers", "data.verify", "cache.check"),
    *("eval.every_epochs", "eval.every_steps", "eval.batch"),  # the first two only without eval.patience: PATIENCE_KEYS
    "optim.accumulate",
    "data.hw_decoder_load",  # where it changes pixels, the run's facts tell
)
# With eval.patience, which counts evaluations, these decide which step is the last.
PATIENCE_KEYS = ("eval.every_epochs", "eval.every_steps", "save.keep_best")
Status = Literal["running", "finished", "stopped", "error", "killed"]


@dataclass
class Run:
    """An open run. Only the main process holds the lock and writes; the other ranks hold the same values.

    changes: lines for the log of a resumed run: free settings and versions that differ from the last session.
    facts: values that an earlier session resolved for the whole run (`note`).
    note_on_last: a line for the log if the last session did not record its end.
    """

    folder: Path
    is_main: bool
    resumed: bool = False
    changes: list[str] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    note_on_last: str = ""
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
        answer = [(failure is not None, words, run.resumed, run.changes, run.note_on_last, run.facts, run._result)]
        broadcast_object_list(answer)
        failed, words, run.resumed, run.changes, run.note_on_last, run.facts, run._result = answer[0]
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
        """UserError for a folder that holds other files but no run."""
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
            self._record = _read_record(self.folder / "run.json")
            if self._record["script"] != script and not has_trained_nothing(self.folder):
                raise UserError(f"{self.folder} is a run of {self._record['script']}; give {script} another run=NAME")
        anew = self._check_settings(config, script)
        if (self.folder / "result.json").exists():
            self._result = read_object(self.folder / "result.json")
            if self._record.get("status") == "running":  # killed between the two files of `finish`
                self._set_status("finished", ended=_time_of(self.folder / "result.json"))
            return
        self._start_session(script, accelerator)
        if anew:
            # Not before run.json says so: a run that was killed between the two would refuse the settings that it has now.
            (self.folder / NOT_FINITE).unlink(missing_ok=True)

    def _check_settings(self, config: Any, script: str) -> bool:
        """Refuse other settings than those of the run, or store these; returns whether it begins anew with them."""
        path = self.folder / "config.yaml"
        if not path.exists():
            write_bytes_atomic(path, to_yaml(config).encode())
            return False
        empty = has_trained_nothing(self.folder)
        if config.resume == "never" and not empty:
            raise UserError(f"run {self.folder} exists, and resume=never; give another run=NAME, or leave resume out")
        self.resumed = True
        changed = diff(load(type(config), path), config)
        refused = binding(changed, FREE_KEYS + PLACES)
        if config.eval.patience is not None:
            refused += [line for line in changed if line.partition(":")[0] in PATIENCE_KEYS]
        anew = empty and bool(refused or self._record.get("script", script) != script)
        if anew:
            self._record["facts"] = {}
            self.changes.append("the run had trained nothing that was kept: it begins anew with the settings given now")
        elif refused:
            raise UserError(
                f"run {self.folder} was started with other settings (stored -> given): {'; '.join(refused)}. "
                "Give the stored ones, or another run=NAME"
            )
        if changed and not (self.folder / "result.json").exists():  # a finished run's settings are those that made it
            write_bytes_atomic(path, to_yaml(config).encode())
            self.changes += changed
        return anew

    def _start_session(self, script: str, accelerator: Accelerator) -> None:
        environment = describe_environment(accelerator)
        sessions = self._record.get("sessions", [])
        if sessions:
            if sessions[-1]["status"] == "running":  # it no longer holds the lock, but did not record its end
                sessions[-1] |= {"status": "killed", "ended": self._last_sign_of_life(sessions[-1]["started"])}
                self.note_on_last = f"the session of {sessions[-1]['started']} {ENDED_SILENTLY}"
            self.changes += _differences(sessions[-1]["environment"], environment)
        command = shlex.join(["python", *sys.argv])
        sessions.append({"started": now(), "ended": None, "status": "running", "message": ""})
        sessions[-1] |= {"command": command, "environment": environment, "changes": self.changes}
        facts = self._record.get("facts", {})
        self.facts = Facts.of(facts)
        self._record = {
            "script": script,
            "status": "running",
            "command": command,
            "facts": facts,
            "sessions": sessions,
        }
        self._write_record()

    def _last_sign_of_life(self, started: str) -> str:
        """The time at which a killed session last wrote figures; its start if it wrote none."""
        metrics = self.folder / "metrics.jsonl"
        return max(started, _time_of(metrics)) if metrics.exists() else started

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run; None while it is unfinished."""
        return self._result

    def note(self, facts: Facts) -> None:
        """Store what was resolved once and for all, e.g. which backend `auto` meant, for later sessions."""
        self.facts = facts
        found = facts.to_json()
        if self.is_main and not found.items() <= self._record["facts"].items():
            self._record["facts"] |= found
            self._write_record()

    def finish(self, result: dict[str, Any]) -> None:
        """Finish the run: from now on the same command prints `result`."""
        self._result = result
        if self.is_main:
            write_json_atomic(self.folder / "result.json", result)
        self.close("finished")

    def close(self, status: Status, message: str = "") -> None:
        """Record how this session ended and release the run; closing it again changes nothing."""
        if self._lock is None:
            return
        try:
            self._set_status(status, message)
        finally:
            self._let_go()

    def _set_status(self, status: Status, message: str = "", ended: str = "") -> None:
        """ended: when the session did, unless now."""
        self._record["status"] = status
        self._record["sessions"][-1] |= {"status": status, "message": message, "ended": ended or now()}
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
            share_failure(words)
        elif not isinstance(error, UserError):  # another rank's reason may say more than its absence
            words = shared_failure() or words
        # On a full disk `error` already says so, and the next session finds this one "running".
        with contextlib.suppress(OSError):
            self.close("error", words)

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _read_record(path: Path) -> dict[str, Any]:
    record = read_object(path, script=str, status=str, facts=dict, sessions=list)
    for session in record["sessions"]:
        kinds = (("started", str), ("status", str), ("environment", dict))
        if not isinstance(session, dict) or not all(isinstance(session.get(name), kind) for name, kind in kinds):
            raise UserError(f"{path} is damaged: a session is {session!r:.40}")
    return record


def moved(config: Any, folder: Path) -> bool:
    """Whether the run in `folder` was last told of other places than `config` names."""
    changes = diff(load(type(config), folder / "config.yaml"), config)
    return len(binding(changes, PLACES)) < len(changes)


def binding(changes: list[str], free: tuple[str, ...] = FREE_KEYS) -> list[str]:
    """The lines of `diff` about settings that are neither named in `free` nor in a section that is."""
    keys = {line: line.partition(":")[0] for line in changes}
    return [line for line, key in keys.items() if not any(key == one or key.startswith(f"{one}.") for one in free)]


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]


def _time_of(path: Path) -> str:
    """When a file was last written."""
    return text_of(datetime.fromtimestamp(path.stat().st_mtime, UTC))
