"""Networks that are finished: those of our runs, and files of weights from elsewhere.

Owns what must be known to use one, reading it, and the hash that names its weights; training and asking it are elsewhere.
Invariant: what comes back fits its architecture name for name and shape for shape, and no file is read in a way that can
run code.
"""

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from models.registry import build_model
from pipelines.errors import UserError
from train.checkpoint import load_final

_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights among other things
# What reading bytes that are no file of weights ends in: torch's reader of its old format checks little.
_BROKEN = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error),
    safetensors.SafetensorError,
)
_PREFIXES = ("module.", "_orig_mod.", "model.")  # what wrappers (DDP, torch.compile, Lightning) put before every name


class Pretrained(NamedTuple):
    """A network with its weights, on the CPU, and what one must know to use it."""

    origin: str
    "as the user named it"
    name: str
    network: nn.Module
    architecture: str
    class_names: list[str]
    mean: list[float]
    std: list[float]
    input_size: int
    notes: list[str]
    "one line for each liberty taken in reading"


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of a network's weights: the same wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_run(run: str) -> Pretrained:
    """The network of a finished run: its name or folder, or any folder with model.safetensors and model.json."""
    path = Path(run)
    if path.is_file() and not (path.name == "model.safetensors" and path.with_name("model.json").exists()):
        raise UserError(
            f"distill.teacher={run} is a file: of a file of weights the network and its classes must be named, "
            "distill.teacher_arch=NAME distill.teacher_classes=FILE; of a run give the name or the folder"
        )
    state, meta = load_final(run)
    network = _build(meta["architecture"], len(meta["class_names"]))
    _load(network, state, meta["architecture"], meta["class_names"], run)
    return Pretrained(
        origin=run,
        name=Path(run.removesuffix("/model.safetensors")).name,
        network=network,
        architecture=meta["architecture"],
        class_names=meta["class_names"],
        mean=list(meta["mean"]),
        std=list(meta["std"]),
        input_size=meta["input_size"],
        notes=[],
    )


def read_file(
    file: str, architecture: str, classes: str, mean: list[float], std: list[float], input_size: int
) -> Pretrained:
    """A network named `architecture` (as in model.name) with the weights in `file`: .safetensors, or torch's .pth.

    classes: file with its class names, one per line, in the order of its outputs.
    """
    class_names = _read_class_names(Path(classes))
    try:
        network = _build(architecture, len(class_names))
    except ValueError as error:
        raise UserError(f"distill.teacher_arch: {error}") from error
    state, notes = _plain_state(_read_tensors(Path(file)), file)
    _load(network, state, architecture, class_names, file)
    return Pretrained(
        file, Path(file).stem, network, architecture, class_names, list(mean), list(std), input_size, notes
    )


def _build(architecture: str, classes: int) -> nn.Module:
    """A network to be filled: the random weights it is born with must not move the random numbers of a training."""
    with torch.random.fork_rng(devices=[]):
        return build_model(architecture, classes)


def _read_class_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"distill.teacher_classes={path}: cannot be read ({error}); one class name per line") from error
    if "" in names:
        raise UserError(f"distill.teacher_classes={path}, line {names.index('') + 1}: a class name expected")
    return names


def _read_tensors(path: Path) -> dict[str, Any]:
    """What a file of weights holds, whatever it is nested in."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"distill.teacher={path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"distill.teacher={path} holds more than tensors, and reading that could run code; save the weights alone "
            "where they come from: torch.save(model.state_dict(), FILE)"
        ) from error
    except _BROKEN as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"distill.teacher={path} is damaged, or no file of weights: {first}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"distill.teacher={path} holds a {type(content).__name__}, not tensors by name: save model.state_dict()"
        )
    return content


def _plain_state(content: dict[str, Any], file: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(tensors by their names in the network, notes): taken out of a checkpoint, without the prefix of a wrapper."""
    notes = []
    nested = next((name for name in _NESTED if isinstance(content.get(name), Mapping)), None)
    if nested:
        notes.append(f"{file}: took {nested!r} of {', '.join(sorted(map(str, content)))}")
        content = dict(content[nested])
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"distill.teacher={file}: {name!r} is a {type(value).__name__}, not a tensor, and none of "
                f"{', '.join(_NESTED)} is in the file: save model.state_dict()"
            )
    while prefix := next((p for p in _PREFIXES if content and all(name.startswith(p) for name in content)), None):
        notes.append(f"{file}: every name began with {prefix!r}, which was left out")
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content, notes


def _load(
    network: nn.Module, state: dict[str, torch.Tensor], architecture: str, class_names: list[str], origin: str
) -> None:
    """Load strictly, but for the batch counters of batch norm, which old files lack and which change no output."""
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} there, {list(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = [
        f"{title} {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
        for title, items in (("missing", missing), ("not in the network", unexpected), ("other shape", shapes))
        if items
    ]
    if wrong:
        raise UserError(
            f"distill.teacher={origin} does not fit {architecture} with {len(class_names)} classes: {'; '.join(wrong)}; "
            "for a file of weights check distill.teacher_arch and distill.teacher_classes"
        )
    network.load_state_dict(own | state)
