"""The model card of an export: README.md, for people. Invariant: what stands in it stands in model.json or config.yaml too."""

from dataclasses import asdict
from typing import Any

import yaml

from models.registry import TIMM_PREFIX, TORCHVISION
from train.config import Config
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE, shot_groups
from train.objectives.objective import DISTILLING
from train.watch.text import markdown_table, percent

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
    rows = [("all", percent(found["top1"]), f"{found['samples']:,} images, each counted once")]
    for group, words in _GROUPS.items():
        rows.append((group, percent(found[group]), f"mean over the {int(groups[group].sum()):,} classes with {words}"))
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
        f"{markdown_table(('classes', 'top-1 accuracy', 'of'), rows)}\n\n{markdown_table(('', ''), how.items())}\n\n"
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
    table = markdown_table(("", ""), rows.items())
    return f"{table}\n\nAll settings are in config.yaml, among them:\n\n```yaml\n{_yaml(shown)}```"


def _use(meta: dict[str, Any]) -> str:
    name, architecture, size = meta["name"], meta["architecture"], meta["input_size"]
    text = (
        "With the trainer's code (more in its docs/export.md):\n\n"
        "```python\n"
        "from train.networks.weights import load_network\n\n"
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
    return markdown_table(("", *heads), [(name, *(column.get(name) for column in columns)) for name in names])


def _plain(recipe: dict[str, Any]) -> str:
    return f"the short side resized to {recipe['short_side']} pixels, then {recipe['size']} x {recipe['size']} from the centre"


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)
