"""Train a network on hard labels: a teacher with balanced softmax (bsce), or the cross-entropy baseline (ce).

The same command again resumes an interrupted run, and prints the result of a finished one;
with eval_only=true it trains nothing and evaluates what there is.

    accelerate launch train/teacher.py configs/cifar100_lt/bsce_if100.yaml
"""

import sys
from pathlib import Path

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from train.config import Config
from train.evaluation.subject import evaluate_only
from train.experiment import Experiment
from train.run.exits import guard
from train.settings import parse_args


def main(argv: list[str]) -> None:
    config, options = parse_args(argv, __doc__ or "", Config)
    experiment = Experiment(config, options, "train/teacher.py")
    if config.eval_only:
        evaluate_only(config, options, experiment.folder, experiment.accelerator)
    else:
        experiment.run()


if __name__ == "__main__":
    sys.exit(guard(main))
