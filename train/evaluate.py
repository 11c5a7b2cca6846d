"""Evaluate a run: accuracy in all, by many / medium / few and by class, likelihood and calibration (docs/runs.md).

Takes the name or folder of a run, or an export folder; settings given behind it override the run's own (another data.test,
eval.batch ...), and those of the training are refused. Of an unfinished run the newest checkpoint is evaluated, and said so.
Figures go to evaluation_SPLIT.json in the run's folder; predictions=FILE.npz also saves keys, labels and logits, and
features=FILE.npz those and the input of the last layer; export=DIR makes a folder that is all one needs to use the network
elsewhere, with these figures in it (docs/export.md), format=[torch_export,onnx] adds programs to it.

    accelerate launch train/evaluate.py RUN [split=test] [export=DIR] [predictions=FILE.npz] [features=FILE.npz] [KEY=VALUE ...]
"""

import sys
from dataclasses import replace
from pathlib import Path

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from train.run.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()  # read when torch is imported

from pipelines.errors import UserError
from pipelines.files import write_each
from train.effects import require_evaluations
from train.evaluation.compensation import named_method
from train.evaluation.outputs import EvaluateConfig, check_places
from train.evaluation.predictions import describe
from train.evaluation.subject import (
    assess,
    figures_file,
    make_subject,
    newest_weights,
    open_split,
    run_to_evaluate,
    view_settings,
    write_figures,
)
from train.networks.export import measured, write_export
from train.networks.programs import Programs
from train.networks.weights import weights_hash
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.settings import Words, diff, load, parse_args
from train.watch.tracking import show_result

WORDS = Words("RUN", "check everything, evaluate one batch, write nothing")


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        parse_args(["--help"], __doc__ or "", EvaluateConfig, WORDS)
    if not argv or argv[0].startswith("-"):
        raise UserError(
            "the first argument must be a run: python train/evaluate.py RUN [KEY=VALUE ...]; --help explains"
        )
    folder = run_to_evaluate(argv[0])
    given = [str(folder / "config.yaml"), *view_settings(folder), *argv[1:]]
    config, options = parse_args(given, __doc__ or "", EvaluateConfig, WORDS)
    weights = newest_weights(folder, config.weights)
    kind = "" if config.weights == "raw" else f"_{config.weights}"
    figures = f"{config.split}{kind}"
    require_evaluations(diff(load(EvaluateConfig, options.config), config), unfinished=weights.info is None)
    accelerator = make_accelerator(config)
    keeps_figures = accelerator.is_main_process and check_places(config, folder, figures_file(folder, figures))
    subject = make_subject(folder, weights, config, accelerator)
    records = open_split(subject, config, config.split)
    keep = "features" if config.features is not None else "logits" if config.predictions is not None else "nothing"
    done = assess(subject, records, config, accelerator, keep, batches=1 if options.dry_run else None)
    if options.dry_run:
        accelerator.print(f"dry run: {done.figures['samples']} of {len(records)} images evaluated, nothing written")
    if options.dry_run or not accelerator.is_main_process:
        return
    show_result({config.split: done.figures})

    whole = None
    if done.kept is not None:
        method = named_method(config.distill, config.data.sampling)
        whole = describe(done.kept, records, subject.train_counts, method, weights_hash(weights.state))

    def save_predictions() -> None:
        if whole is not None and config.predictions is not None:
            replace(whole, features=None).save(Path(config.predictions))

    def save_features() -> None:
        if whole is not None and config.features is not None:
            whole.save(Path(config.features))

    def export() -> None:
        if config.export is not None and weights.info is not None:
            evaluation = measured(config.split, records, done.figures, folder, config, accelerator)
            programs = Programs(config.format, config.program_input)
            write_export(Path(config.export), folder, weights.state, weights.info, evaluation, programs)
            print(f"exported to {config.export}")

    def save_figures() -> None:
        if keeps_figures:
            write_figures(figures, done.figures, subject, records)

    write_each(save_predictions, save_features, save_figures, export)


if __name__ == "__main__":
    sys.exit(guard(main))
