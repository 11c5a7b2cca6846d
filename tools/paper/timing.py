"""How long the tasks of tools/reproduce.py will take on this device: measured by a few short ones, never looked up.

As many chains of teacher, cache and student (or of what the study has of these) as there will be jobs run at the same time, by
the same commands as the real ones, one epoch each on a CPU (more on a GPU, where an epoch takes a second), in a folder OUT/timing
that is laid out as OUT is. Owns the measurement, kept in OUT/timing.json until device, settings or jobs change, and the sum that
turns it into hours.
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipelines.errors import UserError
from pipelines.files import read_json, write_json_atomic
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.records.reader import Records
from tools.paper.datasets import Dataset
from tools.paper.jobs import Jobs
from tools.paper.plan import SWITCHES, Choice, Task, is_done
from train.data import epochs_of, views_of
from train.run.environment import device_name
from train.watch.text import counted

_EPOCHS = {"cpu": 1, "cuda": 20}  # long enough that all chains train at the same time, and for clocks to settle


# What a study has of each seed, on a data set: (choice, data set, seeds, the tasks that are missing) -> tasks that cost an
# image what those cost, among them the tasks of the data.
Chains = Callable[[Choice, Dataset, Sequence[int], Sequence[Task]], list[Task]]


class Cost(NamedTuple):
    """start_s: what comes once (imports, compilation); image_s: seconds per image of one process among all jobs."""

    start_s: float
    image_s: float


class Costs(NamedTuple):
    """kinds: by `Task.work`, of those that a study has; device: the one they were measured on."""

    kinds: Mapping[str, Cost]
    device: str

    def evaluated_image_s(self, task: Task) -> float:
        """Evaluating an image costs as much as caching it; where the network writes no cache, as much as training its routers
        on it, or a third of another training: a backward pass costs twice a forward pass."""
        cache = self.kinds.get(replace(task, kind="cache").work)
        return cache.image_s if cache else self.kinds[task.work].image_s / (1 if task.kind == "router" else 3)


class Rows(NamedTuple):
    """Images of a data set."""

    train: int
    test: int


# ---- measuring ----


def measured(
    choice: Choice, missing: Sequence[Task], chains: Chains, out: Path, slots: int, say: Callable[[str], None]
) -> Costs:
    """The costs of what is missing, on this device with `slots` processes at a time.

    They are read from OUT/timing.json, or measured on the data set of the first task, in a minute or two for plain networks.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = {
        "host": platform.node(),
        "device": device_name(device),
        "torch": torch.__version__,
        "jobs": slots,
        "threads": int(os.environ.get("OMP_NUM_THREADS", choice.threads)),
        "settings": list(choice.settings),
    }
    tasks = _short_tasks(choice, missing, chains, slots, _EPOCHS[device.type])
    kinds = {task.work for task in tasks}
    path = out / "timing.json"
    with contextlib.suppress(
        UserError, LookupError, TypeError
    ):  # one that cannot be read, or lacks a kind, is measured again
        kept = read_json(path)
        if kept["key"] == key and kinds <= set(kept["costs"]):
            return _costs(kept["costs"])
    say(f"measuring this device by {counted(len(tasks), 'short run')}" + f", {slots} at a time" * (slots > 1))
    place = out / "timing"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "data").symlink_to(Path("..") / "data")
    jobs = Jobs(place, slots, choice.threads, say)
    ended = jobs.run(tasks)
    for task in tasks:
        if ended[task.name].code != 0:
            raise UserError(
                f"{task.name}, which measures this device, failed: {ended[task.name].words}; log: {jobs.log(task)}"
            )
    costs = _costs_of(tasks, place, {name: end.seconds for name, end in ended.items()}) | {"device": key["device"]}
    write_json_atomic(path, {"key": key, "costs": costs})
    shutil.rmtree(place)
    return _costs(costs)


