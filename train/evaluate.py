"""Evaluate a finished run: top-1, many / medium / few and per-class accuracy, by the training counts of that run.

Takes the run's name or folder; settings given behind it override the run's own (another data.test, eval.batch ...). Figures
go to evaluation_SPLIT.json in the run's folder; predictions=FILE.npz also saves keys, labels and float16 logits.

    accelerate launch train/evaluate.py RUN [split=test] [predictions=FILE.npz] [data.test=FILE.beton]
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not win over ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from models.registry import build_model
from pipelines.backends import resolve_backend
from pipelines.errors import UserError
from pipelines.files import write_bytes_atomic, write_json_atomic
from pipelines.records import Records
from train.checkpoint import load_final, run_folder
from train.config import Config, parse_args
from train.evaluation import evaluate
from train.experiment import channels_last, evaluation_backend, make_loader
from train.run import guard, make_accelerator, stored_facts
from train.tracking import show_result


@dataclass(kw_only=True)
class EvaluateConfig(Config):
    split: Literal["test", "val"] = "test"
    "which records to evaluate: data.test or data.val"
    predictions: str | None = None
    "file for keys int64 [n], labels int64 [n] and logits float16 [n, C], as numpy .npz"


def main(argv: list[str]) -> None:
    if not argv or argv[0].startswith("-"):
        parse_args(["--help"], __doc__ or "", EvaluateConfig)
    folder = run_folder(argv[0].rstrip("/"))
    state, meta = load_final(folder)
    config, _ = parse_args([str(folder / "config.yaml"), *argv[1:]], __doc__ or "", EvaluateConfig)
    path = getattr(config.data, config.split)
    if path is None:
        raise UserError(f"run {folder} has no data.{config.split}; type data.{config.split}=FILE.beton")
    records = Records(path)
    if list(records.class_names) != meta["class_names"]:
        raise UserError(
            f"data.{config.split}={path} has other classes than run {folder}; convert it with the same --classes"
        )
    accelerator = make_accelerator(config)
    network = build_model(meta["architecture"], len(meta["class_names"]))
    network.load_state_dict(state)
    network = channels_last(network.to(accelerator.device))
    model = accelerator.prepare_model(network, evaluation_mode=True)
    recipe = config.data.recipe.evaluation()
    device, setting = accelerator.device, config.data.backend
    if setting == "auto":  # as when the run evaluated itself
        trained = stored_facts(folder).get("backend", "auto")
        backend = evaluation_backend(trained, records, recipe, device)
    else:
        backend = resolve_backend(setting, records, recipe, device)
    loader = make_loader(config, records, recipe, backend, accelerator)
    counts = np.array(meta["train_counts"], np.int64)
    done = evaluate(model, loader, config.eval.batch, counts, accelerator, config.predictions is not None)
    if not accelerator.is_main_process:
        return
    if done.predictions is not None and config.predictions is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **done.predictions._asdict())
        write_bytes_atomic(Path(config.predictions), buffer.getvalue())
    figures = done.figures | {"backend": backend}
    write_json_atomic(folder / f"evaluation_{config.split}.json", figures)
    show_result({config.split: figures})


if __name__ == "__main__":
    sys.exit(guard(main))
