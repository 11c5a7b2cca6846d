"""What the files of runs and caches say, for the tables of tools/reproduce.py: one run, several seeds, the machine.

Reads only. Invariant: every figure is one of a run's own files, or the mean, standard deviation or difference of such.
Accuracies are in percent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.files import read_json
from pipelines.records.layout import ROW
from pipelines.records.reader import Records
from tools.paper.jobs import Ending
from tools.paper.plan import ANY_SAMPLES, Task, is_done
from tools.paper.timing import epochs_done
from train.data import views_of
from train.run.lock import ENDED_SILENTLY, status_of
from train.watch.text import clock

GROUPS = ("top1", "many", "medium", "few")
PUBLISHED_TRAIN_MD5 = "16019d7e3df5f24257cddd939b257f8d"  # of the file `train` in the published cifar-100-python.tar.gz


# ---- one run ----


@dataclass
class Outcome:
    """What a run's files say. state: finished, unfinished, failed, damaged or not run; words: why, or how far.

    cost: of answering for an image, `flops` and `experts_used`, as far as its result has them.
    """

    task: Task
    state: str
    words: str = ""
    accuracy: dict[str, float | None] = field(default_factory=dict)
    classes: list[float | None] = field(default_factory=list)
    tau: float | None = None
    test_images: int = 0
    images: int = 0
    speed: dict[str, float | None] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    sessions: list[tuple[datetime, datetime]] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    computed: str = ""
    records: str | None = None

    @property
    def status(self) -> str:
        """State and words, for a table."""
        return ": ".join(filter(None, (self.state, self.words)))

    @property
    def wall_s(self) -> float:
        return sum((end - start).total_seconds() for start, end in self.sessions)

    def as_json(self) -> dict[str, Any]:
        task = self.task
        return {
            **{"run": task.name, "role": task.role, task.dataset.column: task.dataset.value, "seed": task.seed},
            **{"teacher": task.teacher, "state": self.state, "words": self.words, **self.accuracy, "tau": self.tau},
            **{"speed": self.speed, "wall_s": self.wall_s, "sessions": len(self.sessions), **self.cost},
            **{"computed": self.computed, "records": self.records},
        }


def outcome(task: Task, out: Path, ending: Ending | None = None) -> Outcome:
    """What a run in OUT has come to; ending: how its process ended just now, if this call started it."""
    folder = out / task.folder
    if is_done(task, out):
        try:
            return _finished(task, folder)
        except (UserError, LookupError, TypeError, ValueError) as error:
            return Outcome(task, "damaged", f"{error}; delete {task.folder} and run the same command again")
    if ending is not None and ending.code != 0:
        return Outcome(task, "failed" if ending.code else "not run", ending.words)
    if not (folder / "run.json").exists():
        return Outcome(task, "not run")
    stored = read_json(folder / "run.json").get("status", "")
    words = f"epoch {epochs_done(task, out):.0f} of {task.settings.schedule.epochs}"
    if status_of(folder, stored) != stored:
        words += f", {ENDED_SILENTLY}"
    return Outcome(task, "unfinished", words)


def _finished(task: Task, folder: Path) -> Outcome:
    def percent(share: float | None) -> float | None:
        return None if share is None else 100 * share

    result, record = read_json(folder / "result.json"), read_json(folder / "run.json")
    facts, sessions, settings = record["facts"], record["sessions"], task.settings
    precision = facts.get("precision", settings.precision)
    return Outcome(
        task,
        "finished",
        accuracy={group: percent(result["test"][group]) for group in GROUPS},
        classes=[percent(share) for share in result["test"]["classes"]],
        tau=result.get("tau"),
        test_images=result["test"]["samples"],
        images=result["steps"] * settings.optim.batch,
        speed=result["speed"],
        cost=_cost(result["test"], task.experts),
        # A killed session of a revision that did not write when it was last alive counts as none.
        sessions=[
            (datetime.fromisoformat(one["started"]), datetime.fromisoformat(one["ended"] or one["started"]))
            for one in sessions
        ],
        environments=[one["environment"] for one in sessions],
        computed=f"{precision}{', compiled' if settings.compile else ''}, backend {facts.get('backend')}",
        records=facts.get("train"),
    )


def _cost(figures: Mapping[str, Any], experts: int | None) -> dict[str, float]:
    """Of the mean image, where routers decide; all experts answer where there are none. Earlier revisions told nothing."""
    if "flops" not in figures:
        return {}
    used = {} if experts is None else {"experts_used": figures.get("experts_used", experts)}
    return {"flops": figures.get("flops_routed", figures["flops"]), **used}


class CacheFacts(NamedTuple):
    """A cache on the disk; seconds: of the sessions that ended by themselves, which wrote all of it if `timed_whole`."""

    name: str
    views: int
    megabytes: float
    seconds: float
    timed_whole: bool

    @property
    def written_in(self) -> str:
        return clock(self.seconds) if self.timed_whole else f"more than {clock(self.seconds)}"


def cache_facts(task: Task, out: Path) -> CacheFacts | None:
    """What a cache holds and cost; None when it is missing or unfinished."""
    views = views_of(task.settings, ANY_SAMPLES)
    for done in (out / task.folder).glob("*/done.json"):
        if (written := read_json(done)["views"]) >= views:
            size = sum(path.stat().st_size for path in done.parent.rglob("*") if path.is_file())
            sessions = read_json(done.with_name("made.json"))["sessions"]
            seconds, images = (sum(session.get(name, 0) for session in sessions) for name in ("seconds", "images"))
            samples = done.with_name("index.bin").stat().st_size // ROW.itemsize
            return CacheFacts(task.name, views, size / 1e6, seconds, images >= written * samples)
    return None


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
    """By how much each finished student exceeds the overall accuracy of its own teacher."""
    teachers = {run.task.name: run.accuracy["top1"] for run in runs if run.state == "finished"}
    found = []
    for student in students:
        own, teacher = student.accuracy.get("top1"), teachers.get(student.task.teacher or "")
        if own is not None and teacher is not None:
            found.append(own - teacher)
    return found


def at_work(runs: Sequence[Outcome]) -> tuple[float, int]:
    """The seconds in which at least one session ran, and the largest number of sessions that ran at the same time.

    Records hold whole seconds, so a session may end in the second of its start: it lasts 0 s, and it ran alone for all that
    is known.
    """
    changes = sorted(
        (time, change)
        for run in runs
        for start, end in run.sessions
        if end > start
        for time, change in ((start, 1), (end, -1))
    )
    busy, most, now = 0.0, int(any(run.sessions for run in runs)), 0
    for i, (time, change) in enumerate(changes):
        if now:
            busy += (time - changes[i - 1][0]).total_seconds()
        now += change
        most = max(most, now)
    return busy, most


# ---- what the figures belong to ----


def draw_of_images(tasks: Sequence[Task], out: Path) -> str:
    """A sentence on whether the long-tailed draw is the papers'; from the records, which say what they were drawn from."""
    data = [out / task.folder / "train.beton" for task in tasks if task.kind == "data" and is_done(task, out)]
    sources = sorted({str(Records(path).manifest["made"]["options"].get("train_md5")) for path in data})
    if sources == [PUBLISHED_TRAIN_MD5]:
        return "The draw of images is the papers': that of the published archive, in its order."
    if not sources or "None" in sources:
        return (
            "Whether the draw of images is the papers' is not known: the records do not say what archive they are of."
        )
    return (
        f"The archive's `train` is not the published file (MD5 {', '.join(sources)}): the class counts are the papers', but "
        "which images of a class are kept follows from their order in the archive, so the draw of images differs where that "
        "order does."
    )


