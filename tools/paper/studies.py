"""THE table of the studies of tools/reproduce.py: what each command trains, and the page that it writes.

A study is one row of COMMANDS and its options in options.py: the tasks, which of them measure the device, and the report.
Everything else (plan, time, processes, resuming) is the same for all.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError
from tools.paper import figures, flatness
from tools.paper.datasets import CIFAR100_LT, MORE, ROWS, Dataset
from tools.paper.jobs import Ending
from tools.paper.plan import Choice, Task, seeds_found, study_tasks, table_tasks, with_needed
from tools.paper.report import Report, studies_report, table_report
from tools.paper.timing import Chains

TABLE, STUDIES, FIGURES, FLATNESS = "cifar100-lt", "cifar100-lt-studies", "cifar100-lt-figures", "cifar10-flatness"
Plan = tuple[list[Task], list[Task]]  # tasks to run, tasks of the report


class Found(NamedTuple):
    """What a report is made of: tasks of the report, OUT, how those ended that were run just now, facts and notes of the call."""

    tasks: Sequence[Task]
    out: Path
    endings: dict[str, Ending]
    facts: dict[str, str]
    notes: Sequence[str]


class Study(NamedTuple):
    """One row of COMMANDS. files: endings of what it writes beside OUT/COMMAND (with _ for -)."""

    plan: Callable[[argparse.Namespace, Choice], Plan]
    chains: Chains
    report: Callable[[Found, argparse.Namespace], Report]
    files: tuple[str, ...] = (".md", ".json")


def require(*packages: str) -> None:
    """UserError, before the work, where a package is missing that its figures need."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the figures need {package}, which is not installed: type pip install -e '.[report]'")


def _unique(values: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _table_plan(options: argparse.Namespace, choice: Choice) -> Plan:
    """Table 1 shows every run in OUT, not only those of this call; other methods have a row where asked for, or begun."""
    seeds = _unique(options.seeds)
    datasets, asked = list(CIFAR100_LT.values()), [CIFAR100_LT[factor] for factor in _unique(options.imbalance)]
    tasks = table_tasks(choice, asked, seeds, options.methods)
    shown = table_tasks(choice, datasets, sorted({*seeds, *seeds_found(choice, datasets, options.out)}))
    for method in MORE:
        for dataset in datasets:
            own = seeds_found(choice, [dataset], options.out, [method])
            own |= set(seeds if dataset in asked and method in with_needed(options.methods) else ())
            shown += table_tasks(choice, [dataset], sorted(own), [method])
    return tasks, list({task.name: task for task in shown}.values())


def _studies_plan(options: argparse.Namespace, choice: Choice) -> Plan:
    tasks = study_tasks(choice, _unique(options.seeds), options.teacher)
    return tasks, tasks


def _figures_plan(options: argparse.Namespace, choice: Choice) -> Plan:
    require("matplotlib", "sklearn")
    tasks = table_tasks(choice, [CIFAR100_LT[options.imbalance]], _unique(options.seeds))
    return tasks, tasks


def _flatness_plan(options: argparse.Namespace, choice: Choice) -> Plan:
    require("matplotlib")
    tasks = flatness.tasks(choice, _pairs(options), list(dict.fromkeys(options.eps)), _unique(options.seeds))
    return tasks, tasks


def _pairs(options: argparse.Namespace) -> list[flatness.Pair]:
    return [flatness.Pair(options.head, options.tail, *counts) for counts in dict.fromkeys(options.counts)]


def _dive_chains(choice: Choice, dataset: Dataset, seeds: Sequence[int], missing: Sequence[Task]) -> list[Task]:
    """The chain of Table 1 if a plain network is missing, and the fewest rows that cover the networks with experts."""
    methods = ["dive"] if any(task.experts is None for task in missing) else []
    covered = set[str]()
    roles = {task.role for task in missing if task.is_run and task.experts is not None}
    # The longest chains first: they bring what they need.
    for method in sorted(filter(roles.__contains__, ROWS), key=lambda name: -len(with_needed([name]))):
        works = {task.work for task in table_tasks(choice, [dataset], seeds, [method])}
        if not works <= covered:
            methods.append(method)
            covered |= works
    return table_tasks(choice, [dataset], seeds, methods)


def _table_report(found: Found, options: argparse.Namespace) -> Report:
    return table_report(*found)


def _studies_report(found: Found, options: argparse.Namespace) -> Report:
    tasks, out, endings, facts, notes = found
    return studies_report(tasks, out, endings, facts, notes, options.teacher)


def _figures_report(found: Found, options: argparse.Namespace) -> Report:
    return figures.report(*found)


def _flatness_report(found: Found, options: argparse.Namespace) -> Report:
    tasks, out, endings, facts, notes = found
    return flatness.report(tasks, out, endings, facts, notes, _pairs(options))


COMMANDS: dict[str, Study] = {
    TABLE: Study(_table_plan, _dive_chains, _table_report),
    STUDIES: Study(_studies_plan, _dive_chains, _studies_report),
    FIGURES: Study(_figures_plan, _dive_chains, _figures_report, figures.FILES),
    FLATNESS: Study(_flatness_plan, flatness.chains, _flatness_report, (".md", ".json", ".svg", ".png")),
}
