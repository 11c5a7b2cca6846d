"""The options of tools/reproduce.py's commands, and their types; does no work itself."""

import argparse
import re
from pathlib import Path

from pipelines.errors import UserError, quoted
from tools.command_line import Parser, path, whole
from tools.paper.datasets import CIFAR100_LT, METHODS, ROWS
from tools.paper.flatness import COUNTS, EPSILONS
from tools.paper.studies import FIGURES, FLATNESS, STUDIES, TABLE


def resolved(text: str) -> Path:
    """An argparse type: a file or folder, as an absolute path."""
    try:
        return path(text).resolve()
    except RuntimeError as error:  # a link that leads to itself
        raise UserError(f"{text}: {error}; give another path") from error


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 and at most 100 allowed")
    return value


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, a number of at least 0 and less than 1 allowed")
    return value + 0.0  # -0 is 0


def _counts(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,8})", text, re.ASCII)):
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, images of head and tail expected, such as 5000:500")
    return int(found[1]), int(found[2])


def class_name(text: str) -> str:
    """An argparse type: a class's name, which becomes part of names of folders."""
    if not re.fullmatch(r"\w[\w-]{0,49}", text):
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, a class of CIFAR-10 such as airplane expected")
    return text


def _common(archive: str) -> Parser:
    """Options of all commands. archive: the data set whose archive is asked for."""
    common = Parser(add_help=False)
    add = common.add_argument
    add("--archive", type=resolved, help=f"the {archive} python archive: .tar.gz, .tar.xz or unpacked folder")
    add("--out", type=resolved, required=True, metavar="DIR", help="folder for everything that is made")
    add("--jobs", type=whole(1, 1024), default=1, metavar="N", help="processes at a time (default: %(default)s)")
    add("--plan", action="store_true", help="convert and measure, print the plan and how long it will take, and stop")
    add("--table-only", action="store_true", help="run nothing: write the table of what is finished")
    common.set_defaults(archive_of=archive)
    return common


def add_commands(parser: Parser) -> None:
    """Add a command for each study."""
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    cifar100, cifar10 = [_common("CIFAR-100")], [_common("CIFAR-10")]
    table = commands.add_parser(TABLE, parents=cifar100, help="Table 1: paper against ours")
    table.add_argument("--imbalance", type=int, nargs="+", choices=CIFAR100_LT, default=list(CIFAR100_LT))
    table.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2])
    needed = ", ".join(f"{name} {row.after}" for name, row in ROWS.items() if row.after)
    table.add_argument(
        "--methods",
        nargs="+",
        choices=ROWS,
        default=list(METHODS),
        help=f"(default: {' '.join(METHODS)}); some train another one before: {needed}",
    )
    studies = commands.add_parser(
        STUDIES, parents=cifar100, help="sources of targets, and temperatures, at imbalance 100"
    )
    studies.add_argument("--seeds", type=whole(0), nargs="+", default=[0])
    studies.add_argument(
        "--teacher", type=resolved, metavar="RUN", help="folder of a finished BSCE run to use as the teacher"
    )
    figures = commands.add_parser(
        FIGURES, parents=cifar100, help="Table 2: accuracy on shifted test sets, of the runs of Table 1"
    )
    figures.add_argument("--imbalance", type=int, choices=CIFAR100_LT, default=100, help="(default: %(default)s)")
    figures.add_argument("--seeds", type=whole(0), nargs="+", default=[0])
    flatness = commands.add_parser(
        FLATNESS, parents=cifar10, help="Figure 1: head and tail against the ratio of virtual examples"
    )
    add = flatness.add_argument
    add("--head", type=class_name, default="airplane", metavar="CLASS", help="(default: %(default)s)")
    add("--tail", type=class_name, default="dog", metavar="CLASS", help="(default: %(default)s)")
    add("--counts", type=_counts, nargs="+", default=list(COUNTS), metavar="HEAD:TAIL", help="such as 5000:500 500:50")
    add(
        "--eps", type=_epsilon, nargs="+", default=list(EPSILONS), help="label smoothing of the head, such as 0 0.2 0.4"
    )
    add("--seeds", type=whole(0), nargs="+", default=[0, 1, 2, 3, 4])
    for command, scale in ((table, 1.0), (studies, 0.2), (figures, 1.0), (flatness, 1.0)):
        command.add_argument(
            "--epochs-scale",
            type=_scale,
            default=scale,
            help="of epochs, warm-up, milestones and switches (default: %(default)s)",
        )
