"""The model card of an export: README.md, for people. Invariant: all it says is also in model.json or config.yaml."""

from dataclasses import asdict
from typing import Any

import numpy as np
import yaml

from models.registry import TIMM_PREFIX, in_torchvision
from train.config import Config
from train.evaluation.metrics import BINS, FEW_BELOW, MANY_ABOVE, shot_groups
from train.networks.hub import card_head, name_in_timm
from train.networks.info import ModelInfo
from train.networks.programs import FILES
from train.objectives.methods import settings_of, words_of
from train.watch.text import markdown_table, percent

_KINDS = {
    "ema": "the moving average of the trained weights",
    "best": "those of the evaluation during training that was chosen as the best (`save.keep_best`)",
}
_GROUPS = {
    "many": f"more than {MANY_ABOVE} training images",
    "medium": f"{FEW_BELOW} to {MANY_ABOVE}",
    "few": f"fewer than {FEW_BELOW}",
}


def card(info: ModelInfo, config: Config) -> str:
    """README.md of an export: `info` as in its model.json, `config` the run's settings."""
    sections = (
        f"{card_head(info)}\n# {info.name}\n\n{_summary(info, words_of(config.distill))}",
        f"## Measured\n\n{_figures(info)}",
        f"## Trained\n\n{_trained(info, config)}",
        f"## To use it\n\n{_use(info)}{_programs(info)}",
        f"## Versions\n\n{_versions(info)}",
    )
    return "\n\n".join(sections) + "\n"


def _summary(info: ModelInfo, words: str) -> str:
    size = info.view_size
    trained = "trained" if size == info.input_size else f"trained on images of {info.input_size} x {info.input_size}"
    return (
        f"`{info.architecture}`, an image classifier of {len(info.class_names):,} classes for images of {size} x {size} "
        f"pixels, {trained} by {words} (`{info.method}`). Weights: `{info.weights_hash}` (SHA-256 over "
        "names, types, shapes and values; caches and students of this network name it)."
    )


def _figures(info: ModelInfo) -> str:
    found = info.evaluation
    groups = shot_groups(np.array(info.train_counts))
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
        f"The largest raw logit decides.{unseen}{_confidence(found)} These are figures of one run: how far they vary with the "
        "seed was not measured. "
        "Accuracy of each class: `evaluation.classes` in model.json."
    )


def _confidence(found: dict[str, Any]) -> str:
    top5 = "" if found["top5"] is None else f"Top-5 accuracy is {percent(found['top5'])}. "
    return (
        f" {top5}By the softmax of the logits the negative log-likelihood is {found['nll']:.3f} nats, and the expected "
        f"calibration error {percent(found['ece'])} ({BINS} bins)."
    )


def _trained(info: ModelInfo, config: Config) -> str:
    counts, facts = info.train_counts, info.training["facts"]
    rows = {"method": f"{info.method}: {words_of(config.distill)}"}
    if kind := _KINDS.get(info.kind):
        rows["weights"] = kind
    if given := _of_the_loss(config, facts["tau"]):
        rows["settings of the loss"] = ", ".join(f"{name} {value}" for name, value in given.items())
    for teacher in info.teachers:
        rows[f"teacher {teacher['source']}"] = f"{teacher['architecture']}, weights `{teacher['weights']}`"
    rows["started from"] = "random weights"
    if init := info.init:
        step = f", after step {init['step']}" if "step" in init else ""
        rows["started from"] = f"{init['source']}{step}, weights `{init['weights']}`"
    rows["images"] = (
        f"{sum(counts):,} of {len(counts):,} classes, from {min(counts):,} to {max(counts):,} each; digest `{facts.get('train')}`"
    )
    rows["pixels"] = f"normalised by mean {info.mean}, standard deviation {info.std}"
    settings = asdict(config)
    shown = {
        "data": {name: settings["data"][name] for name in ("recipe", "seed", "views", "sampling")},
        **{name: settings[name] for name in ("optim", "schedule", "seed", "precision")},
    }
    if len(info.teachers) > 1:
        shown["cache"] = {name: settings["cache"][name] for name in ("average", "weights")}
    table = markdown_table(("", ""), rows.items())
    return f"{table}\n\nAll settings are in config.yaml, among them:\n\n```yaml\n{_yaml(shown)}```"


