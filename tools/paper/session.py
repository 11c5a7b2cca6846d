"""One call of tools/reproduce.py, from its checked options to its table: plan, convert, measure, run what is missing, report.

The table is written even when trainings failed or were stopped; `--plan` writes none.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipelines.cores import usable_cores
from pipelines.errors import UserError
from pipelines.files import check_file_place, write_bytes_atomic, write_each, write_json_atomic
from tools.paper.jobs import Ending, Jobs, Stopped, claimed
from tools.paper.plan import Choice, Task, refuse_strangers, wanted
from tools.paper.report import Report, to_markdown
from tools.paper.screen import Expectation, say, show_plan, state_of
from tools.paper.studies import COMMANDS, Found
from tools.paper.timing import measured


def convert_missing(missing: Sequence[Task], out: Path, options: argparse.Namespace, choice: Choice) -> None:
    """Convert the records that missing tasks need, before the measurement, which needs them too."""
    tasks = [task for task in missing if task.kind == "data"]
    if tasks and options.archive is None:
        raise UserError(f"{out} has no records of {tasks[0].dataset.label} yet: give --archive")
    for name, end in Jobs(out, options.jobs, choice.threads, say).run(tasks).items():
        if end.code != 0:
            raise UserError(f"{name} was not converted: {end.words.removeprefix('error: ')}")


def run_missing(tasks: Sequence[Task], options: argparse.Namespace, choice: Choice) -> dict[str, Ending]:
    """Convert, measure and print the plan; then, without `--plan`, run what is missing. {name: how it ended}."""
    out = options.out
    missing = wanted(tasks, out)
    if not missing:
        say("everything is finished")
        return {}
    convert_missing(missing, out, options, choice)
    refuse_strangers(tasks, out)
    missing = [task for task in missing if task.kind != "data"]
    costs = measured(choice, missing, COMMANDS[options.command].chains, out, options.jobs, say)
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
        lengths = " and ".join(dict.fromkeys(str(task.settings.schedule.epochs) for task in tasks if task.is_run))
        facts["schedule"] = f"{lengths} epochs, all boundaries of the configurations scaled by {options.epochs_scale:g}"
        notes.append("The schedule is not the paper's: these figures do not compare with its own.")
    return COMMANDS[options.command].report(Found(tasks, options.out, endings, facts, notes), options)


def report_files(options: argparse.Namespace) -> list[Path]:
    """The report for people, the one for programs, and the figures if it has any."""
    stem = options.command.replace("-", "_")
    return [options.out / f"{stem}{ending}" for ending in COMMANDS[options.command].files]


def write_report(report: Report, options: argparse.Namespace) -> None:
    path, data, *_ = report_files(options)
    stem = path.with_suffix("")
    drawn = {stem.with_name(f"{stem.name}{figure.suffix}"): figure for figure in report.figures}
    write_each(
        lambda: write_bytes_atomic(path, to_markdown(report, stem.name).encode()),
        lambda: write_json_atomic(data, report.data),
        *(partial(figure.draw, place) for place, figure in drawn.items()),
    )
    names = [data.name, *(f"{place.name}{ending}" for place in drawn for ending in (".svg", ".png"))]
    say(f"written: {path}, {', '.join(names)}")


def reproduce(options: argparse.Namespace) -> int:
    """Do what the options ask for; the exit code: 1 when a task failed, that of the signal when one stopped the trainings."""
    threads = max(1, usable_cores() // options.jobs)
    choice = Choice(options.archive, options.epochs_scale, tuple(options.settings), threads)
    with nullcontext() if options.table_only else claimed(options.out):
        for path in () if options.plan else report_files(options):
            check_file_place(path, f"--out {options.out}")
        asked, shown = COMMANDS[options.command].plan(options, choice)
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
