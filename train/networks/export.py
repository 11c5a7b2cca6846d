"""The export folder of a finished network: everything that is needed to use it, in files that other programs read.

    DIR/model.safetensors   the weights, by torchvision's names where the network is torchvision's
    DIR/model.json          architecture, classes, normalisation, evaluation recipe, training and measured figures
    DIR/config.yaml         the run's settings        DIR/class_names.txt   one per line, in the order of the outputs
    DIR/README.md           model card, for people    DIR/load.py           definition and loading in one file
    DIR/config.json         for timm, of networks that timm has: timm.create_model("local-dir:DIR", pretrained=True)
    DIR/model.pt2, model.onnx   programs, where they were asked for

`load_network` in weights.py reads one. Invariant: the folder appears whole or not at all, its figures are those of the
evaluation that made it, and all that the card says is also in model.json or config.yaml.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines import class_names as class_lists
from pipelines.augment import transforms
from pipelines.errors import UserError
from pipelines.files import fsync_folder, read_object, temporary_path, write_durable
from pipelines.records.reader import Records
from train.config import Config
from train.networks.card import card
from train.networks.final import load_final, save_final
from train.networks.hub import name_in_timm, timms_config
from train.networks.info import ModelInfo
from train.networks.programs import Programs, write_programs
from train.networks.standalone import standalone
from train.networks.tensor_files import Tensors
from train.networks.weights import weights_hash
from train.run.environment import describe_environment, precision_of
from train.settings import diff, load


def check_exportable(target: Path, folder: Path, config: Config) -> None:
    """Raise UserError, before anything is computed, if it could not be exported; but for whether `target` can be written."""
    if target.exists() or target.is_symlink():
        raise UserError(f"export={target} exists already; delete it, or give the name of a new folder")
    _, info = load_final(folder)  # says what is to be done where there are no final weights
    for name in ("mean", "std"):
        if getattr(config.data, name) != getattr(info, name):
            raise UserError(
                f"data.{name}={getattr(config.data, name)}: the network was trained with {getattr(info, name)}, which is what an "
                f"export tells its users; leave data.{name} out"
            )


def measured(
    split: str, records: Records, figures: dict[str, Any], folder: Path, config: Config, accelerator: Accelerator
) -> dict[str, Any]:
    """The figures of an evaluation, with everything that they depend on; accuracies from 0 to 1."""
    return {
        "split": split,
        "digest": records.digest,
        **figures,
        "recipe": transforms.identity(config.data.recipe.evaluation()),
        "precision": precision_of(accelerator),
        "other_settings": diff(load(Config, folder / "config.yaml"), config),
        "environment": _published(describe_environment(accelerator)),
    }


def write_export(
    target: Path,
    folder: Path,
    state: Tensors,
    info: ModelInfo,
    evaluation: dict[str, Any],
    programs: Programs,
) -> None:
    """Export the network of the run (or export) in `folder`, with what `measured` gave; `target` must not exist."""
    settings = (folder / "config.yaml").read_bytes()
    told = replace(
        info,
        name=target.name,
        weights_hash=weights_hash(state),
        evaluation_recipe=evaluation["recipe"],
        training=info.training or _training(folder),
        evaluation=evaluation,
    )
    spec, mean, std, size = info.spec, info.mean, info.std, told.view_size
    texts = {
        "config.yaml": settings,
        "class_names.txt": class_lists.text(info.class_names),
        "load.py": standalone(spec, mean, std, size).encode(),
    }
    if name := name_in_timm(spec.architecture):
        texts["config.json"] = timms_config(name, told)
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        told = replace(told, programs=write_programs(temporary, programs, spec, state, mean, std, size))
        texts["README.md"] = card(told, load(Config, folder / "config.yaml")).encode(errors="surrogateescape")
        save_final(temporary, state, told)
        for name, data in texts.items():
            write_durable(temporary / name, data)
        fsync_folder(temporary)
        temporary.rename(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise UserError(f"export={target}: cannot be written ({error.strerror}); nothing of it was kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _published(environment: dict[str, Any]) -> dict[str, Any]:
    """The environment without the name of the machine, which is private."""
    return {name: value for name, value in environment.items() if name != "host"}


def _training(folder: Path) -> dict[str, Any]:
    """The history in run.json: the facts, and the distinct environments of the sessions."""
    record = read_object(folder / "run.json", script=str, facts=dict, sessions=list)
    environments: list[dict[str, Any]] = []
    for session in record["sessions"]:
        if (environment := _published(session["environment"])) not in environments:
            environments.append(environment)
    return {
        "run": folder.resolve().name,
        "script": record["script"],
        "facts": record["facts"],
        "sessions": len(record["sessions"]),
        "environments": environments,
    }
