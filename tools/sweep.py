"""Train a configuration with every combination of some settings, several runs at a time; the same command goes on.

    python tools/sweep.py CONFIG.yaml KEY=VALUE,VALUE,... [KEY=VALUE ...] [--name NAME] [--jobs N] [--plan]

A setting with commas is swept, one without is given to all runs; commas within brackets belong to a list. The runs are
runs/NAME/KEY-VALUE_KEY-VALUE, NAME by default the configuration's; what each printed is in runs/NAME/logs. Each is started by the
entry script of its method, which resumes a run that was interrupted, and leaves one that is finished as it is.

    python tools/sweep.py configs/cifar100_lt/ce_if100.yaml seed=0,1,2 distill.method=ce,bsce --jobs 2
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.cores import usable_cores
from pipelines.errors import UserError, quoted
from tools.command_line import Parser, apart_from_settings, path, whole
from tools.paper.combinations import Run, planned
from tools.paper.jobs import Jobs, Stopped, claimed
from tools.paper.screen import say
from train.run.exits import guard
from train.run.place import RUNS


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", type=path, metavar="CONFIG.yaml", help="the configuration of all runs")
    add("--name", metavar="NAME", help="the runs are runs/NAME/... (default: the name of the configuration)")
    add(
        "--jobs",
        type=whole(1, 64),
        default=1,
        metavar="N",
        help="runs at a time (default: %(default)s); GPUs are shared out",
    )
    add("--plan", action="store_true", help="print the commands and start nothing")
    return parser


def sweep(args: argparse.Namespace) -> int:
    """Run all; the exit code: 1 when a run failed, that of the signal when one stopped the sweep."""
    name = args.name or args.config.stem
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--name {quoted(name)}: letters, digits, _ . + and - are allowed, as in the name of a folder")
    runs = planned(args.config, args.settings, name)
    if args.plan:
        for run in runs:
            print(shlex.join(["python", *run.command]))
        return 0
    folder, threads = RUNS / name, max(1, usable_cores() // args.jobs)
    try:
        with claimed(folder, "--name"):
            ended = Jobs[Run](folder.absolute(), args.jobs, threads, say, folder=Path.cwd()).run(runs)
    except Stopped as stopped:
        say("stopped; the same command goes on")
        return stopped.code
    if failed := [label for label, end in ended.items() if end.code != 0]:
        say(f"failed: {', '.join(failed)}; the same command tries again")
        return 1
    named = " ".join(shlex.quote(f"{name}/{run.name}") for run in runs)
    say(f"all {len(runs)} runs are finished; to compare them: python tools/compare.py {named} --out DIR")
    return 0


def main(argv: list[str]) -> int:
    words, settings = apart_from_settings(argv)
    parser = build_parser()
    parser.set_defaults(settings=settings)
    return sweep(parser.parse_args(words))


if __name__ == "__main__":
    sys.exit(guard(main))
