"""The runs that a report is about: each with its settings, what it says of itself, and its predictions on a split.

Owns how `RUN` on a command line becomes such a run: the name or folder of a run, an export, or a file of predictions, which may
be of a network that was not trained here. Predictions that are missing are computed and kept in the run's folder. Invariant:
kept predictions are used only for the weights and records that they were made of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from models.features import UnknownFeatures, require_features
from pipelines.errors import UserError
from pipelines.files import read_json
from pipelines.records.reader import Records
from train.config import Config
from train.effects import require_reports
from train.evaluation.compensation import Rule, named_method, rule_of, rule_of_training
from train.evaluation.predictions import Predictions, describe, read
from train.evaluation.subject import (
    Subject,
    assess,
    make_subject,
    newest_weights,
    open_split,
    run_to_evaluate,
    view_settings,
)
from train.networks.weights import weights_hash
from train.run.environment import make_accelerator
from train.settings import diff, load

Split = Literal["test", "val"]
# Settings that say where and how, not what is predicted: with others, predictions are not kept.
_HARMLESS = ("data.test", "data.val", "data.workers", "data.backend", "eval.batch", "cache.paths")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a report. Of a file of predictions, `folder`, `config` and `records` are None."""

    title: str
    "its name; unique among the runs of a report"
    predictions: Predictions
    folder: Path | None = None
    config: Config | None = None
    records: Records | None = None
    "of the split"
    step: int | None = None
    "of an unfinished run, that of the checkpoint whose weights these are"

    @property
    def rule(self) -> Rule | None:
        """What its logits hold of the training prior; None where that is not known."""
        if self.config is None:
            return rule_of(self.predictions.method)
        return rule_of_training(self.config.distill, self.config.data.sampling)

    def json(self, name: str) -> dict[str, Any]:
        """A file of the run's folder, such as result.json or run.json; empty where there is none (an export)."""
        path = None if self.folder is None else self.folder / name
        return read_json(path) if path is not None and path.is_file() else {}


def open_runs(
    given: Sequence[str],
    settings: Sequence[str] = (),
    split: Split = "test",
    features: bool | Literal["wanted"] = False,
    say: Callable[[str], None] = print,
) -> list[Run]:
    """The runs that are named on a command line; settings: KEY=VALUE for their evaluation, such as data.test=FILE.

    features: whether their predictions must hold features; wanted: those do that can, and a file is taken as it is.
    UserError where two are the same, or are not about the same classes.
    """
    for one in given:  # each may take minutes: a name that is wrong is said before
        if not _is_file(one):
            run_to_evaluate(one)
        elif not Path(one).is_file():
            raise UserError(f"{one}: no such file of predictions")
    runs = [_open(one, settings, split, features, say) for one in given]
    titles = [run.title for run in runs]
    if len(set(titles)) < len(titles):  # of the same name in different folders
        titles = [one.rstrip("/") for one in given]
        runs = [replace(run, title=title) for run, title in zip(runs, titles, strict=True)]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"{title} is given twice; name each run once")
    first = runs[0]
    for run in runs[1:]:
        if list(run.predictions.class_names) != list(first.predictions.class_names):
            raise UserError(f"{run.title} has other classes than {first.title}; compare runs on the same data set")
    return runs


def _open(
    given: str,
    settings: Sequence[str],
    split: Split,
    features: bool | Literal["wanted"],
    say: Callable[[str], None],
) -> Run:
    if _is_file(given):
        path = Path(given)
        found = read(path)
        if features is True and found.features is None:
            raise UserError(
                f"{given} holds no features; give the run in its place, or add `features` [n, D] to the file"
            )
        return Run(title=path.stem, predictions=found)
    folder = run_to_evaluate(given)
    config = load(Config, folder / "config.yaml", (*view_settings(folder), *settings))
    require_reports(diff(load(Config, folder / "config.yaml"), config))
    weights = newest_weights(folder)
    hashed = weights_hash(weights.state)
    method = named_method(config.distill, config.data.sampling)
    # The split's records are opened without the network where kept predictions will do.
    place = getattr(config.data, split)
    kept = folder / f"predictions_{split}.npz"
    # The counts of training images, which predictions hold, are an unfinished run's data.train.
    harmless = tuple(f"{name}=" for name in (*_HARMLESS, *(("data.train",) if weights.info is not None else ())))
    may_keep = all(setting.startswith(harmless) for setting in settings)
    records, found = None, None
    if may_keep and kept.is_file() and place is not None:
        records = Records(place)
        found = _fitting(read(kept), hashed, records)
        if found is not None:
            found = replace(found, method=method)  # an earlier version may have kept another
    if found is None or (features and found.features is None):
        AcceleratorState._reset_state()  # else it keeps the precision of the run before
        accelerator = make_accelerator(config)
        subject = make_subject(folder, weights, config, accelerator)
        features = features is True or (features == "wanted" and _has_features(subject, config, accelerator))
        if found is None or features:
            say(f"evaluating {given} on data.{split}")
            records = open_split(subject, config, split)
            done = assess(subject, records, config, accelerator, keep="features" if features else "logits")
            assert done.kept is not None
            found = describe(done.kept, records, subject.train_counts, method, hashed)
            if may_keep:
                _keep(found, kept, say)
    return Run(title=folder.name, predictions=found, folder=folder, config=config, records=records, step=weights.step)


def _is_file(given: str) -> bool:
    """Whether predictions are named, and no run."""
    return Path(given).suffix == ".npz"


def _fitting(found: Predictions, weights: str, records: Records) -> Predictions | None:
    """The predictions, if they are of these weights and records, and not rounded to float16, as earlier versions did."""
    whole = found.logits.dtype == np.float32
    return found if whole and (found.weights, found.records) == (weights, records.digest) else None


def _has_features(subject: Subject, config: Config, accelerator: Accelerator) -> bool:
    network = accelerator.unwrap_model(subject.network)
    try:
        require_features(network, config.data.recipe.size, accelerator.device)
    except UnknownFeatures:
        return False
    return True


def _keep(found: Predictions, path: Path, say: Callable[[str], None]) -> None:
    try:
        found.save(path)
    except OSError as error:
        say(f"note: {path} cannot be written ({error.strerror}); the predictions are not kept")
