"""Reproduce the paper's CIFAR-100-LT results from the shipped configurations, and put them beside the paper's.

    python tools/reproduce.py cifar100-lt --archive cifar-100-python.tar.gz --out OUT [KEY=VALUE ...]
    python tools/reproduce.py cifar100-lt-studies --archive cifar-100-python.tar.gz --out OUT [KEY=VALUE ...]

The first trains CE, BSCE and DiVE (from a cache of its BSCE teacher) for each imbalance factor and seed: Table 1. The second
trains students of one teacher that differ in where their targets come from and in their temperatures. Both convert the archive,
measure this device, say how long it will take, run what is missing through the entry scripts, and write a table. Interrupt or
kill it whenever you like: the same command goes on. KEY=VALUE goes to every training and cache, e.g. precision=bf16
compile=true. docs/reproduce.md: what lies where in OUT, seeds, GPUs.
"""

import argparse
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic, write_json_atomic
from tools.command_line import Parser, whole
from tools.paper.datasets import CIFAR100_LT, METHODS
from tools.paper.jobs import Ending, Jobs, Stopped, claimed, makespan
from tools.paper.outcomes import outcome
from tools.paper.plan import (
    Choice,
    Task,
    check_settings,
    refuse_strangers,
    seeds_found,
    study_tasks,
    table_tasks,
    wanted,
)
from tools.paper.report import Report, studies_report, table_report, to_markdown
from tools.paper.timing import Costs, expected_seconds, measured, rows_of
from train.run.exits import guard
from train.watch.text import clock

TABLE, STUDIES = "cifar100-lt", "cifar100-lt-studies"


# ---- the command line ----


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 and at most 100 allowed")
    return value


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options, and in `settings` every KEY=VALUE, wherever it stands."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    common = Parser(add_help=False)
    add = common.add_argument
    add("--archive", type=_path, help="the CIFAR-100 python archive: .tar.gz, .tar.xz or unpacked folder")
    add("--out", type=_path, required=True, metavar="DIR", help="folder for everything that is made")
    add("--jobs", type=whole(1), default=1, metavar="N", help="processes at a time (default: %(default)s)")
    add("--plan", action="store_true", help="convert and measure, print the plan and how long it will take, and stop")
    add("--table-only", action="store_true", help="run nothing: write the table of what is finished")
    table = commands.add_parser(TABLE, parents=[common], help="Table 1: paper against ours")
    table.add_argument("--imbalance", type=int, nargs="+", choices=CIFAR100_LT, default=list(CIFAR100_LT))
    table.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2])
    table.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="dive trains its bsce too")
    studies = commands.add_parser(
        STUDIES, parents=[common], help="sources of targets, and temperatures, at imbalance 100"
    )
    studies.add_argument("--seeds", type=whole(0), nargs="+", default=[0])
    studies.add_argument(
        "--teacher", type=_path, metavar="RUN", help="folder of a finished BSCE run to use as the teacher"
    )
    for command, scale in ((table, 1.0), (studies, 0.2)):
        command.add_argument(
            "--epochs-scale",
            type=_scale,
            default=scale,
            help="of epochs, warm-up and milestones (default: %(default)s)",
        )
    settings = [argument for argument in argv if re.match(r"[a-z][a-z_.]*=", argument)]
    options = parser.parse_args([argument for argument in argv if argument not in settings])
    options.settings, options.typed = settings, typed(argv)
    return options


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options; refuses what could only fail hours later."""
    check_settings(options.settings)
    if options.archive is not None and not options.archive.exists():
        raise UserError(f"--archive {options.archive}: no such file or folder; give the CIFAR-100 python archive")
    if options.table_only and not options.out.is_dir():
        raise UserError(f"--out {options.out}: no such folder; give one of an earlier call, or leave --table-only out")
    teacher = getattr(options, "teacher", None)
    if teacher and not (teacher / "result.json").exists():
        raise UserError(f"--teacher {teacher} is not the folder of a finished run (it has no result.json)")
    return options


def typed(argv: Sequence[str]) -> str:
    """The command for others to type, without the places of this machine."""
    places = {"--archive": "ARCHIVE", "--out": "OUT", "--teacher": "RUN"}
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    words = [places.get(before) or shlex.quote(word) for before, word in zip(["", *argv], argv, strict=False)]
    return " ".join(["python tools/reproduce.py", *words])


# ---- the plan ----


def say(line: str) -> None:
    """One line on the screen; that nobody reads any more (`| head`, or a `tee` that Ctrl-C ended) stops no training."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = io.StringIO()


def plan_tasks(options: argparse.Namespace, choice: Choice) -> tuple[list[Task], list[Task]]:
    """(what is asked for, what the table is of). Table 1 is of all that lies in OUT, whatever is asked for now."""
    seeds = list(dict.fromkeys(options.seeds))
    if options.command == STUDIES:
        tasks = study_tasks(choice, seeds, options.teacher)
        return tasks, tasks
    datasets, asked = list(CIFAR100_LT.values()), [CIFAR100_LT[factor] for factor in dict.fromkeys(options.imbalance)]
    tasks = table_tasks(choice, asked, seeds, options.methods)
    return tasks, table_tasks(choice, datasets, sorted({*seeds, *seeds_found(choice, datasets, options.out)}))


