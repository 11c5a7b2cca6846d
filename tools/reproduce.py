"""Reproduce the paper's results on CIFAR from the shipped configurations, and put them beside the paper's.

    python tools/reproduce.py cifar100-lt --archive cifar-100-python.tar.gz --out OUT [KEY=VALUE ...]
    python tools/reproduce.py cifar100-lt-studies --archive cifar-100-python.tar.gz --out OUT [KEY=VALUE ...]
    python tools/reproduce.py cifar100-lt-figures --archive cifar-100-python.tar.gz --out OUT [KEY=VALUE ...]
    python tools/reproduce.py cifar10-flatness --archive cifar-10-python.tar.gz --out OUT [KEY=VALUE ...]

The first trains CE, BSCE and DiVE (from a cache of its BSCE teacher) for each imbalance factor and seed: Table 1. The second
trains students of one teacher that differ in where their targets come from and in their temperatures. The third trains the runs
of Table 1 at one imbalance factor and tests them on shifted test sets: Table 2. The fourth trains two classes of CIFAR-10 with
label smoothing of the more frequent one: appendix A, Figure 1. All convert the archive, measure this device, say how long it
will take, run what is missing through the entry scripts, and write a table. Interrupt or kill them whenever you like: the same
command goes on. KEY=VALUE goes to every training and cache, e.g. precision=bf16 compile=true.
docs/reproduce.md: what lies where in OUT, seeds, GPUs.
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
from tools.command_line import Parser
from tools.paper.options import add_commands
from tools.paper.plan import check_settings
from tools.paper.session import reproduce
from train.run.exits import guard


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_commands(parser)
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
        raise UserError(
            f"--archive {options.archive}: no such file or folder; give the {options.archive_of} python archive"
        )
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
