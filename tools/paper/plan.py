"""What tools/reproduce.py has to run: tasks with their commands, what each needs first, and what lies there already.

A task is one command of a user's: a conversion, a training, a cache. Everything lies below one folder, OUT, which is also the
working directory of all commands, so that the shipped configurations are used as they are:

    OUT/data/DATASET/                records             OUT/caches/TEACHER-vV/    V views of one teacher
    OUT/runs/METHOD_TAG-sS/          of a full length    OUT/runs/..-eE-sS/        runs of E epochs (--epochs-scale)

Invariant: a run in its place is the one that is asked for (settings, records, teacher) or is refused. Whether a cache is whole is
for train/cache_logits.py to say, which is started for every student that is missing and is quick where nothing is.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.errors import UserError
from pipelines.records.reader import Records
from tools.paper.datasets import CIFAR100_LT, METHODS, ROOT, ROWS, Dataset
from train.config import Config
from train.data import epochs_of, views_of
from train.networks.final import load_final
from train.networks.weights import weights_hash
from train.run.facts import Facts
from train.run.folder import FREE_KEYS as RESUMABLE
from train.run.folder import binding
from train.settings import diff, load, value_text

SCRIPTS = {
    "data": "tools/convert.py",
    "teacher": "train/teacher.py",
    "cache": "train/cache_logits.py",
    "distill": "train/distill.py",
    "router": "train/router.py",
}
# Settings that this tool gives itself, or that define what is reproduced.
OWN_KEYS = (
    *("run", "resume", "eval_only", "seed", "data.train", "data.test", "data.seed", "data.views"),
    *("distill", "cache.paths", "cache.dir"),
)
# What may differ between a run and what is asked for. Less than a run may be resumed with: a row of the table is one setting, and
# another optim.accumulate rounds otherwise.
FREE_KEYS = tuple(key for key in RESUMABLE if key != "optim.accumulate")
# train/data.py needs a number of images. It is unknown before a conversion, and a schedule in epochs, as all are here, does not
# depend on it.
ANY_SAMPLES = 1
SWITCHES = ("drw_from", "diversity_from")  # epochs of `distill`
_SAVE_EVERY = "save.every_epochs=10"  # these epochs are short, and a run that is asked to stop saves anyway


@functools.cache
def settings_of(arguments: tuple[str, ...]) -> Config:
    """The settings of a configuration's file and KEY=VALUEs; a UserError names one that is wrong."""
    config = load(Config, arguments[0], arguments[1:])
    if config.schedule.epochs is None:
        raise UserError("schedule.epochs=null: tools/reproduce.py plans in epochs; shorten by --epochs-scale")
    return config


@dataclass(frozen=True, kw_only=True)
class Task:
    """One command. name: of the run or of what is made; role: the row of the table that it belongs to.

    folder: what it makes, below OUT; needs: names of the tasks before it; teacher: the name of a student's; experts: of the
    network that computes, None for a plain one.
    """

    name: str
    kind: Literal["data", "teacher", "cache", "distill", "router"]
    role: str
    dataset: Dataset
    folder: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seed: int = 0
    teacher: str | None = None
    experts: int | None = None

    @property
    def command(self) -> list[str]:
        """What follows `python`."""
        return [str(ROOT / SCRIPTS[self.kind]), *self.arguments]

    @property
    def is_run(self) -> bool:
        return self.kind in ("teacher", "distill", "router")

    @property
    def work(self) -> str:
        """What an image costs the same in: the kind, and the number of experts where there are any."""
        return self.kind if self.experts is None else f"{self.kind}, {self.experts} experts"

    @property
    def settings(self) -> Config:
        """The settings of a training or a cache; a conversion has none."""
        return settings_of(self.arguments)


class Choice(NamedTuple):
    """What the command line decides for all tasks. settings: KEY=VALUE for every training and cache; threads: of each
    process."""

    archive: Path | None
    scale: float
    settings: tuple[str, ...]
    threads: int


# ---- settings ----


def check_settings(settings: Sequence[str]) -> None:
    """Refuse what is the tool's own to set."""
    for setting in settings:
        key = setting.partition("=")[0]
        for own in OWN_KEYS:
            if key == own or key.startswith(f"{own}.") or own.startswith(f"{key}."):
                raise UserError(f"{setting}: {own} is set by this tool or is part of what it reproduces; leave it out")


