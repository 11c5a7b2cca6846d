"""What tools/reproduce.py prints while it works: the plan, how long it will take, and how far each run is.

A screen that has gone never stops a training.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.paper.jobs import makespan
from tools.paper.outcomes import outcome
from tools.paper.plan import Task
from tools.paper.timing import Costs, expected_seconds, rows_of
from train.watch.text import clock


def say(line: str) -> None:
    """Print one line. When the reader of stdout has ended (`| head`, or a `tee` at Ctrl-C), the trainings go on unseen."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = io.StringIO()


def state_of(out: Path, task: Task) -> str:
    """The words for a line of progress: the accuracy of a finished run, the epoch of a running one."""
    if not task.is_run:
        return ""
    found = outcome(task, out)
    return f"top-1 {found.accuracy['top1']:.2f} " if found.state == "finished" else found.words


def show_plan(tasks: Sequence[Task], missing: Sequence[Task], out: Path, seconds: dict[str, float]) -> None:
    """Print one line for each run and cache."""
    names = {task.name for task in missing}
    for task in tasks:
        if task.kind == "data":
            continue
        if task.name in names:
            found = outcome(task, out) if task.is_run else None
            state = f"{clock(seconds[task.name])} expected" + (f", from {found.words}" if found and found.words else "")
        elif task.is_run:
            state = state_of(out, task)
        else:
            state = "not needed: its students are finished"
        say(f"  {task.name:44} {state}")


_WORDS = {"teacher": "hard labels", "distill": "from a cache", "cache": "writing a cache", "router": "routers"}


def _words(work: str) -> str:
    """`Task.work` for the screen: hard labels, or hard labels (3 experts)."""
    kind, _, rest = work.partition(", ")
    return _WORDS[kind] + (f" ({rest})" if rest else "")


class Expectation:
    """How long the missing tasks take on this device."""

    def __init__(self, out: Path, slots: int, costs: Costs, tasks: Sequence[Task]):
        rows = rows_of(tasks, out)
        self.slots, self.costs = slots, costs
        self._seconds = lambda task: expected_seconds(task, out, costs, rows[task.dataset.name])

    def seconds(self, task: Task) -> float:
        return self._seconds(task)

    def left(self, tasks: Sequence[Task]) -> str:
        """The expected rest of `tasks`, for a line of progress."""
        return f", about {clock(makespan(tasks, self._seconds, self.slots))} left" if tasks else ""

    def say(self, missing: Sequence[Task]) -> None:
        kinds, device = self.costs
        works = sorted(kinds, key=lambda work: list(_WORDS).index(work.partition(", ")[0]))
        rates = ", ".join(f"{_words(work)} {1 / kinds[work].image_s:,.0f}" for work in works)
        starts = [f"{kinds[work].start_s:.0f}" for work in works]
        listed = " and ".join(filter(None, (", ".join(starts[:-1]), starts[-1])))
        say(f"{device}, {self.slots} at a time: images/s of each: {rates}; start-up and compilation {listed} s")
        total = makespan(missing, self._seconds, self.slots)
        say(f"expected: {clock(total)} for {len(missing)} task{'s' if len(missing) > 1 else ''}")
