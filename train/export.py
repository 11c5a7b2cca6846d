"""The export folder of a finished network: everything one must know to use it, in files that other programs read.

    DIR/model.safetensors   the weights, by torchvision's names where the network is torchvision's
    DIR/model.json          architecture, classes, normalisation, evaluation recipe, training and measured figures
    DIR/config.yaml         the run's settings        DIR/class_names.txt   one a line, in the order of the outputs
    DIR/README.md           model card, for people

Reading one is weights.py's (`load_network`). Invariant: the folder appears whole or not at all, its figures are those of the
evaluation that made it, and what stands in the card stands in model.json or config.yaml too.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from models.registry import TIMM_PREFIX, TORCHVISION
from pipelines.errors import UserError
from pipelines.files import fsync_folder, read_json, temporary_path, write_durable
from pipelines.records import Records
from train.checkpoint import Tensors, load_final, save_final
from train.config import Config, diff, load
from train.environment import describe_environment, precision_of
from train.metrics import FEW_BELOW, MANY_ABOVE, shot_groups
from train.objective import DISTILLING
from train.weights import weights_hash

_METHODS = {
    "ce": "cross-entropy",
    "bsce": "balanced softmax",
    "dive": "DiVE: balanced softmax and the divergence to a teacher's softened, flattened predictions",
    "kd": "cross-entropy and the divergence to a teacher's softened predictions",
}
_KINDS = {
    "ema": "the moving average of the trained weights",
    "best": "those of the evaluation during training that was chosen as the best (`save.keep_best`)",
}
_GROUPS = {
    "many": f"more than {MANY_ABOVE} training images",
    "medium": f"{FEW_BELOW} to {MANY_ABOVE}",
    "few": f"fewer than {FEW_BELOW}",
}


def check_exportable(target: Path, folder: Path, config: Config) -> None:
    """Refuse, before anything is computed, what could not be exported in the end; makes the folders above `target`."""
    if target.exists() or target.is_symlink():
        raise UserError(f"export={target} exists already; delete it, or give the name of a new folder")
    _, meta = load_final(folder)  # says what is to be done where there are no final weights
    for name in ("mean", "std"):
        if getattr(config.data, name) != meta[name]:
            raise UserError(
                f"data.{name}={getattr(config.data, name)}: the network was trained with {meta[name]}, which is what an export "
                f"tells its users; leave data.{name} out"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"export={target}: cannot make {target.parent} ({error.strerror})") from error


def measured(
    split: str, records: Records, figures: dict[str, Any], folder: Path, config: Config, accelerator: Accelerator
) -> dict[str, Any]:
    """An evaluation's figures with all that they depend on; accuracies from 0 to 1."""
    return {
        "split": split,
        "digest": records.digest,
        **figures,
        "recipe": config.data.recipe.evaluation().identity(),
        "precision": precision_of(accelerator),
        "other_settings": diff(load(Config, folder / "config.yaml"), config),
        "environment": _published(describe_environment(accelerator)),
    }


