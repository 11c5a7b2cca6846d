"""Names of networks, and everything that determines a network except its weights (`ModelSpec`).

Owns the table of names and the error for an unknown name; does not own any network.
A network is added by writing `def NAME(num_classes: int) -> nn.Module` in this folder and one row in MODELS; one that takes
a `Form` too (experts.py) has cosine heads and experts.
Invariant: every network maps images[B, 3, H, W] to logits[B, num_classes] (in training possibly to more: outputs.py), and its
weights are freshly drawn.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import nn

from models import resnet, resnet_cifar
from models.experts import Form
from models.from_timm import import_timm
from models.heads import CosineHead, LinearHead


class Architecture(NamedTuple):
    """One row of the table."""

    build: Callable[..., nn.Module]
    "builds the network, given the number of classes, and, with `forms`, its `Form`"
    torchvision: bool = False
    "whether torchvision has the same network, weight for weight"
    forms: bool = False
    "whether it has more forms than the plain one: cosine heads, experts"


MODELS: dict[str, Architecture] = {
    # small images (CIFAR)
    "resnet8": Architecture(resnet_cifar.resnet8, forms=True),
    "resnet14": Architecture(resnet_cifar.resnet14, forms=True),
    "resnet20": Architecture(resnet_cifar.resnet20, forms=True),
    "resnet32": Architecture(resnet_cifar.resnet32, forms=True),
    "resnet44": Architecture(resnet_cifar.resnet44, forms=True),
    "resnet56": Architecture(resnet_cifar.resnet56, forms=True),
    "resnet110": Architecture(resnet_cifar.resnet110, forms=True),
    # ImageNet-sized images
    "resnet10": Architecture(resnet.resnet10, forms=True),
    "resnet18": Architecture(resnet.resnet18, torchvision=True, forms=True),
    "resnet34": Architecture(resnet.resnet34, torchvision=True, forms=True),
    "resnet50": Architecture(resnet.resnet50, torchvision=True, forms=True),
    "resnet101": Architecture(resnet.resnet101, torchvision=True, forms=True),
    "resnext50_32x4d": Architecture(resnet.resnext50_32x4d, torchvision=True, forms=True),
}
TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class ModelSpec:
    """What determines a network except its weights. Settings, model.json and a cache's identity name a network by it.

    ValueError, worded for the user, where an entry is out of its range.
    """

    name: str
    "a name in MODELS, or timm/NAME"
    num_classes: int
    head: str = "linear"
    "linear or cosine"
    head_scale: float = 30
    "of a cosine head; without meaning for others"
    experts: int | None = None
    "None: no experts, the plain network"
    expert_width: float = 0.75
    "share of the plain width of the experts' stages; without meaning where there are none"
    router: int | None = None
    "how many of the largest logits the routers between the experts see; None: no routers, all experts answer"

    def __post_init__(self) -> None:
        _check_form(self, "")
        _check_router(self, self.num_classes, "")

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "ModelSpec":
        """The spec of the network that a model.json describes; KeyError, TypeError or ValueError where it is damaged."""
        architecture, classes = meta["architecture"], meta["class_names"]
        if not isinstance(architecture, str) or not isinstance(classes, list):
            raise TypeError("architecture must be text and class_names a list")
        return cls.parse(architecture, len(classes))

    @classmethod
    def parse(cls, architecture: str, num_classes: int) -> "ModelSpec":
        """The inverse of `architecture`; entries that are left out have their defaults. ValueError, worded for the user."""
        name, _, rest = architecture.partition(" ")
        entries: dict[str, Any] = {}
        for entry in rest.split():
            key, _, text = entry.partition("=")
            if key not in _ENTRIES or key in entries:
                raise ValueError(
                    f"{entry!r} in {architecture!r} is not understood; a name may be followed by "
                    f"{', '.join(f'{known}=...' for known in _ENTRIES)}, once each"
                )
            try:
                entries[key] = _ENTRIES[key](text)
            except ValueError:
                raise ValueError(f"{entry!r} in {architecture!r}: {text!r} is no {_ENTRIES[key].__name__}") from None
        return cls(name, num_classes, **entries)

    @property
    def architecture(self) -> str:
        """All but the classes, as text: the name, and of another form than the plain one its entries, as in the settings.

        For example `resnet32 head=cosine head_scale=30 experts=3 expert_width=0.75`. It holds nothing without effect, so that
        equal texts are equal networks.
        """
        parts = [self.name]
        if self.head != "linear":
            parts += [f"head={self.head}", f"head_scale={_number(self.head_scale)}"]
        if self.experts is not None:
            parts += [f"experts={self.experts}", f"expert_width={_number(self.expert_width)}"]
        if self.router is not None:
            parts.append(f"router={self.router}")
        return " ".join(parts)

    def __str__(self) -> str:
        parts = []
        if self.head != "linear":
            parts.append(f"a {self.head} head of scale {_number(self.head_scale)}")
        if self.experts is not None:
            plural = "s" if self.experts > 1 else ""
            parts.append(f"{self.experts} expert{plural} of {_number(self.expert_width)} of the plain width")
        if self.router is not None:
            parts.append(f"routers that see {self.router} logits")
        return f"{self.name} with {', '.join([*parts, f'{self.num_classes} classes'])}"

    def build(self) -> nn.Module:
        """A freshly initialised network; ValueError, worded for the user, on an unknown name or a form that it does not have."""
        of_timm = self.name.startswith(TIMM_PREFIX)
        if not of_timm and self.name not in MODELS:
            allowed = f"allowed: {', '.join(MODELS)}, or timm/NAME for a network of the timm package"
            near = _nearest(self.name, model_names())
            raise ValueError(f"no model is named '{self.name}' (model.name); {near}{allowed}")
        if not of_timm and MODELS[self.name].forms:
            return MODELS[self.name].build(self.num_classes, self._form())
        if self.architecture != self.name:
            forms = ", ".join(name for name, row in MODELS.items() if row.forms)
            raise ValueError(
                f"{self.name} has a linear head and no experts, not {self.architecture.partition(' ')[2]}; networks with other "
                f"heads and experts: {forms}"
            )
        return _build_timm(self.name, self.num_classes) if of_timm else MODELS[self.name].build(self.num_classes)

    def _form(self) -> Form:
        head = LinearHead if self.head == "linear" else partial(CosineHead, scale=self.head_scale)
        return Form(head, self.experts, self.expert_width, self.router)


_ENTRIES: dict[str, Callable[[str], Any]] = {
    **{"head": str, "head_scale": float},
    **{"experts": int, "expert_width": float, "router": int},
}
HEADS = ("linear", "cosine")
MOST_EXPERTS, MOST_SCALE = (
    64,
    1000,
)  # above the largest in use, 6 and 30, and below what exhausts the memory, or float16


@dataclass(kw_only=True)
class ModelConfig:
    name: str = "resnet32"
    """a network in models/registry.py, or timm/NAME for a network of the timm package"""
    init: str | None = field(default=None, metadata={"path": True})
    """initial weights: a finished run (name or folder), an export folder or a file (.safetensors, .pth); timm = those that timm
    publishes for model.name, downloaded; tensors that fit by name and shape are taken, the others are reported; null = random
    weights, drawn from the seed"""
    head: Literal["linear", "cosine"] = "linear"
    "the last layer; cosine: scale times the cosine between features and each class's weights, without a bias (not for timm)"
    head_scale: float = 30
    "scale of a cosine head: its logits lie between minus this and this"
    experts: int | None = None
    """number of experts, which share stem and first stages and have the rest for themselves; the answer is the mean of their
    logits (not for timm); null = none, the plain network"""
    expert_width: float = 0.75
    "width of the experts' own stages, as a share of the plain network's, 0.5 to 1"
    router: int | None = None
    """routers, which decide for each image how many of the experts answer: the number of largest logits that they see (CIFAR 30,
    large data sets 50); only for train/router.py, which trains them; null = none, all experts answer"""
    sync_bn: bool = False
    """synchronised batch norm: statistics over the images of all GPUs, for when each GPU has few images; slower, as torch waits
    for the GPU at every norm"""

    def __post_init__(self) -> None:
        _check_form(self, "model.")
        _check_router(self, None, "model.")

    @property
    def logit_scale(self) -> float:
        """By how much the logits are larger than cosines; 1 for logits that are none."""
        return self.head_scale if self.head == "cosine" else 1.0

    def spec(self, num_classes: int) -> ModelSpec:
        """The spec of the network that these settings ask for; ValueError, worded for the user, for too few classes."""
        _check_router(self, num_classes, "model.")
        return ModelSpec(
            self.name, num_classes, self.head, self.head_scale, self.experts, self.expert_width, self.router
        )


def model_names() -> list[str]:
    """The names of our own networks, in the table's order."""
    return list(MODELS)


