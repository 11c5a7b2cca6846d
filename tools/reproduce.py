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
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.errors import UserError
from tools.command_line import Parser, path, whole
from tools.paper.datasets import CIFAR100_LT, METHODS
from tools.paper.plan import check_settings
from tools.paper.session import STUDIES, TABLE, reproduce
from train.run.exits import guard


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 and at most 100 allowed")
    return value


def _path(text: str) -> Path:
    try:
        return path(text).resolve()
    except RuntimeError as error:  # a link that leads to itself
        raise UserError(f"{text}: {error}; give another path") from error


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    common = Parser(add_help=False)
    add = common.add_argument
    add("--archive", type=_path, help="the CIFAR-100 python archive: .tar.gz, .tar.xz or unpacked folder")
    add("--out", type=_path, required=True, metavar="DIR", help="folder for everything that is made")
    add("--jobs", type=whole(1, 1024), default=1, metavar="N", help="processes at a time (default: %(default)s)")
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
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options, and in `settings` every KEY=VALUE, wherever it stands."""
    settings = [argument for argument in argv if re.match(r"[a-z][a-z_.]*=", argument)]
    options = build_parser().parse_args([argument for argument in argv if argument not in settings])
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


def main(argv: list[str]) -> int:
    return reproduce(checked(parse(argv)))


if __name__ == "__main__":
    sys.exit(guard(main))
