"""Names of networks, and everything that determines a network except its weights (`ModelSpec`).

Owns the table of names and the error for an unknown name; does not own any network.
A network is added by writing `def NAME(num_classes: int) -> nn.Module` in this folder and one row in MODELS.
Invariant: every network maps images[B, 3, H, W] to logits[B, num_classes] (in training possibly to more: outputs.py), and its
weights are freshly drawn.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from models import resnet, resnet_cifar


class Architecture(NamedTuple):
    """One row of the table."""

    build: Callable[[int], nn.Module]
    "builds the network, given the number of classes"
    torchvision: bool = False
    "whether torchvision has the same network, weight for weight"


MODELS: dict[str, Architecture] = {
    # small images (CIFAR)
    "resnet20": Architecture(resnet_cifar.resnet20),
    "resnet32": Architecture(resnet_cifar.resnet32),
    "resnet44": Architecture(resnet_cifar.resnet44),
    "resnet56": Architecture(resnet_cifar.resnet56),
    # ImageNet-sized images
    "resnet10": Architecture(resnet.resnet10),
    "resnet18": Architecture(resnet.resnet18, torchvision=True),
    "resnet34": Architecture(resnet.resnet34, torchvision=True),
    "resnet50": Architecture(resnet.resnet50, torchvision=True),
    "resnet101": Architecture(resnet.resnet101, torchvision=True),
    "resnext50_32x4d": Architecture(resnet.resnext50_32x4d, torchvision=True),
}
TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class ModelSpec:
    """What determines a network except its weights. Settings, model.json and a cache's identity name a network by it."""

    name: str
    "a name in MODELS, or timm/NAME"
    num_classes: int

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "ModelSpec":
        """The spec of the network that a model.json describes; KeyError or TypeError where one is missing or of another type."""
        name, classes = meta["architecture"], meta["class_names"]
        if not isinstance(name, str) or not isinstance(classes, list):
            raise TypeError("architecture must be text and class_names a list")
        return cls(name, len(classes))

    def __str__(self) -> str:
        return f"{self.name} with {self.num_classes} classes"

    def build(self) -> nn.Module:
        """A freshly initialised network; ValueError, worded for the user, on an unknown name."""
        if self.name.startswith(TIMM_PREFIX):
            return _build_timm(self.name, self.num_classes)
        if self.name not in MODELS:
            allowed = f"allowed: {', '.join(MODELS)}, or timm/NAME for a network of the timm package"
            near = _nearest(self.name, model_names())
            raise ValueError(f"no model is named '{self.name}' (model.name); {near}{allowed}")
        return MODELS[self.name].build(self.num_classes)


@dataclass(kw_only=True)
class ModelConfig:
    name: str = "resnet32"
    """a network in models/registry.py, or timm/NAME for a network of the timm package"""
    init: str | None = field(default=None, metadata={"path": True})
    """initial weights: a finished run (name or folder), an export folder or a file (.safetensors, .pth); tensors that fit by name
    and shape are taken, the others are reported; null = random weights, drawn from the seed"""
    sync_bn: bool = False
    "synchronised batch norm: statistics over the images of all GPUs, for when each GPU has few images"

    def spec(self, num_classes: int) -> ModelSpec:
        """The spec of the network that these settings ask for."""
        return ModelSpec(self.name, num_classes)


def model_names() -> list[str]:
    """The names of our own networks, in the table's order."""
    return list(MODELS)


def in_torchvision(name: str) -> bool:
    """Whether torchvision has the network of this name, weight for weight."""
    return name in MODELS and MODELS[name].torchvision


def build_model(name: str, num_classes: int) -> nn.Module:
    """Shorthand for `ModelSpec.build`."""
    return ModelSpec(name, num_classes).build()


def _build_timm(name: str, num_classes: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise  # timm is installed, but one of its own dependencies is not
        raise ValueError(f"model '{name}' needs the timm package; type: pip install timm") from error
    wanted = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(wanted):
        known = timm.list_models()
        raise ValueError(
            f"timm {timm.__version__} has no model named '{wanted}' (model.name); "
            f"{_nearest(wanted, known, TIMM_PREFIX)}allowed: the {len(known)} names of timm.list_models()"
        )
    return timm.create_model(wanted, pretrained=False, num_classes=num_classes)


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """`nearest: a, b; `, or an empty string when no known name is close; an abbreviated name finds its completions."""
    completions = [candidate for candidate in known if candidate.startswith(name)]
    close = completions[:3] or difflib.get_close_matches(name, known, n=3)
    return f"nearest: {', '.join(prefix + match for match in close)}; " if close else ""
