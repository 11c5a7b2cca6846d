"""Measure, in one run, how fast images are loaded, how fast the step trains on them, and which of the two limits.

CONFIG and KEY=VALUE are those of train/distill.py; data.train must be given. Prints one table:

  (a) each backend alone, from the record file to uint8 crops on the device
  (b) the training step on one batch that stays on the device: the ceiling; finish and transfer apart
  (c) training from disk: the loader of the configuration and the step, hard labels only
  (d) distillation from a logit cache: cache.paths, or a temporary one
  (e) distillation with the online teacher: distill.teacher, or an untrained network of the same architecture
  (f) for comparison, as in (a): torch DataLoader with PIL, and the stock FFCV Loader, on the same records and recipe; and
      the DataLoader as most people use it, jitter and normalisation in its workers, too

  --seconds S      least duration of one measurement (default 3)
  --rounds N       measurements of each row, in turns: a b c ... a b c ...; the table shows medians (default 3)
  --images N       records in a pass: a smaller file is repeated, of a larger one so many are drawn (default 2000);
                   (a) and (f) measure at least one pass
  --only LETTERS   rows to measure, such as a,b,f (default all)
  --json FILE      write every figure there
  --markdown FILE  write the table there

    python tools/bench.py configs/imagenet_lt/dive_x50.yaml data.train=FILE.beton
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from pipelines.errors import UserError
from pipelines.files import check_file_place, write_bytes_atomic, write_each, write_json_atomic
from tools.benchmark.report import show, to_json, to_markdown
from tools.benchmark.session import SECTIONS, run
from tools.command_line import Parser, path
from train.config import Config
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.settings import parse_args


class Flags(NamedTuple):
    """The bench's own options."""

    seconds: float
    rounds: int
    images: int
    only: str
    json: Path | None
    markdown: Path | None


def _sections(text: str) -> str:
    letters = "".join(text.replace(",", "").split())
    if not letters or set(letters) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"'{text}' given, letters of {','.join(SECTIONS)} allowed, such as a,b,f")
    return letters


def parse_flags(argv: list[str]) -> tuple[Flags, list[str]]:
    """The bench's own options, and the rest of the command line."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--only", type=_sections, default=SECTIONS)
    parser.add_argument("--json", type=path)
    parser.add_argument("--markdown", type=path)
    given, rest = parser.parse_known_args(argv)
    flags = Flags(**vars(given))
    if not 0 <= flags.seconds <= 86400:
        raise UserError(f"--seconds {flags.seconds:g}: must be 0 or more, at most a day")
    for name, most in (("rounds", 10**4), ("images", 10**7)):
        if not 1 <= (value := getattr(flags, name)) <= most:
            raise UserError(f"--{name} {value}: must be at least 1 and at most {most:,}")
    for file in filter(None, (flags.json, flags.markdown)):
        check_file_place(file, "--json or --markdown")  # before the minutes of measuring, not after
    return flags, rest


def main(argv: list[str]) -> None:
    flags, rest = parse_flags(argv)
    config, options = parse_args(rest, __doc__ or "", Config)
    if config.data.train is None:
        raise UserError("data.train is not set; type data.train=FILE.beton (tools/convert.py makes it)")
    accelerator = make_accelerator(config)
    if accelerator.num_processes > 1:
        raise UserError("the bench measures one process: start it with plain `python tools/bench.py ...`")
    report = run(config, accelerator, flags.only, flags.images, flags.rounds, flags.seconds, options.dry_run)
    show(report)
    if options.dry_run:
        return
    json, markdown = flags.json, flags.markdown
    write_each(
        lambda: json and write_json_atomic(json, to_json(report)),
        lambda: markdown and write_bytes_atomic(markdown, to_markdown(report).encode()),
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exiting ends child processes and removes temporary files
    sys.exit(guard(main))