@functools.cache
def scaled_schedule(config_file: Path, scale: float) -> list[str]:
    """Settings that shorten (or lengthen) a schedule: epochs, warm-up, milestones and switches; none at scale 1.

    Boundaries that rounding moves onto each other or onto an end of the training fall away.
    """
    if scale == 1:
        return []
    config = load(Config, config_file)
    schedule, switches = config.schedule, {name: getattr(config.distill, name) for name in SWITCHES}

    def scaled(epoch: int) -> int:
        return int(epoch * scale + 0.5)

    epochs = max(1, scaled(epochs_of(config, ANY_SAMPLES)))
    kept = sorted({scaled(epoch) for epoch in schedule.milestones if 0 < scaled(epoch) < epochs})
    kind = [] if kept or not schedule.milestones else ["schedule.kind=constant"]
    warmup = min(scaled(schedule.warmup_epochs), epochs)
    numbers = {"epochs": epochs, "warmup_epochs": warmup, "milestones": value_text(kept).replace(" ", "")}
    switched = [
        f"distill.{name}={scaled(epoch) if 0 < scaled(epoch) < epochs else 'null'}"
        for name, epoch in switches.items()
        if epoch is not None
    ]
    return [*kind, *(f"schedule.{name}={value}" for name, value in numbers.items()), *switched]


def _arguments(choice: Choice, method: str, dataset: Dataset, *own: str) -> tuple[str, ...]:
    """Configuration and settings of a command; later ones win."""
    file, row = dataset.configs[method], ROWS[method]
    scale = 1 if row.network else choice.scale  # routers learn in so few epochs that none can be spared
    common = (*scaled_schedule(file, scale), *dataset.settings, *dataset.own.get(method, ()))
    return str(file), *common, f"data.workers={choice.threads}", _SAVE_EVERY, *choice.settings, *own


def run_stem(choice: Choice, method: str, dataset: Dataset, variant: str = "") -> str:
    """The name of a run without its seed: the entry scripts' default; runs of another length have that in their name.

    variant: what tells it from other runs of the method on this data set, such as "eps0.1". Routers, which are always trained
    for the same number of epochs, have the length of their network in their name.
    """
    settings = settings_of(_arguments(choice, ROWS[method].network or method, dataset))
    length = "" if choice.scale == 1 else f"-e{settings.schedule.epochs}"
    return "_".join(filter(None, (method, dataset.tag, variant))) + length


def seeds_found(choice: Choice, datasets: Sequence[Dataset], out: Path, methods: Sequence[str] = METHODS) -> set[int]:
    """Seeds of which any run of one of the methods on one of the data sets has been begun."""
    stems = {run_stem(choice, method, dataset) for method in methods for dataset in datasets}
    names = (re.fullmatch(r"(.+)-s(\d+)", folder.name) for folder in (out / "runs").glob("*"))
    return {int(name[2]) for name in names if name and name[1] in stems}


# ---- tasks ----


def data_task(choice: Choice, dataset: Dataset) -> Task:
    """Records of a data set."""
    places = ("--archive", str(choice.archive), "--out", dataset.folder, "--force")
    return Task(
        name=f"data_{dataset.tag}",
        kind="data",
        role="data",
        dataset=dataset,
        folder=dataset.folder,
        arguments=(*dataset.convert, *places, "--workers", str(choice.threads)),
    )


def teacher_task(
    choice: Choice, method: str, dataset: Dataset, seed: int, *own: str, variant: str = "", role: str | None = None
) -> Task:
    """A training on hard labels. own: settings of this task; variant: in its name; role: other than the method."""
    name = f"{run_stem(choice, method, dataset, variant)}-s{seed}"
    arguments = _arguments(choice, method, dataset, *own, f"run={name}", f"seed={seed}")
    return Task(
        name=name,
        kind="teacher",
        role=role or method,
        dataset=dataset,
        folder=f"runs/{name}",
        arguments=arguments,
        needs=(data_task(choice, dataset).name,),
        seed=seed,
        experts=settings_of(arguments).model.experts,
    )


class Teacher(NamedTuple):
    """The teacher of a student. given: the value of distill.teacher; task: what trains it, None where it is finished already."""

    name: str
    given: str
    task: str | None
    experts: int | None = None

    @classmethod
    def of(cls, task: Task) -> "Teacher":
        """The teacher that a task trains."""
        return cls(task.name, task.name, task.name, task.experts)


