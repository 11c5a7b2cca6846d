"""One page on finished runs: accuracy, confusion, calibration, curves, settings, speed; HTML that needs nothing else.

    python tools/report.py RUN [RUN ...] --out report.html [--split test|val] [--without SECTION ...] [KEY=VALUE ...]

RUN is the name or folder of a run, an export, or a file of predictions. Of an unfinished run the newest checkpoint is evaluated.
Runs that differ in `seed` alone are shown as one, with mean and standard deviation. KEY=VALUE goes to the evaluation of runs
whose predictions are not there yet, such as data.test=FILE.beton (docs/figures.md).
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.files import check_file_place, write_bytes_atomic
from tools.command_line import Parser, path, run_with_settings
from train.run.endings import script
from train.watch.text import short_list, size_text


def build_parser() -> Parser:
    """UserError where matplotlib is missing, which all sections import: so they are imported in functions, not above."""
    importlib.import_module("tools.reporting.style")
    from tools.reporting.sections import SECTIONS

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="name or folder of a run, an export, or predictions .npz"
    )
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="the page, such as report.html")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="of the data (default: %(default)s)")
    parser.add_argument(
        "--without",
        nargs="+",
        choices=tuple(SECTIONS),
        default=(),
        metavar="SECTION",
        help=f"leave out: {', '.join(SECTIONS)}; embeddings and samples take longest",
    )
    parser.set_defaults(run=report)
    return parser


def report(args: argparse.Namespace) -> None:
    """Make the page, and say what is left out of it."""
    from tools.reporting.page import page
    from tools.reporting.runs import open_runs
    from tools.reporting.sections import make_sections, needs_features

    check_file_place(args.out, f"--out {args.out}")
    runs = open_runs(args.runs, args.settings, args.split, "wanted" if needs_features(args.without) else False)
    made = make_sections(runs, args.split, args.without)
    title = f"Report on {short_list([run.title for run in runs])}"
    about = f"Made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by tools/report.py, from predictions on the {args.split} split."
    data = page(title, about, made.sections, made.left_out)
    write_bytes_atomic(args.out, data)
    for name, why in made.left_out.items():
        print(f"without {name}: {why}")
    print(f"{args.out}: {len(made.sections)} sections, {size_text(len(data))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_with_settings(build_parser, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(script(main))
