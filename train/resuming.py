"""What a run begins with by `resume=PATH`, and whether it may."""

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import read_object
from pipelines.records.reader import Records
from train.config import Config
from train.networks.weights import weights_hash
from train.run import checkpoint
from train.run.facts import Facts
from train.run.place import expanded, run_folder
from train.settings import load


def resumed_from(config: Config, folder: Path, train: Records) -> dict[str, Any] | None:
    """What the run begins with by `resume=PATH`, or began with, once it has a checkpoint; for model.json.

    UserError, before the run's folder exists, where PATH holds no checkpoint, or one of a network of other classes.
    """
    if checkpoint.has_checkpoint(folder):
        return Facts.of_run(folder).resumed
    if config.resume in ("auto", "never"):
        return None
    found = checkpoint.load_from(config.resume)
    theirs = _classes_of(config.resume)
    if theirs is not None and theirs != list(train.class_names):
        raise UserError(
            f"resume={config.resume} was trained on other classes than those of data.train, or in another order; give the "
            "records of that run, or model.init=RUN in place of resume, which takes all but the classifier of a finished run"
        )
    return {"source": config.resume, "step": found.step, "weights": weights_hash(found.tensors["model"])}


def _classes_of(resume: str) -> list[str] | None:
    """The class names of the run in which this checkpoint lies; None where they are not known."""
    path = expanded(resume)
    run = path.resolve().parent.parent if (path / "state.json").exists() else run_folder(resume)
    if (run / "model.json").exists():
        return read_object(run / "model.json", class_names=list)["class_names"]
    # An unfinished run has them in its records alone, which may lie elsewhere by now, or be others.
    try:
        records = Records(str(load(Config, run / "config.yaml").data.train))
    except UserError:
        return None
    return list(records.class_names) if records.digest == Facts.of_run(run).digests.get("train") else None