def _short_tasks(choice: Choice, missing: Sequence[Task], chains: Chains, slots: int, epochs: int) -> list[Task]:
    """A chain for each slot, told apart by their seeds, without evaluation."""
    short = [
        "schedule.kind=constant",
        "schedule.milestones=[]",
        "schedule.warmup_epochs=0",
        f"schedule.epochs={epochs}",
        *(f"distill.{name}=null" for name in SWITCHES),
    ]
    short += ["data.test=null"]
    choice = choice._replace(scale=1.0, settings=(*choice.settings, *short))
    return [task for task in chains(choice, missing[0].dataset, range(slots), missing) if task.kind != "data"]


def _costs_of(tasks: Sequence[Task], place: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Means over the slots, as JSON holds them."""
    found: dict[str, list[Cost]] = {}
    for task in tasks:
        cost = _cache_cost if task.kind == "cache" else _training_cost
        found.setdefault(task.work, []).append(cost(task, place, seconds[task.name]))
    return {kind: [sum(values) / len(costs) for values in zip(*costs, strict=True)] for kind, costs in found.items()}


def _cache_cost(task: Task, place: Path, seconds: float) -> Cost:
    (made,) = (place / task.folder).glob("*/made.json")
    (session,) = read_json(made)["sessions"]
    return Cost(max(0.0, seconds - session["seconds"]), session["seconds"] / session["images"])


def _training_cost(task: Task, place: Path, seconds: float) -> Cost:
    result = read_json(place / task.folder / "result.json")
    speed = result["speed"]["images_per_s"]
    if not speed:
        raise UserError(f"an epoch of {result['steps']} step is too short to be timed: lower optim.batch")
    images = result["steps"] * task.settings.optim.batch
    return Cost(max(0.0, seconds - images / speed), 1 / speed)


def _costs(kept: dict[str, Any]) -> Costs:
    return Costs({kind: Cost(*values) for kind, values in kept.items() if kind != "device"}, kept["device"])


# ---- expecting ----


def epochs_done(task: Task, out: Path) -> float:
    """The epochs that an unfinished run has behind it, by the last line that it wrote."""
    path = out / task.folder / "metrics.jsonl"
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with contextlib.suppress(ValueError, LookupError):  # torn by a kill
            return json.loads(line)["epoch"]
    return 0.0


def views_done(task: Task, out: Path, rows: int) -> float:
    """How many views' worth of a cache of `rows` images is on the disk; its blocks are written in any order."""
    blocks = max((len(list(cache.glob("v*/b*.lc"))) for cache in (out / task.folder).glob("*")), default=0)
    return blocks / -(-rows // BLOCK_ROWS)


def rows_of(tasks: Sequence[Task], out: Path) -> dict[str, Rows]:
    """{data set: images} of the data that are there."""
    return {
        task.dataset.name: Rows(*(len(Records(out / task.folder / f"{split}.beton")) for split in ("train", "test")))
        for task in tasks
        if task.kind == "data" and is_done(task, out)
    }


def expected_seconds(task: Task, out: Path, costs: Costs, rows: Rows) -> float:
    """The seconds that a task still needs after its last whole epoch or block."""
    config, cost = task.settings, costs.kinds[task.work]
    if task.kind == "cache":
        left = max(0, views_of(config, rows.train) - views_done(task, out, rows.train))
        return cost.start_s + left * rows.train * cost.image_s
    batch, epochs = config.optim.batch, epochs_of(config, rows.train)
    image_s = cost.image_s
    if task.kind == "distill" and not config.cache.paths:  # the online teacher answers for each image
        image_s += costs.evaluated_image_s(task)
    done = int(epochs_done(task, out))
    training = (epochs - done) * (rows.train // batch * batch) * image_s
    each = config.eval.every_epochs
    evaluations = 1 + ((epochs - 1) // each - done // each if each else 0)
    return cost.start_s + training + evaluations * rows.test * costs.evaluated_image_s(task)
