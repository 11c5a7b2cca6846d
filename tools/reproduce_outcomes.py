"""What the files of runs and caches say, for the tables of tools/reproduce.py: one run, several seeds, the machine.

Reads only. Invariant: every figure is one of a run's own files, or the mean, standard deviation or difference of such.
Accuracies are in percent.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pipelines.files import read_json
from tools.reproduce_jobs import Ending
from tools.reproduce_plan import Task, is_done, views_of
from tools.reproduce_timing import epochs_done

GROUPS = ("top1", "many", "medium", "few")
# Of the published cifar-100-python.tar.gz, and of the file `train` in it.
PUBLISHED_MD5 = ("eb9058c3a382ffc7106e4002c42a8d85", "16019d7e3df5f24257cddd939b257f8d")


# ---- one run ----


@dataclass
class Outcome:
    """What a run's files say. state: finished, unfinished, failed or not run; words: why, or how far.

    killed: sessions of which only the beginning is known, so that `wall_s` is short of them.
    """

    task: Task
    state: str
    words: str = ""
    accuracy: dict[str, float | None] = field(default_factory=dict)
    tau: float | None = None
    test_images: int = 0
    images_per_s: float | None = None
    images: int = 0
    wall_s: float = 0.0
    killed: int = 0
    sessions: list[tuple[datetime, datetime]] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    records: str | None = None

    @property
    def status(self) -> str:
        """State and words, for a table."""
        return ": ".join(filter(None, (self.state, self.words)))

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.task.name,
            "role": self.task.role,
            "imbalance": self.task.imbalance,
            "seed": self.task.seed,
            "teacher": self.task.teacher,
            "state": self.state,
            "words": self.words,
            **self.accuracy,
            "tau": self.tau,
            "images_per_s": self.images_per_s,
            "wall_s": self.wall_s,
            "killed_sessions": self.killed,
            "records": self.records,
        }


def outcome(task: Task, out: Path, ending: Ending | None) -> Outcome:
    """Of a run in OUT; ending: how it went just now, if it was started."""
    folder = out / task.folder
    if not is_done(task, out):
        if ending is not None and ending.code != 0:
            return Outcome(task, "failed" if ending.code else "not run", ending.words)
        if not (folder / "run.json").exists():
            return Outcome(task, "not run")
        return Outcome(task, "unfinished", f"epoch {epochs_done(task, out):g} of {task.settings.schedule.epochs}")
    result, record = read_json(folder / "result.json"), read_json(folder / "run.json")
    test = result["test"]
    found = Outcome(
        task,
        "finished",
        accuracy={group: None if test[group] is None else 100 * test[group] for group in GROUPS},
        tau=result.get("tau"),
        test_images=test["samples"],
        images_per_s=result["speed"]["images_per_s"],
        images=result["steps"] * task.settings.optim.batch,
        environments=[session["environment"] for session in record["sessions"]],
        records=record["facts"].get("train"),
    )
    for session in record["sessions"]:
        if session["ended"] is None:
            found.killed += 1
        else:
            found.sessions.append(
                (datetime.fromisoformat(session["started"]), datetime.fromisoformat(session["ended"]))
            )
    found.wall_s = sum((end - start).total_seconds() for start, end in found.sessions)
    return found


class CacheFacts(NamedTuple):
    """A cache on the disk; seconds: of all sessions that wrote it."""

    name: str
    views: int
    megabytes: float
    seconds: float


def cache_facts(task: Task, out: Path) -> CacheFacts | None:
    """None when it is not there, whole."""
    if not is_done(task, out):
        return None
    files = [path for path in (out / task.folder).rglob("*") if path.is_file()]
    made = [read_json(path) for path in files if path.name == "made.json"]
    seconds = sum(session["seconds"] for one in made for session in one["sessions"])
    return CacheFacts(task.name, views_of(task.settings), sum(path.stat().st_size for path in files) / 1e6, seconds)


# ---- several seeds ----


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1; None of fewer than two values) over seeds; mean None without a value."""

    mean: float | None
    std: float | None
    n: int

    def text(self, decimals: int = 2) -> str:
        if self.mean is None:
            return "-"
        spread = "" if self.std is None else f" ± {self.std:,.{decimals}f}"
        return f"{self.mean:,.{decimals}f}{spread}"


def spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def gains(students: Sequence[Outcome], runs: Sequence[Outcome]) -> list[float]:
    """How much each finished student is above its own teacher, overall."""
    teachers = {run.task.name: run.accuracy["top1"] for run in runs if run.state == "finished"}
    found = []
    for student in students:
        own, teacher = student.accuracy.get("top1"), teachers.get(student.task.teacher or "")
        if own is not None and teacher is not None:
            found.append(own - teacher)
    return found


def total_images_per_s(runs: Sequence[Outcome]) -> float | None:
    """Images of all finished runs per second in which at least one of them was at work; None when a session has no end."""
    finished = [run for run in runs if run.state == "finished"]
    if not finished or any(run.killed for run in finished):
        return None
    busy, until = 0.0, None
    for start, end in sorted(session for run in finished for session in run.sessions):
        begin = start if until is None else max(start, until)
        if end > begin:
            busy += (end - begin).total_seconds()
        until = end if until is None else max(until, end)
    return sum(run.images for run in finished) / busy if busy else None


# ---- what the figures belong to ----


def draw_of_images(archive: Path) -> str:
    """A sentence on whether the long-tailed draw is the papers'."""
    file = next(iter(sorted(archive.rglob("train"))), None) if archive.is_dir() else archive
    if file is None or not file.is_file():
        return "The archive is not at hand: whether the draw of images is the papers' is not known."
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "md5").hexdigest()
    if digest in PUBLISHED_MD5:
        return "The draw of images is the papers': that of the published archive, in its order."
    return (
        "The draw of images differs from the papers': the class counts are theirs, but which images of a class are kept follows "
        f"from their order in the archive, and `{archive.name}` is not the published file (MD5 {digest})."
    )


def environment_facts(runs: Sequence[Outcome]) -> dict[str, str]:
    """Device, versions and revision of all sessions; several values where they differed."""
    sessions = [environment for run in runs for environment in run.environments]

    def values(name: str) -> str:
        return " and ".join(dict.fromkeys(str(one[name]) for one in sessions if one.get(name) is not None))

    revisions = (
        f"{one['git_revision']}{' with changes' if one.get('git_dirty') else ''}"
        for one in sessions
        if "git_revision" in one
    )
    if not sessions:
        return {"device": "nothing has been run to its end"}
    apart = ("host", "device", "world_size", "git_revision", "git_dirty")
    names = dict.fromkeys(name for one in sessions for name in one if name not in apart)
    return {
        "device": values("device"),
        "versions": ", ".join(f"{name} {values(name)}" for name in names if values(name)),
        "code": " and ".join(dict.fromkeys(revisions)) or "revision unknown",
    }
