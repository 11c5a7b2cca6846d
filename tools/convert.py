"""Turn images into record files (.beton), show what a record file holds, repair one.

    python tools/convert.py {cifar100-lt,cifar10-lt,cifar10-pair,folder,list,parquet,webdataset,demo,info,repair} --help

Owns the commands; tools/conversion does their work. Invariant: names and labels depend on the input (a list's lines, paths
inside a folder, an archive), not on where it lies or in which order the file system lists it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools.command_line import Parser, exit_cleanly_when_terminated, path, run_command, whole
from tools.conversion.inspection import run_info, run_repair
from tools.conversion.options import (
    cifar_options,
    common_options,
    folder_options,
    image_options,
    list_options,
    out_file,
    pair_options,
    parquet_options,
    webdataset_options,
)
from tools.conversion.sources import run_cifar, run_demo, run_folder, run_list, run_pair, run_parquet, run_webdataset
from tools.conversion.storage import recipe_table
from train.run.endings import script


def build_parser() -> Parser:
    parser = Parser(prog="convert.py", description="Turn images into record files (.beton).")
    commands = parser.add_subparsers(dest="command", required=True)
    common = common_options()
    for name, archive in (("cifar100-lt", "CIFAR-100"), ("cifar10-lt", "CIFAR-10")):
        cifar = commands.add_parser(name, parents=[common], help=f"long-tailed {archive} from the python archive")
        cifar_options(cifar, archive)
        cifar.set_defaults(run=run_cifar)
    pair = commands.add_parser("cifar10-pair", parents=[common], help="two classes of CIFAR-10, a head and a tail")
    pair_options(pair)
    pair.set_defaults(run=run_pair)
    table: dict[str, Any] = {
        "epilog": recipe_table(),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "parents": [common, image_options()],
    }
    folder = commands.add_parser("folder", help="a folder whose sub-folders are the classes", **table)
    folder_options(folder)
    folder.set_defaults(run=run_folder)
    listed = commands.add_parser("list", help="images named in a file of 'path label' lines", **table)
    out_file(listed)
    words = "folder the list's paths start from, or archives of the images, tar or zip"
    listed.add_argument("--root", type=path, nargs="+", required=True, metavar="DIR|ARCHIVE", help=words)
    list_options(listed, required=True)
    listed.set_defaults(run=run_list)
    parquet = commands.add_parser("parquet", help="Parquet files of the Hugging Face hub", **table)
    parquet_options(parquet)
    parquet.set_defaults(run=run_parquet)
    shards = commands.add_parser("webdataset", help="tar shards of a WebDataset", **table)
    webdataset_options(shards)
    shards.set_defaults(run=run_webdataset)
    demo = commands.add_parser("demo", parents=[common], help="a small long-tailed image set, drawn by a program")
    demo.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for images and record files")
    demo.add_argument("--seed", type=whole(0), default=0, help="of the drawings (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    _record_commands(commands, common)
    return parser


def _record_commands(commands: Any, common: Parser) -> None:
    """Add the commands that read a record file."""
    info = commands.add_parser("info", help="what a record file holds and how it was made")
    info.add_argument("file", type=path, metavar="FILE")
    info.add_argument("--check", action="store_true", help="check as well that every image is whole and decodes")
    info.set_defaults(run=run_info)
    repair = commands.add_parser("repair", parents=[common], help="copy a record file without its damaged images")
    repair.add_argument("file", type=path, metavar="FILE")
    repair.add_argument("--out", type=path, required=True, metavar="NEW", help="record file to write")
    repair.set_defaults(run=run_repair)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(build_parser(), argv, "the file at work was not written")


if __name__ == "__main__":
    exit_cleanly_when_terminated()
    sys.exit(script(main))
