"""Evaluate a run: top-1, many / medium / few and per-class accuracy, by the training counts of that run.

Takes the name or folder of a run, or an export folder; settings given behind it override the run's own (another data.test,
eval.batch ...), and those of the training are refused. Of an unfinished run the newest checkpoint is evaluated, and said so.
Figures go to evaluation_SPLIT.json in the run's folder; predictions=FILE.npz also saves keys, labels and logits;
export=DIR makes a folder that is all one needs to use the network elsewhere, with these figures in it (docs/export.md).

    accelerate launch train/evaluate.py RUN [split=test] [export=DIR] [predictions=FILE.npz] [data.test=FILE.beton]
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

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
    export: str | None = field(default=None, metadata={"path": True})
    "new folder for the finished network with all that is needed to use it, and these figures: weights, settings, model card"


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
    done = assess(subject, records, config, accelerator, keep="nothing" if config.predictions is None else "logits")
    if not accelerator.is_main_process:
        return
    show_result({config.split: done.figures})

    def save_predictions() -> None:
        if done.kept is not None and config.predictions is not None:
            hashed = weights_hash(weights.state)
            described = describe(done.kept, records, subject.train_counts, config.distill.method, hashed)
            described.save(Path(config.predictions))

    def export() -> None:
        if config.export is not None and weights.info is not None:
            evaluation = measured(config.split, records, done.figures, folder, config, accelerator)
            write_export(Path(config.export), folder, weights.state, weights.info, evaluation)
            print(f"exported to {config.export}")

    write_each(
        save_predictions, lambda: write_figures(folder, figures, done.figures) if keeps_figures else None, export
    )


def _check_places(config: EvaluateConfig, folder: Path, figures: Path) -> bool:
    """Refuse, before the work, what could not be written after it; whether the run's folder can keep the figures.

    Of a run that belongs to someone else the predictions and the export can be written all the same.
    """
    if config.export is not None:
        check_exportable(Path(config.export), folder, config)
        check_folder_place(Path(config.export), f"export={config.export}")
    if config.predictions is not None:
        check_file_place(Path(config.predictions), f"predictions={config.predictions}")
    try:
        check_file_place(figures, f"run {folder}")
    except UserError as error:
        if config.export is None and config.predictions is None:
            raise
        print(f"note: {error}; the figures are only printed")
        return False
    return True


if __name__ == "__main__":
    sys.exit(guard(main))