def cache_task(choice: Choice, teacher: Teacher, dataset: Dataset, seed: int, *own: str, method: str = "dive") -> Task:
    """The teacher's logits for all views of a student whose settings are those of `method` and `own`."""
    common = _arguments(choice, method, dataset, *own)
    views = views_of(settings_of(common), ANY_SAMPLES)
    folder = f"caches/{teacher.name}-v{views}"
    return Task(
        name=f"cache_{teacher.name}-v{views}",
        kind="cache",
        role="cache",
        dataset=dataset,
        folder=folder,
        arguments=(*common, f"distill.teacher={teacher.given}", f"cache.dir={folder}"),
        needs=(data_task(choice, dataset).name, *((teacher.task,) if teacher.task else ())),
        seed=seed,
        teacher=teacher.name,
        experts=teacher.experts,
    )


def student_task(
    choice: Choice,
    name: str,
    role: str,
    teacher: Teacher,
    cache: Task | None,
    dataset: Dataset,
    seed: int,
    *own: str,
    method: str = "dive",
) -> Task:
    """A student of a cache, or without one of the online teacher. Named with a cache, the teacher has to be that of the cache."""
    sources = (f"distill.teacher={teacher.given}", *((f"cache.paths=[{cache.folder}]",) if cache else ()))
    before = cache.name if cache else teacher.task
    arguments = _arguments(choice, method, dataset, *own, f"run={name}", f"seed={seed}", *sources)
    return Task(
        name=name,
        kind="distill",
        role=role,
        dataset=dataset,
        folder=f"runs/{name}",
        arguments=arguments,
        needs=(data_task(choice, dataset).name, *((before,) if before else ())),
        seed=seed,
        teacher=teacher.name,
        experts=settings_of(arguments).model.experts,
    )


def router_task(choice: Choice, method: str, network: Task, dataset: Dataset, seed: int) -> Task:
    """The routers of a network that another task trains."""
    name = f"{run_stem(choice, method, dataset)}-s{seed}"
    own = (f"run={name}", f"seed={seed}", f"model.init={network.name}")
    return Task(
        name=name,
        kind="router",
        role=method,
        dataset=dataset,
        folder=f"runs/{name}",
        arguments=_arguments(choice, method, dataset, *own),
        needs=(data_task(choice, dataset).name, network.name),
        seed=seed,
        experts=network.experts,
    )


def table_tasks(
    choice: Choice, datasets: Sequence[Dataset], seeds: Sequence[int], methods: Sequence[str] = METHODS
) -> list[Task]:
    """Rows of the table: chains such as teacher, cache and student first, and rows for which nothing waits last."""
    asked = with_needed(methods)
    chained = {name for name, row in ROWS.items() if row.after} | {row.after for row in ROWS.values()}
    tasks = [data_task(choice, dataset) for dataset in datasets]
    for first in (True, False):
        rows = [method for method in asked if (method in chained) == first]
        for dataset in datasets:
            for seed in seeds:
                tasks += [task for method in rows for task in _row_tasks(choice, method, dataset, seed)]
    return tasks


def with_needed(methods: Sequence[str]) -> list[str]:
    """The rows asked for and those whose runs they need, in the order of ROWS."""
    asked = set(methods)
    for method, row in reversed(ROWS.items()):
        asked |= {row.after} if method in asked and row.after else set()
    return [method for method in ROWS if method in asked]


def _row_tasks(choice: Choice, method: str, dataset: Dataset, seed: int) -> list[Task]:
    """The run of a row and a seed, and a student's cache. What it needs is a row of its own."""
    row = ROWS[method]
    if row.after is None:
        return [teacher_task(choice, method, dataset, seed)]
    *_, needed = _row_tasks(choice, row.after, dataset, seed)
    if row.network:
        return [router_task(choice, method, needed, dataset, seed)]
    teacher = Teacher.of(needed)
    cache = cache_task(choice, teacher, dataset, seed, method=method)
    name = f"{run_stem(choice, method, dataset)}-s{seed}"
    return [cache, student_task(choice, name, method, teacher, cache, dataset, seed, method=method)]


# ---- the studies ----

STUDIES_DATASET = CIFAR100_LT[100]
# role: title
STUDIES = {
    "online": "(a) online teacher",
    "cache": "(b) = (e) u8 cache, V = epochs; the paper's tau and p",
    "tenth": "(c) u8 cache, V = epochs / 10",
    "rule": "(d) the flatness rule's T, p as in the paper",
    "matched": "(f) matched: the paper's T = tau / p on both sides, p = 1",
}


