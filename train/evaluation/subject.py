"""Evaluating a run from outside its training: which weights, on which records; for train/evaluate.py and eval_only=true.

The weights are the final ones of a finished run or an export, or else those of the newest checkpoint, whose step is then noted
in the figures. Owns evaluation_SPLIT.json; counting.py counts. Writes nothing else in the folder, and takes no lock.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from models import ModelSpec
from models.features import UnknownFeatures, require_features
from pipelines.backends.choice import resolve_backend
from pipelines.errors import UserError
from pipelines.files import check_file_place, read_object, write_each, write_json_atomic
from pipelines.loader import Loader
from pipelines.records.encoding import AS_THEY_ARE
from pipelines.records.reader import Records
from train.config import Config
from train.data import evaluation_backend, make_loader
from train.evaluation.cost import operations
from train.evaluation.counting import Evaluation, evaluate
from train.networks.final import load_final, why_not_final
from train.networks.info import ModelInfo
from train.networks.layout import channels_last
from train.networks.probe import explained
from train.networks.weights import build, fill
from train.run.checkpoint import load_best, load_latest
from train.run.facts import Facts
from train.run.folder import binding
from train.run.place import run_folder
from train.settings import Options, diff, load
from train.watch.tracking import show_result

Kind = Literal["raw", "ema", "best"]


class Weights(NamedTuple):
    """Weights of a run, on the CPU."""

    state: dict[str, torch.Tensor]
    info: ModelInfo | None
    "what model.json says; None of a checkpoint"
    step: int | None
    "that of the checkpoint; None for final weights"
    notes: list[str]


class Subject(NamedTuple):
    """A network to be evaluated, on the device, and what its evaluation needs."""

    folder: Path
    network: nn.Module
    spec: ModelSpec
    class_names: list[str]
    train_counts: np.ndarray
    step: int | None


def run_to_evaluate(given: str) -> Path:
    """The folder of the run, finished or not, or of the export that was named; UserError where there is none."""
    folder = run_folder(given.rstrip("/"))
    if not (folder / "config.yaml").is_file():
        raise UserError(why_not_final(folder))
    return folder


def view_settings(folder: Path) -> tuple[str, ...]:
    """KEY=VALUE of the view that an export promises its users, where it is not that of its run's settings; none of a run."""
    file = folder / "model.json"
    told = read_object(file).get("evaluation_recipe") if file.is_file() else None
    if not isinstance(told, dict):
        return ()
    recipe = load(Config, folder / "config.yaml").data.recipe
    own = recipe.evaluation()
    size, short_side = told.get("size", own.size), told.get("short_side", own.short_side)
    if (size, short_side) == (own.size, own.short_side):
        return ()
    try:
        follows = replace(recipe, size=size).resolved_short_side()
    except ValueError:  # its own short side is less than that size
        follows = None
    view = (f"data.recipe.size={size}",)
    return view if follows == short_side else (*view, f"data.recipe.short_side={short_side}")


def newest_weights(folder: Path, kind: Kind = "raw") -> Weights:
    """The final weights of the run (or export) in `folder`, or those of its newest intact checkpoint.

    kind: ema = their moving average; best = the checkpoint of save.keep_best, and its moving average if it has one.
    """
    finished = (folder / "model.json").is_file()
    if kind == "best":
        best = load_best(folder)
        state = best.tensors.get("ema", best.tensors["model"])
        note = f"run {folder}: the weights of its best evaluation, after step {best.step}"
        return Weights(state, replace(load_final(folder)[1], kind="best") if finished else None, best.step, [note])
    if not finished and (newest := load_latest(folder)) is not None:
        note = f"run {folder} is unfinished: these are the weights of its newest checkpoint, after step {newest.step}"
        group = "model" if kind == "raw" else "ema"
        if group not in newest.tensors:
            raise UserError(f"weights={kind}: run {folder} has no moving average, it is trained without ema.decay")
        return Weights(newest.tensors[group], None, newest.step, [*newest.warnings, note])
    return Weights(*load_final(folder, kind), None, [])


def make_subject(folder: Path, weights: Weights, config: Config, accelerator: Accelerator) -> Subject:
    """The network with its weights; for an unfinished run, the settings name the network and data.train its classes.

    UserError, on all processes, where a run that trains on has saved between their reading.
    """
    read = gather_object([f"step {weights.step}" if weights.info is None else "the end"])
    if len(set(read)) > 1:
        raise UserError(
            f"run {folder} trains on: its processes have read the weights after {', '.join(sorted(set(read)))}; run the same "
            "command again"
        )
    for note in weights.notes:
        accelerator.print(note)
    spec, class_names, counts = _described(weights, config)
    network = build(spec, "model.name")
    fill(network, weights.state, spec, f"run {folder}")
    network = channels_last(network.to(accelerator.device))
    model = accelerator.prepare_model(network, evaluation_mode=True)
    return Subject(folder, model, spec, class_names, np.array(counts, np.int64), weights.step)


def _described(weights: Weights, config: Config) -> tuple[ModelSpec, list[str], list[int]]:
    """(network, class names, training images of each class)"""
    if weights.info is not None:
        return weights.info.spec, weights.info.class_names, weights.info.train_counts
    if config.data.train is None:
        raise UserError(
            "data.train, which names the classes of an unfinished run, is not set: config.yaml of the run is damaged"
        )
    train = Records(config.data.train)
    return config.model.spec(train.num_classes), list(train.class_names), train.class_counts.tolist()


