"""Look at a logit cache: what it is, whether it is whole, and how flat its teacher's virtual examples are.

    python tools/logits.py {info,verify,repair,flatness} --help

CACHE is a cache's folder, or the folder that holds only that one. Owns the command line; tools/caches/ does the work.
Only `repair` changes anything.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.console import Console

from pipelines.files import check_file_place, write_each
from pipelines.logits import LogitCache
from pipelines.records.reader import Records
from tools.caches import flatness, info
from tools.caches.check import cache_folder, survey
from tools.caches.repair import repair
from tools.caches.verify import verify, verify_pixels
from tools.command_line import Parser, exit_cleanly_when_terminated, path, run_command, whole
from train.objectives.methods import LEAST_T, MOST_T, DistillConfig
from train.run.endings import script


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_info(args: argparse.Namespace) -> None:
    info.show(survey(cache_folder(args.cache)))


def run_verify(args: argparse.Namespace) -> None:
    found = survey(cache_folder(args.cache))
    verify(found)
    if args.data is not None:
        verify_pixels(found, args.data, args.samples, device_here())


def run_repair(args: argparse.Namespace) -> None:
    repair(survey(cache_folder(args.cache)))


def run_flatness(args: argparse.Namespace) -> None:
    for option, file in (("--json", args.json), ("--png", args.png)):
        if file is not None:
            check_file_place(file, option)
    cache = LogitCache(cache_folder(args.cache))
    report = flatness.measure(cache, Records(args.data) if args.data else None, args.p, args.views, device_here())
    flatness.show(report, args.classes, Console())
    write_each(
        lambda: args.json is not None and flatness.write_json(report, args.json),
        lambda: args.png is not None and flatness.draw(report, args.png),
    )


def power(text: str) -> float:
    """An argparse type: a value of distill.p."""
    value = float(text)
    if not LEAST_T <= value <= MOST_T:
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0, in {LEAST_T}..{MOST_T}, allowed")
    return value


def all_or_whole(text: str) -> int | None:
    """An argparse type: `all` (None), or how many."""
    return None if text == "all" else whole(1)(text)


def build_parser() -> Parser:
    parser = Parser(prog="logits.py", description="Look at a logit cache, check it, repair it.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = Parser(add_help=False)
    common.add_argument("cache", type=path, metavar="CACHE", help="folder of the cache, or one that holds only it")
    command = commands.add_parser("info", parents=[common], help="what a cache holds, finished or not")
    command.set_defaults(run=run_info)
    command = commands.add_parser("verify", parents=[common], help="check every file and every record")
    command.add_argument(
        "--data",
        type=path,
        metavar="FILE.beton",
        help="load views of these records as well, and compare them with what the teacher saw",
    )
    command.add_argument(
        "--samples", type=all_or_whole, default=512, metavar="N|all", help="views to compare (default: %(default)s)"
    )
    command.set_defaults(run=run_verify)
    command = commands.add_parser("repair", parents=[common], help="delete bad blocks, say what writes them again")
    command.set_defaults(run=run_repair)
    command = commands.add_parser("flatness", parents=[common], help="virtual examples per class, and the T to use")
    add = command.add_argument
    add("--data", type=path, metavar="FILE.beton", help="training records, if they are only some of the cache's")
    add("--p", type=power, default=DistillConfig().p, help="distill.p of the student (default: %(default)s)")
    add(
        "--views", type=whole(1), default=1, metavar="N", help="views to average over (default: %(default)s, the first)"
    )
    add("--classes", action="store_true", help="list every class")
    add("--png", type=path, metavar="FILE", help="draw a picture")
    add("--json", type=path, metavar="FILE", help="write every number")
    command.set_defaults(run=run_flatness)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, 2 for a bad cache too."""
    return run_command(build_parser(), argv, "nothing more was done")


if __name__ == "__main__":
    exit_cleanly_when_terminated()
    sys.exit(script(main))
