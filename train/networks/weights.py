"""Finished networks: those of our runs and exports, and files of weights from elsewhere.

Owns the description of a finished network, reading it, and the hash that names its weights; does not train or run it.
Invariant: a network is returned only if the weights fit it name for name and shape for shape, and no file is read in a way
that can run code.
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

from models import ModelSpec
from models.tensor_files import has_plain_values, kind_of
from pipelines import class_names as class_lists
from pipelines.errors import UserError, first_line
from train.networks.final import load_final
from train.networks.info import ModelInfo
from train.networks.tensor_files import check_kinds
from train.watch.text import short_list

_NESTED = ("state_dict", "model_state_dict", "model")  # the keys under which training scripts store weights
# The errors of reading bytes that are no file of weights: torch's reader of its old format checks little.
_BROKEN = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error),
    safetensors.SafetensorError,
)
_OTHER_FILES = (  # what often lies where weights are expected: the first bytes, what the file is and what to do
    (b"version https://git-lfs", "a git-LFS pointer, not the weights themselves; type: git lfs pull"),
    (b"<", "an HTML or XML page: the download failed; download the file again"),
    (b"{", "text in JSON, perhaps a server's error message; download the file again"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"\x93NUMPY", "a numpy array; save the weights with torch.save or safetensors"),
    (b"\x89HDF", "an HDF5 file (Keras?); save the weights with torch.save or safetensors"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.")  # which wrappers (DDP, torch.compile, Lightning) put before every name
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")  # of files of weights, whether they exist or not
_TEACHER = "distill.teacher"  # the setting that names what is read, for messages


class Pretrained(NamedTuple):
    """A network with its weights, on the CPU, and what is needed to use it."""

    origin: str
    "the name that the user gave"
    name: str
    network: nn.Module
    spec: ModelSpec
    class_names: list[str]
    mean: list[float]
    std: list[float]
    input_size: int
    notes: list[str]
    "one line for each liberty taken in reading"
    kind: str = "raw"
    "ema: a moving average of the trained weights; best: of the best evaluation"


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of a network's weights: the same wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Stored(NamedTuple):
    """Tensors by their names in a network, on the CPU."""

    state: dict[str, torch.Tensor]
    class_names: list[str] | None
    "in the order of its outputs; None for a file of weights, which does not name them"
    notes: list[str]
    "one line for each liberty taken in reading"
    head: str | None = None
    "of its last layer, as in ModelSpec; None for a file of weights"


def read_run(run: str) -> Pretrained:
    """The teacher that is a finished run or an export: its name or folder, with model.safetensors and model.json."""
    if _is_file_of_weights(Path(run)):
        raise UserError(
            f"{_TEACHER}={run} is a file: of a file of weights the network and its classes must be named, "
            "distill.teacher_arch=NAME distill.teacher_classes=FILE; of a run give the name or the folder"
        )
    network, info = _finished(run, f"{_TEACHER}={run}")
    return Pretrained(
        origin=run,
        name=Path(run.removesuffix("/model.safetensors")).name,
        network=network,
        spec=info.spec,
        class_names=info.class_names,
        mean=list(info.mean),
        std=list(info.std),
        input_size=info.input_size,
        notes=[],
        kind=info.kind,
    )


def read_file(
    file: str, architecture: str, classes: str, mean: list[float], std: list[float], input_size: int
) -> Pretrained:
    """A teacher of this architecture (ModelSpec.parse) with the weights in `file`: .safetensors, or torch's .pth.

    classes: file with its class names, one per line, in the order of its outputs.
    """
    class_names = _read_class_names(Path(classes))
    try:
        spec = ModelSpec.parse(architecture, len(class_names))
    except ValueError as error:
        raise UserError(f"distill.teacher_arch: {error}") from error
    network = build(spec, "distill.teacher_arch")
    stored = _read_file(file, _TEACHER)
    hint = "; check distill.teacher_arch and distill.teacher_classes"
    fill(network, stored.state, spec, f"{_TEACHER}={file}", hint)
    return Pretrained(
        file, Path(file).stem, network, spec, class_names, list(mean), list(std), input_size, stored.notes
    )


def read_state(source: str, key: str) -> Stored:
    """The tensors of a finished run, an export or a file of weights, not yet matched to a network.

    key: the setting that names them, for messages.
    """
    if _is_file_of_weights(Path(source)):
        return _read_file(source, key)
    state, info = _final(source, f"{key}={source}")
    return Stored(state, info.class_names, [], info.spec.head)


def read_finished(source: str, key: str) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """(weights on the CPU, what is known of them) of a finished run or an export; UserError for a bare file of weights."""
    if _is_file_of_weights(Path(source)):
        raise UserError(
            f"{key}={source} is a file, of which nothing but its weights is known; give the name or the folder of a "
            "finished run, or an export"
        )
    return _final(source, f"{key}={source}")


def build(spec: ModelSpec, key: str) -> nn.Module:
    """A network to be filled; drawing its random weights leaves the random numbers of the training unchanged."""
    try:
        with torch.random.fork_rng(devices=[]):
            return spec.build()
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def fill(network: nn.Module, state: Mapping[str, torch.Tensor], spec: ModelSpec, origin: str, hint: str = "") -> None:
    """Load strictly, except for the batch counters of batch norm, which old files lack and which change no output."""
    own = network.state_dict()
    wrong = [f"{kind} {short_list(names, 3)}" for kind, names in misfits(state, own).items() if names]
    if wrong:
        raise UserError(f"{origin} does not fit {spec}: {'; '.join(wrong)}{hint}")
    check_kinds(state, own, origin)
    require_finite({name: state[name] for name in own if name in state}, origin)
    network.load_state_dict(own | dict(state))


def require_finite(state: Mapping[str, torch.Tensor], origin: str) -> None:
    """UserError naming the tensors that hold NaN or infinity, or a negative variance of batch norm: every logit would be NaN."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    bad = [name for name, tensor in floats.items() if not bool(torch.isfinite(tensor).all())]
    below = [name for name, tensor in floats.items() if name.endswith("running_var") and bool((tensor < 0).any())]
    wrong = [("NaN or infinity", bad), ("a negative variance", below)]
    if found := [f"{what} in {short_list(names, 3)}" for what, names in wrong if names]:
        raise UserError(f"{origin} holds {'; '.join(found)}: a training that failed wrote it; give other weights")