def show_plan(tasks: Sequence[Task], missing: Sequence[Task], out: Path, seconds: dict[str, float]) -> None:
    """One line for each run and cache."""
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


class Expectation:
    """How long what is missing takes on this device."""

    def __init__(self, out: Path, slots: int, costs: Costs, tasks: Sequence[Task]):
        rows = rows_of(tasks, out)
        self.slots, self.costs = slots, costs
        self._seconds = lambda task: expected_seconds(task, out, costs, rows[task.dataset.name])

    def seconds(self, task: Task) -> float:
        return self._seconds(task)

    def left(self, tasks: Sequence[Task]) -> str:
        """For a line of progress."""
        return f", about {clock(makespan(tasks, self._seconds, self.slots))} left" if tasks else ""

    def say(self, missing: Sequence[Task]) -> None:
        teacher, cache, distill, device = self.costs
        speeds = {"hard labels": teacher, "from a cache": distill, "writing a cache": cache}
        rates = ", ".join(f"{name} {1 / cost.image_s:,.0f}" for name, cost in speeds.items())
        starts = f"start-up and compilation {teacher.start_s:.0f}, {distill.start_s:.0f} and {cache.start_s:.0f} s"
        say(f"{device}, {self.slots} at a time: images/s of each: {rates}; {starts}")
        total = makespan(missing, self._seconds, self.slots)
        say(f"expected: {clock(total)} for {len(missing)} task{'s' if len(missing) > 1 else ''}")


# ---- running ----


def convert_missing(missing: Sequence[Task], out: Path, options: argparse.Namespace, choice: Choice) -> None:
    """The records that anything missing needs: measuring needs them as well."""
    tasks = [task for task in missing if task.kind == "data"]
    if tasks and options.archive is None:
        raise UserError(f"{out} has no records of {tasks[0].dataset.label} yet: give --archive")
    for name, end in Jobs(out, options.jobs, choice.threads, say).run(tasks).items():
        if end.code != 0:
            raise UserError(f"{name} was not converted: {end.words.removeprefix('error: ')}")


def state_of(out: Path, task: Task) -> str:
    """For a line of progress: the accuracy of a finished run, the epoch of a running one."""
    if not task.is_run:
        return ""
    found = outcome(task, out)
    return f"top-1 {found.accuracy['top1']:.2f} " if found.state == "finished" else found.words


def run_missing(tasks: Sequence[Task], options: argparse.Namespace, choice: Choice) -> dict[str, Ending]:
    """Everything up to the trainings, and these unless only the plan was asked for; {name: ending}."""
    out = options.out
    missing = wanted(tasks, out)
    if not missing:
        say("everything is finished")
        return {}
    convert_missing(missing, out, options, choice)
    refuse_strangers(tasks, out)
    missing = [task for task in missing if task.kind != "data"]
    costs = measured(choice, missing[0].dataset, out, options.jobs, say)
    expected = Expectation(out, options.jobs, costs, [task for task in tasks if task.kind == "data"])
    show_plan(tasks, missing, out, {task.name: expected.seconds(task) for task in missing})
    expected.say(missing)
    if options.plan:
        return {}
    jobs = Jobs(out, options.jobs, choice.threads, say, expected.left, lambda task: state_of(out, task))
    return jobs.run(missing)


def make_report(tasks: Sequence[Task], endings: dict[str, Ending], options: argparse.Namespace) -> Report:
    facts = {
        "settings other than the configurations'": " ".join(options.settings) or "none",
        "written": f"{datetime.now(UTC).date().isoformat()} by `{options.typed}`",
    }
    notes = []
    if options.epochs_scale != 1:
        epochs = next(task for task in tasks if task.is_run).settings.schedule.epochs
        facts["schedule"] = f"{epochs} epochs, all boundaries of the configurations scaled by {options.epochs_scale:g}"
        notes.append("The schedule is not the paper's: these figures do not compare with its own.")
    if options.command == STUDIES:
        return studies_report(tasks, options.out, endings, facts, notes, options.teacher)
    return table_report(tasks, options.out, endings, facts, notes)


def write_report(report: Report, options: argparse.Namespace) -> None:
    path = options.out / f"{options.command.replace('-', '_')}.md"
    write_bytes_atomic(path, to_markdown(report).encode())
    write_json_atomic(path.with_suffix(".json"), report.data)
    say(f"written: {path}, {path.with_suffix('.json').name}")


def main(argv: list[str]) -> int:
    options = checked(parse(argv))
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    choice = Choice(options.archive, options.epochs_scale, tuple(options.settings), threads)
    with nullcontext() if options.table_only else claimed(options.out):
        asked, shown = plan_tasks(options, choice)
        refuse_strangers(shown, options.out)
        code, endings = 0, {}
        try:
            if not options.table_only:
                endings = run_missing(asked, options, choice)
        except Stopped as stopped:
            say("stopped; the same command goes on")
            code, endings = stopped.code, stopped.ended
        if options.plan:
            return code
        refuse_strangers(shown, options.out)  # a teacher that was trained again may not be that of a student any more
        write_report(make_report(shown, endings, options), options)
    failed = [name for name, end in endings.items() if end.code != 0]
    if failed:
        say(f"failed or not run: {', '.join(failed)}; the same command tries again")
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(guard(main))
