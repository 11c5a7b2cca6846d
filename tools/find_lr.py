"""Find a learning rate: train a few steps of a configuration at rates that rise exponentially, and look where the loss falls.

CONFIG and KEY=VALUE are those of train/teacher.py or train/distill.py, whichever trains distill.method. Images, views, loss,
optimizer and step are the training's own; nothing is evaluated, and the network is thrown away. Writes OUT/lr.svg (with .png, .md
and the numbers in lr.json) and prints the optim.lr to type: of SGD a tenth of the rate with the lowest smoothed loss, of AdamW
the rate at which that falls fastest.

  --out OUT      folder for what is made; must be given
  --from LR      lowest rate (default 1e-6)
  --to LR        highest rate (default 10); the sweep ends before it where the loss diverges
  --steps N      steps from the lowest to the highest (default 100)

    python tools/find_lr.py configs/imagenet_lt/bsce_x50.yaml data.train=FILE.beton --out lr
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.errors import UserError, quoted
from tools.command_line import Parser, path, whole
from tools.rates.sweep import rates, read, sweep
from train.assembly import assemble, check_method
from train.config import Config
from train.effects import of_training
from train.networks.probe import explained
from train.objectives.methods import METHODS
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.settings import flatten, parse_args

LEAST_LR, MOST_LR = 1e-12, 1e4
FEWEST, MOST = 20, 5000  # steps


class Flags(NamedTuple):
    """The program's own options."""

    out: Path
    low: float
    high: float
    steps: int


def _rate(text: str) -> float:
    lr = float(text)
    if not LEAST_LR <= lr <= MOST_LR:
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, {LEAST_LR:g}..{MOST_LR:g} allowed")
    return lr


def build_parser() -> Parser:
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=path)
    parser.add_argument("--from", type=_rate, default=1e-6, dest="low")
    parser.add_argument("--to", type=_rate, default=10.0, dest="high")
    parser.add_argument("--steps", type=whole(FEWEST, MOST), default=100)
    return parser


def parse_flags(argv: list[str]) -> tuple[Flags, list[str]]:
    """The program's own options, and the rest of the command line."""
    given, rest = build_parser().parse_known_args(argv)
    if given.out is None and not {"--help", "-h", "--print-config"} & set(rest):
        raise UserError("--out is missing: give a folder for picture and numbers, --out lr")
    if given.low >= given.high:
        raise UserError(f"--from {given.low:g} --to {given.high:g}: the rate must rise")
    return Flags(**vars(given)), rest


def without_evaluations(config: Config) -> Config:
    """The settings of the training alone."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, val=None, test=None),
        eval=dataclasses.replace(config.eval, patience=None),
        save=dataclasses.replace(config.save, keep_best="no"),
        track=dataclasses.replace(config.track, trackers=[]),
        resume="auto",
    )


def main(argv: list[str]) -> None:
    flags, rest = parse_flags(argv)
    config, options = parse_args(rest, __doc__ or "", Config)
    from tools.rates import page  # here, where a missing matplotlib becomes one line
    from tools.reporting.output import check_place, write_all

    check_place(flags.out, page.STEM)
    check_method(config, METHODS[config.distill.method].script)
    if idle := of_training(config, options):
        print(idle)
    config = without_evaluations(config)
    accelerator = make_accelerator(config)
    if accelerator.num_processes > 1:
        raise UserError("one process finds the rate: start it with plain `python tools/find_lr.py ...`")
    assembled = assemble(config, flags.out / "no_run", accelerator)
    spec = config.model.spec(assembled.splits.train.num_classes)
    images = config.optim.batch // config.optim.accumulate
    print(f"{flags.steps} steps at rates from {flags.low:g} to {flags.high:g}")
    if options.dry_run:
        return
    with explained(spec, config.data.recipe.size, f"model.name={config.model.name}", images):
        done = sweep(assembled.training, rates(flags.low, flags.high, flags.steps))
    reading = read(done, flags.steps)
    name, data = str(options.config), page.as_json(done, reading, config.optim, flatten(config))
    figure = page.draw(done, reading, name)
    files = write_all(flags.out, page.STEM, page.markdown(reading, config.optim, name), data, figure)
    print(page.advice(reading, config.optim))
    print(f"picture and numbers: {', '.join(map(str, files[::2]))}")


if __name__ == "__main__":
    sys.exit(guard(main))
