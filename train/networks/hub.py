"""The files by which other programs know an export: timm's config.json, and the head of a model card on Hugging Face.

Owns their words. Invariant: only a network that timm has under the same names of tensors is said to be timm's.
"""

import json
import math
from typing import Any

import yaml

from models.registry import TIMM_PREFIX, in_torchvision
from train.networks.info import ModelInfo


def name_in_timm(architecture: str) -> str | None:
    """timm's name of the network; None where timm does not have it. Ours with torchvision's names have timm's too."""
    if architecture.startswith(TIMM_PREFIX):
        return architecture.removeprefix(TIMM_PREFIX)
    return architecture if in_torchvision(architecture) else None


def timms_config(name: str, info: ModelInfo) -> bytes:
    """config.json, as `timm.create_model("local-dir:...")` reads it; transforms are those of our evaluation.

    info: of an export, with its evaluation_recipe.
    """
    size, short_side = info.evaluation_recipe["size"], info.evaluation_recipe["short_side"]
    config = {
        "architecture": name,
        "num_classes": len(info.class_names),
        "label_names": info.class_names,
        "pretrained_cfg": {
            "num_classes": len(info.class_names),
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": _crop_of(size, short_side),
            "crop_mode": "center",
            "mean": info.mean,
            "std": info.std,
        },
    }
    return (json.dumps(config, indent=2) + "\n").encode()


def _crop_of(size: int, short_side: int) -> float:
    """The share from which timm, which rounds size / share down, gets this short side."""
    share = size / short_side
    while math.floor(size / share) < short_side:
        share = math.nextafter(share, 0)
    return share


def card_head(info: ModelInfo) -> str:
    """The YAML head of README.md."""
    of_timm = name_in_timm(info.architecture) is not None
    head: dict[str, Any] = {
        "library_name": "timm" if of_timm else "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "long-tailed", *(["timm"] if of_timm else [])],
        "metrics": ["accuracy"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"
