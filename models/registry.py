"""Names of networks, and the one function that builds a network from its name.

Owns the table of names and the error for an unknown name; does not own any network.
A network is added by writing `def NAME(num_classes: int) -> nn.Module` in this folder and one row in MODELS.
Invariant: every network maps images[B, 3, H, W] to logits[B, num_classes], with freshly drawn weights.
"""

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from models import resnet, resnet_cifar

MODELS: dict[str, Callable[[int], nn.Module]] = {
    # small images (CIFAR)
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet44": resnet_cifar.resnet44,
    "resnet56": resnet_cifar.resnet56,
    # ImageNet-sized images
    "resnet10": resnet.resnet10,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnext50_32x4d": resnet.resnext50_32x4d,
}
TIMM_PREFIX = "timm/"
TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
)  # torchvision has the same networks, with the same parameters


@dataclass(kw_only=True)
class ModelConfig:
    name: str = "resnet32"
    """a network in models/registry.py, or timm/NAME for a network of the timm package"""
    init: str | None = None
    """initial weights: a finished run (name or folder), an export folder or a file (.safetensors, .pth); tensors that fit by name
    and shape are taken, the others are reported; null = random weights, drawn from the seed"""
    sync_bn: bool = False
    "synchronised batch norm: statistics over the images of all GPUs, for when each GPU has few images"


def model_names() -> list[str]:
    """The names of our own networks, in the table's order."""
    return list(MODELS)


def build_model(name: str, num_classes: int) -> nn.Module:
    """A fresh network with `num_classes` outputs; ValueError, worded for the user, on an unknown name."""
    if name.startswith(TIMM_PREFIX):
        return _build_timm(name, num_classes)
    if name not in MODELS:
        allowed = f"allowed: {', '.join(MODELS)}, or timm/NAME for a network of the timm package"
        raise ValueError(f"no model is named '{name}' (model.name); {_nearest(name, model_names())}{allowed}")
    return MODELS[name](num_classes)


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
