"""Which runs of a report belong together: those that differ in their seed alone are one entry, with means over its runs.

Owns that rule and how an entry looks in every plot. Invariant: the runs of an entry are finished, have been trained and evaluated
on the same records, and no setting differs but `seed`, the run's name and paths of a teacher, cache or
initial network that follow the seed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.paper.outcomes import Spread, spread
from tools.reporting.runs import Run
from tools.reporting.style import COLOURS, LINES
from train.settings import flatten, value_text

NAMED_BY_SEED = ("distill.teacher", "cache.paths", "model.init")  # they may differ by the seed within the path


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a table or plot: a run, or several with different seeds."""

    title: str
    "of one run its title; of several the part that they share, with * for the seed; unique"
    runs: Sequence[Run]
    varies: Sequence[str]
    "settings that differ among its runs"
    colour: str
    line: str

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs if run.config is not None]

    def spread(self, value: Callable[[Run], float | None]) -> Spread:
        """Mean and standard deviation of a figure over the runs."""
        return spread([value(run) for run in self.runs])


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    """The runs as entries, in the order of each one's first run."""
    gathered: list[list[Run]] = []
    for run in runs:
        home = next((others for others in gathered if all(only_seed_differs(other, run) for other in others)), None)
        if home is None:
            gathered.append([run])
        else:
            home.append(run)
    titles = [_shared_title(members) for members in gathered]
    return [
        Entry(
            title=title if titles.count(title) == 1 else f"{title}, first {members[0].title}",
            runs=members,
            varies=_varying(members),
            colour=COLOURS[number % len(COLOURS)],
            line=LINES[number // len(COLOURS) % len(LINES)],
        )
        for number, (title, members) in enumerate(zip(titles, gathered, strict=True))
    ]


def only_seed_differs(one: Run, other: Run) -> bool:
    """Whether two runs are the same training with another seed."""
    if one.config is None or other.config is None or one.config.seed == other.config.seed:
        return False
    if one.step is not None or other.step is not None or one.predictions.records != other.predictions.records:
        return False
    ours, theirs = (run.json("run.json").get("facts", {}) for run in (one, other))
    if any(ours.get(split) != theirs.get(split) for split in ("train", "val")):
        return False
    seeds = one.config.seed, other.config.seed
    mine, its = flatten(one.config), flatten(other.config)
    return all(
        key in ("run", "seed") or (key in NAMED_BY_SEED and follow(mine[key], its[key], *seeds))
        for key in mine
        if mine[key] != its[key]
    )


def follow(ours: Any, theirs: Any, our_seed: int, their_seed: int) -> bool:
    """Whether two values are the same text, but for whole numbers that are the one's seed here and the other's there."""
    mine, its = _numbers_apart(value_text(ours)), _numbers_apart(value_text(theirs))
    return len(mine) == len(its) and all(
        a == b or (a, b) == (str(our_seed), str(their_seed)) for a, b in zip(mine, its, strict=True)
    )


def _numbers_apart(text: str) -> list[str]:
    return re.split(r"(\d+)", text)


def _shared_title(runs: Sequence[Run]) -> str:
    """`dive-s*` of dive-s0 and dive-s1; of names that do not follow the seed, the first and how many more."""
    first, *others = runs
    if not others:
        return first.title
    parts = [_numbers_apart(run.title) for run in runs]
    same = len({len(part) for part in parts}) == 1
    if same and all(follow(first.title, run.title, _seed(first), _seed(run)) for run in others):
        return "".join(words[0] if len(set(words)) == 1 else "*" for words in zip(*parts, strict=True))
    return f"{first.title} and {len(others)} more"


def _seed(run: Run) -> int:
    assert run.config is not None
    return run.config.seed


def _varying(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return []
    trees = [flatten(run.config) for run in runs]
    return [key for key in trees[0] if any(tree[key] != trees[0][key] for tree in trees)]