def _of_the_loss(config: Config, tau: float | None) -> dict[str, Any]:
    """The settings that the loss read, without those that were off. tau: the resolved one."""
    distill = config.distill
    off = {name: not getattr(distill, name) for name in ("label_smoothing", "head_smoothing", "zscore")}
    off |= {"drw_beta": distill.drw_from is None, "kl_of": config.model.experts is None}
    names = [name for name in settings_of(distill) if not off.get(name)]
    if distill.diversity:
        names += ["diversity", "diversity_from"] + ["diversity_eta"] * (distill.diversity_from is not None)
    given = {name: tau if name == "tau" else getattr(distill, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _use(info: ModelInfo) -> str:
    name, architecture, size = info.name, info.architecture, info.view_size
    text = (
        "With the trainer's code (more in its docs/export.md):\n\n"
        "```python\n"
        "from models import load_network\n\n"
        f'network, meta = load_network("{name}")  # on the CPU, in eval mode\n'
        "```\n\n"
        f"It takes float32 [B, 3, {size}, {size}], RGB from 0 to 1, normalised by `mean` and `std` of model.json, and gives raw "
        f"logits [B, {len(info.class_names)}] in the order of class_names.txt. The view of an image is "
        f"{_plain(info.evaluation_recipe)}. As a teacher: `distill.teacher=./{name}`."
    )
    alone = "torch and safetensors" + (" and timm" if architecture.startswith(TIMM_PREFIX) else "")
    text += f" `load.py` beside this card does the same with {alone} alone: `from load import load; network = load()`."
    if name_in_timm(architecture) is not None:
        text += f' timm loads it by `timm.create_model("local-dir:{name}", pretrained=True)`.'
    factory = _factory(architecture, len(info.class_names))
    if factory is None:
        return text
    package, call = factory
    return (
        f"{text}\n\nWithout it:\n\n```python\nimport {package}\nfrom safetensors.torch import load_file\n\n"
        f'network = {call}\nnetwork.load_state_dict(load_file("{name}/model.safetensors"))\n```'
    )


_TAKES = {"uint8": "uint8 RGB, not normalised", "normalised": "float32 RGB, normalised by `mean` and `std`"}


def _programs(info: ModelInfo) -> str:
    if not info.programs:
        return ""
    call = {
        FILES["torch_export"]: "torch.export.load(FILE).module()(images)",
        FILES["onnx"]: 'onnxruntime.InferenceSession(FILE).run(None, {"images": images})',
    }
    rows = [
        (
            f"`{file}`",
            f"`{call[file]}`",
            f"{_TAKES[made['input']]}, [B, 3, {made['shape'][2]}, {made['shape'][3]}]",
            f"{made['largest_difference']:.2g} of {made['largest_logit']:.3g}",
        )
        for file, made in info.programs.items()
    ]
    heads = ("program", "called by", "images", "largest difference, of the largest logit")
    return (
        "\n\nPrograms, which need none of this code, give the same logits for any number B of images; compared with the network "
        f"on the CPU, on random images:\n\n{markdown_table(heads, rows)}"
    )


def _factory(architecture: str, classes: int) -> tuple[str, str] | None:
    """(package, expression) that makes the same network in timm or torchvision; None where neither has it."""
    if architecture.startswith(TIMM_PREFIX):
        return "timm", f'timm.create_model("{architecture.removeprefix(TIMM_PREFIX)}", num_classes={classes})'
    if in_torchvision(architecture):
        return "torchvision", f"torchvision.models.{architecture}(num_classes={classes})"
    return None


def _versions(info: ModelInfo) -> str:
    columns = [*info.training["environments"], info.evaluation["environment"]]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = ["training"] * (len(columns) - 1) + ["evaluation"]
    return markdown_table(("", *heads), [(name, *(column.get(name) for column in columns)) for name in names])


def _plain(recipe: dict[str, Any]) -> str:
    return f"the short side resized to {recipe['short_side']} pixels, then {recipe['size']} x {recipe['size']} from the centre"


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)