def misfits(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """{kind of misfit: names of the tensors} between `state` and a network whose tensors are `own`."""
    both = [name for name in own if name in state]
    return {
        "missing": [name for name in own if name not in state and not is_counter(name)],
        "not in the network": [name for name in state if name not in own],
        "other shape": [
            f"{name} {list(state[name].shape)} there, {list(own[name].shape)} here"
            for name in both
            if state[name].shape != own[name].shape
        ],
    }


def is_counter(name: str) -> bool:
    """Whether the tensor is batch norm's count of batches, on which no output depends here."""
    return name.endswith("num_batches_tracked")


def _is_file_of_weights(path: Path) -> bool:
    """Whether it is (or, by its name, would be) a bare file of weights; model.safetensors beside a model.json means the run."""
    described = path.name == "model.safetensors" and path.with_name("model.json").exists()
    return not described and (path.is_file() or (path.suffix in _SUFFIXES and not path.is_dir()))


def _final(run: str | Path, origin: str) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    try:
        return load_final(run)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def _finished(run: str | Path, origin: str) -> tuple[nn.Module, ModelInfo]:
    state, info = _final(run, origin)
    network = build(info.spec, origin)
    fill(network, state, info.spec, origin)
    return network.eval(), info


def _read_class_names(path: Path) -> list[str]:
    origin = f"distill.teacher_classes={path}"
    try:
        return class_lists.parse(path.read_bytes(), origin)
    except OSError as error:
        raise UserError(f"{origin}: cannot be read ({error}); one class name per line") from error


def _read_file(file: str, key: str) -> Stored:
    state, notes = _plain_state(_read_tensors(Path(file), key), file, key)
    return Stored(state, None, notes)


def _read_tensors(path: Path, key: str) -> dict[str, Any]:
    """The contents of a file of weights, still nested."""
    _refuse_other_files(path, key)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{key}={path} holds more than tensors, and reading that could run code; save the weights alone "
            "where they come from: torch.save(model.state_dict(), FILE)"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{key}={path} is damaged, or no file of weights: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}={path} holds a {type(content).__name__}, not tensors by name: save model.state_dict()")
    return content


def _refuse_other_files(path: Path, key: str) -> None:
    """UserError for a file that is evidently something else: the errors of the two readers would mislead."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{key}={path} is no regular file; give a file of weights, .safetensors or .pth")
        with open(path, "rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"{key}={path}: there is no such file; give a file of weights, .safetensors or .pth") from error
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror})") from error
    if not start:
        raise UserError(f"{key}={path} is empty; copy or download it again")
    is_safetensors = start[5:9] == b"\0\0\0{"  # the end of the length of its header, the header
    pickled = start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
    if path.suffix == ".safetensors" and pickled:
        raise UserError(f"{key}={path} is a file of torch.save (or a zip archive), not safetensors: rename it to .pth")
    if path.suffix != ".safetensors" and is_safetensors:
        raise UserError(f"{key}={path} is a safetensors file: rename it to .safetensors")
    for first, words in () if is_safetensors else _OTHER_FILES:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(first):
            raise UserError(f"{key}={path} is no file of weights, but {words}")
    if start[257:262] == b"ustar":
        raise UserError(f"{key}={path} is no file of weights, but a tar archive; unpack it")
    if path.suffix != ".safetensors" and not pickled:
        raise UserError(f"{key}={path} is damaged, or no file of weights: it begins with {start[:8]!r}")


def _plain_state(content: dict[str, Any], file: str, key: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(tensors by their names in the network, notes): out of their nesting, without the prefix of a wrapper."""
    notes = []
    nested = next((name for name in _NESTED if isinstance(content.get(name), Mapping)), None)
    if nested:
        notes.append(f"{file}: took {nested!r} of {', '.join(sorted(map(str, content)))}")
        content = dict(content[nested])
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{key}={file}: {name!r} is no name of a tensor: save model.state_dict()")
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{key}={file}: {name!r} is a {type(value).__name__}, not a tensor, and none of "
                f"{', '.join(_NESTED)} is in the file: save model.state_dict()"
            )
        if not has_plain_values(value):
            raise UserError(
                f"{key}={file}: {name} is {kind_of(value)}: save it as floats, e.g. tensor.to_dense().float()"
            )
    while prefix := next((p for p in _PREFIXES if content and all(name.startswith(p) for name in content)), None):
        notes.append(f"{file}: every name began with {prefix!r}, which was left out")
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content, notes
