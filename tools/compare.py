"""Finished runs side by side: mean and standard deviation over seeds, gain over the teacher, shot groups, ECE, named classes.

    python tools/compare.py RUN [RUN ...] --out DIR [--classes NAME ...] [--ensemble] [--split test|val] [KEY=VALUE ...]

RUN is the name or folder of a run, an export, or a file of predictions. Runs that differ in `seed` alone are one line. KEY=VALUE
goes to the evaluation of runs whose predictions are not there yet, such as data.test=FILE.beton. --ensemble adds how well all
these networks answer together, as the teachers of one student would. Writes compare.md, compare.tex, compare.json, and the
picture compare.svg and .png (docs/figures.md); prints the tables.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.files import check_file_place, write_bytes_atomic
from tools.command_line import Parser, path, run_with_settings
from train.run.endings import script
from train.watch.text import markdown_table


def build_parser() -> Parser:
    """UserError where matplotlib is missing, which the comparison imports: so it is imported in functions, not above."""
    importlib.import_module("tools.reporting.style")
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="name or folder of a run, an export, or predictions .npz")
    add("--out", type=path, required=True, metavar="DIR", help="folder for what is made")
    add("--split", choices=("test", "val"), default="test", help="of the data (default: %(default)s)")
    add("--classes", nargs="+", default=(), metavar="NAME", help="classes to show, by name or label")
    add("--ensemble", action="store_true", help="also the mean of their logits, and of their probabilities")
    parser.set_defaults(run=compare)
    return parser


def compare(args: argparse.Namespace) -> None:
    """Measure, write the files and print the tables."""
    from tools.reporting.comparison import STEM, as_json, as_latex, draw, measure, page, tables
    from tools.reporting.ensemble import ensembles
    from tools.reporting.output import check_place, write_all
    from tools.reporting.runs import open_runs

    check_place(args.out, STEM)
    if args.out.is_dir():
        check_file_place(args.out / f"{STEM}.tex", f"--out {args.out}")
    runs = open_runs(args.runs, args.settings, args.split)
    compared = measure([*runs, *(ensembles(runs) if args.ensemble else [])], args.split, args.classes)
    paths = write_all(args.out, STEM, page(compared), as_json(compared), draw(compared))
    write_bytes_atomic(args.out / f"{STEM}.tex", as_latex(compared).encode())
    for table in tables(compared):
        print(f"{table.title}\n{markdown_table(table.columns, table.rows, right=table.columns[1:])}\n")
    print(f"written: {paths[0]}, {STEM}.tex, {', '.join(one.name for one in paths[1:])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_with_settings(build_parser, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(script(main))
