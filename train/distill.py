"""Train a student from a teacher's soft targets: DiVE (He, Wu, Wei, ICCV 2021) or classic KD.

Targets come from a logit cache (cache.paths=[FOLDER], written by train/cache_logits.py) or from the teacher itself, asked
online (distill.teacher=RUN). The same command again resumes an interrupted run, and prints the result of a finished one; with
eval_only=true it trains nothing and evaluates what there is.

    accelerate launch train/distill.py configs/cifar100_lt/dive_if100.yaml distill.teacher=NAME
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
    experiment = Experiment(config, options, "train/distill.py")
    if config.eval_only:
        evaluate_only(config, options, experiment.folder, experiment.accelerator)
    else:
        experiment.run()


if __name__ == "__main__":
    sys.exit(guard(main))