def environment_facts(runs: Sequence[Outcome]) -> dict[str, str]:
    """Device, versions, revision and time of all sessions of finished runs; several values where they differed."""
    sessions = [environment for run in runs for environment in run.environments]
    if not sessions:
        return {"device": "nothing has been run to its end"}

    def values(name: str) -> str:
        return " and ".join(dict.fromkeys(str(one[name]) for one in sessions if one.get(name) is not None))

    revisions = (
        f"{one['git_revision']}{' with changes' if one.get('git_dirty') else ''}"
        for one in sessions
        if "git_revision" in one
    )
    apart = ("host", "device", "world_size", "git_revision", "git_dirty")
    names = dict.fromkeys(name for one in sessions for name in one if name not in apart)
    days = sorted(time.date().isoformat() for run in runs for session in run.sessions for time in session)
    busy, most = at_work(runs)
    facts = {
        "device": values("device"),
        "computed in": " and ".join(dict.fromkeys(run.computed for run in runs if run.computed)),
        "versions": ", ".join(f"{name} {values(name)}" for name in names if values(name)),
        "code": " and ".join(dict.fromkeys(revisions)) or "revision unknown",
        "trained": " to ".join(dict.fromkeys((days[0], days[-1]))) + f", at most {most} at a time",
    }
    if busy:
        images = sum(run.images for run in runs)
        facts["images/s in total"] = f"{images / busy:,.0f}, evaluations included, while at least one was at work"
    return facts