def grey_bits_of(weights: Weights, config: Config) -> int:
    """The bits that 16-bit grey was taken to use in the training images, and so is in files that come to the network."""
    if weights.info is not None:
        return weights.info.grey_bits
    return AS_THEY_ARE.grey_bits if config.data.train is None else Records(config.data.train).grey_bits


def open_split(subject: Subject, config: Config, split: str) -> Records:
    """The records of data.val or data.test; their classes must be those of the run."""
    path = getattr(config.data, split)
    if path is None:
        other = "val" if split == "test" else "test"
        choice = f"data.{split}=FILE.beton"
        if getattr(config.data, other) is not None:
            choice += f", or split={other} (in tools/: --split {other})"
        raise UserError(f"run {subject.folder} has no data.{split}; type {choice}")
    records = Records(path)
    if list(records.class_names) != subject.class_names:
        raise UserError(
            f"data.{split}={path} has other classes than run {subject.folder}; convert it with the same --classes"
        )
    return records


def evaluation_loader(
    subject: Subject, records: Records, config: Config, accelerator: Accelerator
) -> tuple[Loader, str]:
    """The evaluation view of each record, and the backend: that of the training where that can serve."""
    recipe, device, setting = config.data.recipe.evaluation(), accelerator.device, config.data.backend
    if setting == "auto":
        trained = Facts.of_run(subject.folder).backend or "auto"
        backend = evaluation_backend(trained, records, recipe, device)
    else:
        backend = resolve_backend(setting, records, recipe, device)
    return make_loader(config, records, recipe, backend, accelerator, batch=config.eval.batch), backend


def assess(
    subject: Subject,
    records: Records,
    config: Config,
    accelerator: Accelerator,
    keep: Literal["nothing", "logits", "features"] = "nothing",
    batches: int | None = None,
) -> Evaluation:
    """The figures, and for a checkpoint its step; with the backend of the training where that can serve.

    keep, batches: as in `evaluate`. UserError, before the evaluation, for features of a network whose last layer is not known.
    """
    loader, backend = evaluation_loader(subject, records, config, accelerator)
    size, device = loader.recipe.size, accelerator.device
    network = accelerator.unwrap_model(subject.network)
    with explained(subject.spec, size, f"run {subject.folder}"):
        if keep == "features":
            try:
                require_features(network, size, device)
            except UnknownFeatures as error:
                raise UserError(f"run {subject.folder}: {error}; predictions=FILE.npz keeps the rest") from error
        done = evaluate(
            subject.network,
            loader,
            config.eval.batch,
            subject.train_counts,
            accelerator,
            keep=keep,
            batches=batches,
        )
        network.eval()  # the evaluation left it in training mode, in which batch norm refuses one image on a map of one pixel
        cost = operations(network, size, device).figures(done.figures.get("expert_shares"))
    of = {} if subject.step is None else {"step": subject.step}
    return done._replace(figures=done.figures | cost | {"backend": backend} | of)


def figures_file(folder: Path, split: str) -> Path:
    """The file of the figures of a split."""
    return folder / f"evaluation_{split}.json"


def write_figures(split: str, figures: dict[str, Any], subject: Subject, records: Records) -> None:
    """evaluation_SPLIT.json, beside the weights: the figures, and `by_class`, a list in label order, as names may repeat."""
    path = figures_file(subject.folder, split)
    names = ("class", "train_images", "test_images", "accuracy")
    images = (subject.train_counts.tolist(), records.class_counts.tolist())
    rows = zip(subject.class_names, *images, figures["classes"], strict=True)
    try:
        write_json_atomic(path, figures | {"by_class": [dict(zip(names, row, strict=True)) for row in rows]})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def evaluate_only(config: Config, options: Options, folder: Path, accelerator: Accelerator) -> None:
    """eval_only=true: evaluate the run in `folder`, with its own settings and its present weights."""
    if options.dry_run:
        raise UserError("eval_only=true trains nothing and --dry-run evaluates nothing to keep; leave one of them out")
    averaged = config.ema.decay is not None and (folder / "run.json").exists()  # an export holds one kind of weights
    kinds: list[Kind] = ["raw", "ema"] if averaged else ["raw"]
    weights = [newest_weights(folder, kind) for kind in kinds]
    _require_the_runs_settings(config, folder)
    splits = [split for split in ("val", "test") if getattr(config.data, split) is not None]
    if not splits:
        raise UserError("eval_only=true: neither data.val nor data.test is set; type data.test=FILE.beton")
    if accelerator.is_main_process:
        check_file_place(figures_file(folder, splits[0]), f"run {folder}")
    figures, writes = {}, []
    for kind, one in zip(kinds, weights, strict=True):
        subject = make_subject(folder, one, config, accelerator)
        for split in splits:
            name = split if kind == "raw" else f"{split}_{kind}"
            records = open_split(subject, config, split)
            figures[name] = assess(subject, records, config, accelerator).figures
            writes.append(partial(write_figures, name, figures[name], subject, records))
    if accelerator.is_main_process:
        show_result(figures)
        write_each(*writes)


def _require_the_runs_settings(config: Config, folder: Path) -> None:
    """Refuse other settings, as a resumed run does: their figures would be mistaken for those of this run."""
    refused = binding(diff(load(Config, folder / "config.yaml"), replace(config, eval_only=False)))
    if refused:
        raise UserError(
            f"run {folder} was started with other settings (stored -> given): {'; '.join(refused)}. Give the stored ones; to "
            f"evaluate it on other records or by other settings, type: python train/evaluate.py {folder} KEY=VALUE"
        )