def study_tasks(choice: Choice, seeds: Sequence[int], given: Path | None) -> list[Task]:
    """Students of one teacher (that of their seed, or `given`, a finished run) that differ in one thing each."""
    tasks = [data_task(choice, STUDIES_DATASET)]
    for seed in seeds:
        if given is None:
            trained = teacher_task(choice, "bsce", STUDIES_DATASET, seed)
            tasks.append(trained)
            teacher = Teacher.of(trained)
        else:
            teacher = Teacher(given.name, str(given), None)
        tasks += _students(choice, teacher, seed)
    unique = {task.name: task for task in tasks}  # a given teacher has one cache for all seeds
    return list(unique.values())


def _students(choice: Choice, teacher: Teacher, seed: int) -> Iterator[Task]:
    config = settings_of(_arguments(choice, "dive", STUDIES_DATASET))
    epochs, distill = epochs_of(config, ANY_SAMPLES), config.distill
    assert distill.tau is not None
    tenth = f"data.views={max(1, epochs // 10)}"
    full = cache_task(choice, teacher, STUDIES_DATASET, seed, "cache.codec=u8")
    small = cache_task(choice, teacher, STUDIES_DATASET, seed, "cache.codec=u8", tenth)
    differing: dict[str, tuple[Task | None, list[str]]] = {
        "online": (None, []),
        "cache": (full, []),
        "tenth": (small, [tenth]),
        "rule": (full, ["distill.tau=null"]),
        "matched": (full, [f"distill.tau={distill.tau / distill.p:g}", "distill.p=1"]),
    }
    yield from (full, small)
    for role, (cache, own) in differing.items():
        name = f"study_{role}-e{epochs}-s{seed}-of-{teacher.name}"
        yield student_task(choice, name, role, teacher, cache, STUDIES_DATASET, seed, *own)


# ---- what lies there already ----


def is_done(task: Task, out: Path) -> bool:
    """Whether a run is finished or a data set converted. False for every cache: only train/cache_logits.py judges those."""
    folder = out / task.folder
    if task.kind == "data":
        return all((folder / f"{split}.beton").exists() for split in ("train", "test"))
    return task.is_run and (folder / "result.json").exists()


def wanted(tasks: Sequence[Task], out: Path) -> list[Task]:
    """The tasks to run, in order: unfinished runs, their caches, and the teachers and data that these need."""
    missing = {task.name for task in tasks if task.is_run and not is_done(task, out)}
    for task in reversed(tasks):  # a task comes after what it needs
        needed = any(task.name in other.needs and other.name in missing for other in tasks)
        if needed and not is_done(task, out):
            missing.add(task.name)
    return [task for task in tasks if task.name in missing]


def refuse_strangers(tasks: Sequence[Task], out: Path) -> None:
    """Every run folder that exists must be the run that is meant, on the records and of the teacher that lie there."""
    folders = {task.name: out / task.folder for task in tasks}
    data = {task.dataset.name: folders[task.name] for task in tasks if task.kind == "data" and is_done(task, out)}
    digests = {name: Records(folder / "train.beton").digest for name, folder in data.items()}
    for task in tasks:
        folder = folders[task.name]
        if not task.is_run or not (folder / "config.yaml").exists():
            continue
        differing = binding(diff(load(Config, folder / "config.yaml"), task.settings), FREE_KEYS)
        if differing:
            raise UserError(
                f"{folder} was started with other settings (there -> asked for): {'; '.join(differing)}. Ask for the same, "
                "or give another --out"
            )
        facts = Facts.of_run(folder)
        trained_on = facts.digests.get("train")
        if None not in (trained_on, digests.get(task.dataset.name)) and trained_on != digests[task.dataset.name]:
            raise UserError(
                f"{folder} was trained on other records than {out}/data holds (digest {trained_on}, not "
                f"{digests[task.dataset.name]}): give another --out"
            )
        settings = task.settings
        if facts.teachers:
            words = ("student", "learnt from another teacher")
            _refuse_another(folder, words, settings.distill.teacher, out, facts.teachers)
        if facts.init and task.kind == "router":
            words = ("run", "has the routers of another network")
            _refuse_another(folder, words, settings.model.init, out, [facts.init])


def _refuse_another(folder: Path, words: tuple[str, str], source: str | None, out: Path, hashes: list[str]) -> None:
    """source: the run that the one in `folder` needed; hashes: of the weights that it found there; words: what it is and did."""
    given = Path(source or "")
    needed = given if given.is_absolute() else out / "runs" / given
    if not (needed / "result.json").exists():  # it will be trained again, and checked after that
        return
    weights = weights_hash(load_final(needed)[0])
    if hashes != [weights]:
        raise UserError(
            f"{folder} {words[1]} than {needed} (weights {hashes[0][:12]}, not {weights[:12]}): delete the {words[0]}, which is "
            "then trained again, or give another --out"
        )