def in_torchvision(name: str) -> bool:
    """Whether torchvision has the network of this name, weight for weight."""
    return name in MODELS and MODELS[name].torchvision


def build_model(name: str, num_classes: int) -> nn.Module:
    """Shorthand for `ModelSpec.build`."""
    return ModelSpec(name, num_classes).build()


def _check_form(given: "ModelSpec | ModelConfig", prefix: str) -> None:
    """ValueError for an entry out of its range; `prefix` is put before its name."""
    if given.head not in HEADS:
        raise ValueError(f"{prefix}head={given.head}: must be {' or '.join(HEADS)}")
    if not 0 < given.head_scale <= MOST_SCALE:
        raise ValueError(f"{prefix}head_scale={given.head_scale}: must be above 0, at most {MOST_SCALE}")
    if given.experts is not None and not 1 <= given.experts <= MOST_EXPERTS:
        raise ValueError(
            f"{prefix}experts={given.experts}: must be from 1 to {MOST_EXPERTS}, or null for the plain network"
        )
    if not 0.5 <= given.expert_width <= 1:  # narrower, a CIFAR network's shortcut would have to drop channels
        raise ValueError(f"{prefix}expert_width={given.expert_width}: must be from 0.5 to 1")


def _check_router(given: "ModelSpec | ModelConfig", num_classes: int | None, prefix: str) -> None:
    """ValueError for routers without experts, or that would see none or more logits than there are; None: not known yet."""
    if given.router is None:
        return
    if given.experts is None or given.experts < 2:
        raise ValueError(
            f"{prefix}router={given.router}: a router decides between experts; give {prefix}experts=2 or more, or "
            f"{prefix}router=null"
        )
    if given.router < 1 or (num_classes is not None and given.router > num_classes):
        most = "the number of classes" if num_classes is None else f"{num_classes}, the number of classes"
        raise ValueError(f"{prefix}router={given.router}: must be from 1 to {most}, or null for no routers")


def _number(value: float) -> str:
    """The shortest text that reads back as this number: 30, 0.75."""
    return repr(float(value)).removesuffix(".0")


def _build_timm(name: str, num_classes: int) -> nn.Module:
    timm = import_timm(f"model '{name}'")
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
