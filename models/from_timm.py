"""The timm package: imported only where a network of it is asked for, and the weights that it publishes.

Invariant: where timm cannot be used, the ValueError is one line that says what to type.
"""

import importlib
from typing import Any, NamedTuple

import torch

INSTALL = "bash tools/setup.sh timm"


class Published(NamedTuple):
    """Weights that timm publishes, on the CPU; mean, std and side of the images that they were trained on."""

    name: str
    state: dict[str, torch.Tensor]
    mean: list[float]
    std: list[float]
    input_size: int


def import_timm(wanted: str) -> Any:
    """The package. wanted: what needs it, for messages."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise ValueError(f"{wanted} needs the timm package; type: {INSTALL}") from error
        raise ValueError(f"{wanted} needs timm, which needs {error.name}, which is missing; type: {INSTALL}") from error
    except (ImportError, OSError, RuntimeError) as error:  # of torchvision, where it was built for another torch
        raise ValueError(
            f"{wanted} needs timm, which does not import ({_first_line(error)}): torchvision was not built for torch "
            f"{torch.__version__}; type: {INSTALL}"
        ) from error


def published(name: str) -> Published:
    """The weights of timm's network NAME or NAME.TAG, downloaded unless they are in the cache of huggingface_hub."""
    timm = import_timm("the download")
    if not _has_weights(timm, name):
        raise ValueError(
            f"timm {timm.__version__} names no weights for {name}; give a file of weights, model.init=FILE"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: {_first_line(error)[:200]}); where the network "
            "allows it fetch them once, or give a file of weights, model.init=FILE"
        ) from error
    made = network.pretrained_cfg
    tag = f"{made['architecture']}.{made['tag']}" if made.get("tag") else made["architecture"]
    return Published(tag, network.state_dict(), list(made["mean"]), list(made["std"]), made["input_size"][-1])


def _first_line(error: Exception) -> str:
    """Its message, or its kind where that is empty."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _has_weights(timm: Any, name: str) -> bool:
    if not timm.is_model(name):
        return False
    try:
        return bool(timm.get_pretrained_cfg(name, allow_unregistered=False).has_weights)
    except RuntimeError:  # it knows the network, but not the tag
        return False
