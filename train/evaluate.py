"""Evaluate a run: accuracy in all, by many / medium / few and by class, likelihood and calibration (docs/runs.md).

Takes the name or folder of a run, or an export folder; settings given behind it override the run's own (another data.test,
eval.batch ...), and those of the training are refused. Of an unfinished run the newest checkpoint is evaluated, and said so.
Figures go to evaluation_SPLIT.json in the run's folder; predictions=FILE.npz also saves keys, labels and logits, and
features=FILE.npz those and the input of the last layer; export=DIR makes a folder that is all one needs to use the network
elsewhere, with these figures in it (docs/export.md).

    accelerate launch train/evaluate.py RUN [split=test] [export=DIR] [predictions=FILE.npz] [features=FILE.npz] [KEY=VALUE ...]
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from train.run.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()  # read when torch is imported

from pipelines.errors import UserError
from pipelines.files import check_file_place, check_folder_place, write_each
from train.config import Config
from train.effects import require_evaluations
from train.evaluation.predictions import describe
from train.evaluation.subject import assess, figures_file, make_subject, newest_weights, open_split, write_figures
from train.networks.export import check_exportable, measured, write_export
from train.networks.final import why_not_final
from train.networks.weights import weights_hash
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.run.place import run_folder
from train.settings import diff, load, parse_args
from train.watch.tracking import show_result


@dataclass(kw_only=True)
class EvaluateConfig(Config):
    split: Literal["test", "val"] = "test"
    "which records to evaluate: data.test or data.val"
    weights: Literal["raw", "ema", "best"] = "raw"
    "which weights: those trained last, their moving average, or the checkpoint that save.keep_best kept"
    predictions: str | None = field(default=None, metadata={"path": True})
    """file for keys int64 [n], labels int64 [n], logits [n, C] and the names of samples and classes, as numpy .npz; logits in
    float16, or float32 where float16 would overflow or change a prediction"""
    features: str | None = field(default=None, metadata={"path": True})
    "file for the same and the features float32 [n, D], the input of the last layer; it may be given beside predictions"
    export: str | None = field(default=None, metadata={"path": True})
    "new folder for the finished network with all that is needed to use it, and these figures: weights, settings, model card"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictions is not None and self.features is not None and Path(self.predictions) == Path(self.features):
            raise ValueError(
                f"predictions={self.predictions} and features name one file; the file of features holds both"
            )


def main(argv: list[str]) -> None:
    if not argv or argv[0].startswith("-"):
        parse_args(["--help"], __doc__ or "", EvaluateConfig)
    folder = run_folder(argv[0].rstrip("/"))
    if not (folder / "config.yaml").is_file():
        raise UserError(why_not_final(folder))
    config, options = parse_args([str(folder / "config.yaml"), *argv[1:]], __doc__ or "", EvaluateConfig)
    if options.dry_run:
        raise UserError("--dry-run: an evaluation has nothing to try before it; leave it out")
    weights = newest_weights(folder, config.weights)
    kind = "" if config.weights == "raw" else f"_{config.weights}"
    figures = f"{config.split}{kind}"
    require_evaluations(diff(load(EvaluateConfig, options.config), config), unfinished=weights.info is None)
    accelerator = make_accelerator(config)
    keeps_figures = accelerator.is_main_process and _check_places(config, folder, figures_file(folder, figures))
    subject = make_subject(folder, weights, config, accelerator)
    records = open_split(subject, config, config.split)
    keep = "features" if config.features is not None else "logits" if config.predictions is not None else "nothing"
    done = assess(subject, records, config, accelerator, keep)
    if not accelerator.is_main_process:
        return
    show_result({config.split: done.figures})

    whole = None
    if done.kept is not None:
        whole = describe(done.kept, records, subject.train_counts, config.distill, weights_hash(weights.state))

    def save_predictions() -> None:
        if whole is not None and config.predictions is not None:
            replace(whole, features=None).save(Path(config.predictions))

    def save_features() -> None:
        if whole is not None and config.features is not None:
            whole.save(Path(config.features))

    def export() -> None:
        if config.export is not None and weights.info is not None:
            evaluation = measured(config.split, records, done.figures, folder, config, accelerator)
            write_export(Path(config.export), folder, weights.state, weights.info, evaluation)
            print(f"exported to {config.export}")

    def save_figures() -> None:
        if keeps_figures:
            write_figures(figures, done.figures, subject, records)

    write_each(save_predictions, save_features, save_figures, export)


def _check_places(config: EvaluateConfig, folder: Path, figures: Path) -> bool:
    """Refuse, before the work, what could not be written after it; whether the run's folder can keep the figures.

    Of a run that belongs to someone else the predictions and the export can be written all the same.
    """
    if config.export is not None:
        check_exportable(Path(config.export), folder, config)
        check_folder_place(Path(config.export), f"export={config.export}")
    for name in ("predictions", "features"):
        if (place := getattr(config, name)) is not None:
            check_file_place(Path(place), f"{name}={place}")
    try:
        check_file_place(figures, f"run {folder}")
    except UserError as error:
        if config.export is None and config.predictions is None and config.features is None:
            raise
        print(f"note: {error}; the figures are only printed")
        return False
    return True


if __name__ == "__main__":
    sys.exit(guard(main))
