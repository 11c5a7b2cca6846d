"""Predict the classes of images without labels: of each the class, its probability and the next ones (docs/predict.md).

Takes the name or folder of a run, or an export folder; then a folder of images (nested ones too), an image, or a record file.
Images are decoded, resized and cropped as in an evaluation of the run. Those that cannot be read are listed and left out; the
exit code is 0 unless none can be read. prior=uniform|train|FILE corrects the probabilities to the class distribution that is
stated. out=FILE.parquet needs the package pyarrow.

    accelerate launch train/predict.py RUN FOLDER|IMAGE|FILE.beton [out=predictions.csv] [prior=PRIOR] [top=5] [KEY=VALUE ...]
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from train.run.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()  # read when torch is imported

from pipelines.errors import UserError
from pipelines.files import check_file_place
from train.config import Config
from train.effects import require_predictions
from train.evaluation.predicting import predict, prior_shift
from train.evaluation.ranking import check_table
from train.evaluation.subject import (
    Kind,
    grey_bits_of,
    make_subject,
    newest_weights,
    run_to_evaluate,
    view_settings,
)
from train.evaluation.unlabelled import open_images
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.run.place import expanded
from train.settings import Words, diff, load, parse_args

WORDS = Words("RUN FOLDER|IMAGE|FILE.beton", dry_run=None)


@dataclass(kw_only=True)
class PredictConfig(Config):
    out: str = field(default="predictions.csv", metadata={"path": True})
    "the file to write: .csv, or .parquet, which needs the package pyarrow; it is replaced if it exists"
    top: int = 5
    "how many classes to name for each image, the most probable first"
    prior: str | None = field(default=None, metadata={"path": True})
    """class distribution of these images, to which the probabilities are corrected: uniform, train (that of the training images),
    or a FILE with a number of images per class (text, one in each line, in the order of the outputs; or records, .beton); null =
    none is stated, the probabilities are the softmax of the logits"""
    weights: Kind = "raw"
    "which weights: those trained last, their moving average, or the checkpoint that save.keep_best kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise ValueError(f"top={self.top}: must be at least 1")


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        parse_args(["--help"], __doc__ or "", PredictConfig, WORDS)
    if not argv or argv[0].startswith("-"):
        example = "python train/predict.py RUN FOLDER|IMAGE|FILE.beton [KEY=VALUE ...]"
        raise UserError(f"the first argument must be a run: {example}; --help explains")
    folder = run_to_evaluate(argv[0])
    images, settings = (argv[1], argv[2:]) if len(argv) > 1 else ("", [])
    if not images or images.startswith("-") or ("=" in images and not Path(images).exists()):
        raise UserError(
            f"the images are missing; type: python train/predict.py {argv[0]} FOLDER|IMAGE|FILE.beton [KEY=VALUE ...]"
        )
    given = [str(folder / "config.yaml"), *view_settings(folder), *settings]
    config, options = parse_args(given, __doc__ or "", PredictConfig, WORDS)
    if options.dry_run:
        raise UserError("--dry-run: a prediction has nothing to try before it; leave it out")
    out = Path(config.out)
    check_table(out)
    weights = newest_weights(folder, config.weights)
    require_predictions(diff(load(PredictConfig, options.config), config), unfinished=weights.info is None)
    accelerator = make_accelerator(config)
    if accelerator.is_main_process:
        check_file_place(out, f"out={out}")
    grey_bits = grey_bits_of(weights, config)
    found = open_images(expanded(images), config.data.workers, accelerator.is_main_process, grey_bits)
    subject = make_subject(folder, weights, config, accelerator)
    shift = prior_shift(config.prior, config, subject)
    done = predict(subject, found, config, accelerator, shift, config.top, out, images)
    if accelerator.is_main_process:
        print(done)


if __name__ == "__main__":
    sys.exit(guard(main))
