"""Tables and figures of finished runs, as in the paper's supplementary.

    python tools/figures.py COMMAND RUN [RUN ...] --out DIR [KEY=VALUE ...]

RUN is the name or folder of a run, an export, or a file of predictions (docs/figures.md). KEY=VALUE goes to the evaluation of
runs whose predictions are not there yet, such as data.test=FILE.beton. Each command writes its table as Markdown and JSON and its
picture as SVG and PNG.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools.command_line import Parser, path, run_with_settings
from train.run.endings import script


def command_modules() -> tuple[Any, ...]:
    """Those of tools/reporting that are commands, each with add_command(commands, common).

    UserError where matplotlib is missing, which all of them import: so they are imported here, where that becomes one line.
    """
    importlib.import_module("tools.reporting.style")
    from tools.reporting import embeddings, samples, shifted

    return shifted, embeddings, samples


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    common = Parser(add_help=False)
    common.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for what is made")
    common.add_argument("--split", choices=("test", "val"), default="test", help="of the data (default: %(default)s)")
    for module in command_modules():
        module.add_command(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_with_settings(build_parser, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(script(main))
