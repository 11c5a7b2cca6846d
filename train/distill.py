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

from train.run.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()  # read when torch is imported

from train.experiment import train_or_evaluate
from train.run.exits import guard


def main(argv: list[str]) -> None:
    train_or_evaluate("train/distill.py", argv, __doc__ or "")


if __name__ == "__main__":
    sys.exit(guard(main))