def write_export(target: Path, folder: Path, state: Tensors, meta: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Export the network of the run (or export) in `folder`, with what `measured` gave; `target` must not exist."""
    settings = (folder / "config.yaml").read_bytes()
    told = meta | {
        "name": target.name,
        "weights_hash": weights_hash(state),
        "evaluation_recipe": evaluation["recipe"],
        "training": meta.get("training") or _training(folder),
        "evaluation": evaluation,
    }
    texts = {
        "config.yaml": settings,
        "class_names.txt": "".join(f"{name}\n" for name in meta["class_names"]).encode(errors="surrogateescape"),
        "README.md": card(told, load(Config, folder / "config.yaml")).encode(errors="surrogateescape"),
    }
    temporary = temporary_path(target)
    try:
        temporary.mkdir()
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
    """Without the machine's name, which is nobody else's business."""
    return {name: value for name, value in environment.items() if name != "host"}


def _training(folder: Path) -> dict[str, Any]:
    """What run.json knows: what was found out, and where the sessions took place, equal ones once."""
    record = read_json(folder / "run.json")
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


# ---- the model card ----


def card(meta: dict[str, Any], config: Config) -> str:
    """README.md of an export: `meta` as in its model.json, `config` the run's settings."""
    sections = (
        f"# {meta['name']}\n\n{_summary(meta)}",
        f"## Measured\n\n{_figures(meta)}",
        f"## Trained\n\n{_trained(meta, config)}",
        f"## To use it\n\n{_use(meta)}",
        f"## Versions\n\n{_versions(meta)}",
    )
    return "\n\n".join(sections) + "\n"


def _summary(meta: dict[str, Any]) -> str:
    size = meta["input_size"]
    return (
        f"`{meta['architecture']}`, an image classifier of {len(meta['class_names']):,} classes for images of {size} x {size} "
        f"pixels, trained by {_METHODS[meta['method']]} (`{meta['method']}`). Weights: `{meta['weights_hash']}` (SHA-256 over "
        "names, types, shapes and values; caches and students of this network name it)."
    )


def _figures(meta: dict[str, Any]) -> str:
    found = meta["evaluation"]
    groups = shot_groups(meta["train_counts"])
    rows = [("all", _percent(found["top1"]), f"{found['samples']:,} images, each counted once")]
    for group, words in _GROUPS.items():
        rows.append((group, _percent(found[group]), f"mean over the {int(groups[group].sum()):,} classes with {words}"))
    unseen = (
        f" {n} classes have no images here and are in no mean." if (n := found["classes_without_test_images"]) else ""
    )
    how = {
        "records": f"{found['split']} split, digest `{found['digest']}`",
        "view": _plain(found["recipe"]),
        "arithmetic": f"{found['precision']}, backend {found['backend']}, on {found['environment']['device']}",
        **({"other settings than the run's": "; ".join(found["other_settings"])} if found["other_settings"] else {}),
    }
    return (
        f"{_table(('classes', 'top-1 accuracy', 'of'), rows)}\n\n{_table(('', ''), how.items())}\n\n"
        f"The largest raw logit decides.{unseen} These are figures of one run: how far they vary with the seed was not measured. "
        "Accuracy of each class: `evaluation.classes` in model.json."
    )


def _trained(meta: dict[str, Any], config: Config) -> str:
    counts, facts, method = meta["train_counts"], meta["training"]["facts"], meta["method"]
    rows = {"method": f"{method}: {_METHODS[method]}"}
    if kind := _KINDS.get(meta["kind"]):
        rows["weights"] = kind
    if method in DISTILLING:
        rows["temperature, power, weight"] = (
            f"tau {facts['tau']:g}, p {config.distill.p:g}, alpha {config.distill.alpha:g}"
        )
    for teacher in meta.get("teachers", []):
        rows[f"teacher {teacher['source']}"] = f"{teacher['architecture']}, weights `{teacher['weights']}`"
    init = meta.get("init")
    rows["started from"] = f"{init['source']}, weights `{init['weights']}`" if init else "random weights"
    rows["images"] = (
        f"{sum(counts):,} of {len(counts):,} classes, from {min(counts):,} to {max(counts):,} each; digest `{facts.get('train')}`"
    )
    rows["pixels"] = f"normalised by mean {meta['mean']}, standard deviation {meta['std']}"
    settings = asdict(config)
    shown = {
        "data": {name: settings["data"][name] for name in ("recipe", "seed", "views", "sampling")},
        **{name: settings[name] for name in ("optim", "schedule", "seed", "precision")},
    }
    return f"{_table(('', ''), rows.items())}\n\nAll settings are in config.yaml, among them:\n\n```yaml\n{_yaml(shown)}```"


def _use(meta: dict[str, Any]) -> str:
    name, architecture, size = meta["name"], meta["architecture"], meta["input_size"]
    text = (
        "With the trainer's code (more in its docs/export.md):\n\n"
        "```python\n"
        "from train.weights import load_network\n\n"
        f'network, meta = load_network("{name}")  # on the CPU, in eval mode\n'
        "```\n\n"
        f"It takes float32 [B, 3, {size}, {size}], RGB from 0 to 1, normalised by `mean` and `std` of model.json, and gives raw "
        f"logits [B, {len(meta['class_names'])}] in the order of class_names.txt. The view of an image is "
        f"{_plain(meta['evaluation_recipe'])}. As a teacher: `distill.teacher=./{name}`."
    )
    factory = _factory(architecture, len(meta["class_names"]))
    if factory is None:
        return text
    package, call = factory
    return (
        f"{text}\n\nWithout it:\n\n```python\nimport {package}\nfrom safetensors.torch import load_file\n\n"
        f'network = {call}\nnetwork.load_state_dict(load_file("{name}/model.safetensors"))\n```'
    )


def _factory(architecture: str, classes: int) -> tuple[str, str] | None:
    """(package, expression) of the network of the same name elsewhere."""
    if architecture.startswith(TIMM_PREFIX):
        return "timm", f'timm.create_model("{architecture.removeprefix(TIMM_PREFIX)}", num_classes={classes})'
    if architecture in TORCHVISION:
        return "torchvision", f"torchvision.models.{architecture}(num_classes={classes})"
    return None


def _versions(meta: dict[str, Any]) -> str:
    columns = [*meta["training"]["environments"], meta["evaluation"]["environment"]]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = ["training"] * (len(columns) - 1) + ["evaluation"]
    return _table(("", *heads), [(name, *(column.get(name) for column in columns)) for name in names])


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _plain(recipe: dict[str, Any]) -> str:
    return f"the short side resized to {recipe['short_side']} pixels, then {recipe['size']} x {recipe['size']} from the centre"


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)
