"""Programs of a finished network, which run without its Python code: torch.export's (model.pt2) and ONNX's (model.onnx).

Owns what such a program takes and gives, and how it is checked. Invariant: only a program is kept that gave the logits of the
network, for one image and for several.
Shapes: B images, any number, S pixels a side, C classes.
"""

import importlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import ModelSpec
from pipelines.augment.finish import scale_and_shift
from pipelines.errors import UserError, first_line
from train.networks.tensor_files import sha256_of
from train.networks.weights import build, fill

Format = Literal["torch_export", "onnx"]
Takes = Literal["uint8", "normalised"]
FILES: dict[Format, str] = {"torch_export": "model.pt2", "onnx": "model.onnx"}
TOLERANCE = 1e-4  # largest difference of a logit, as a share of the largest logit
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_CHECKED = (1, 5)  # numbers of images
_UNFIT = (RuntimeError, ValueError, TypeError)  # what torch raises for a network that it cannot turn into a program


class Programs(NamedTuple):
    """Which programs to write, and the images that they take."""

    formats: Sequence[Format] = ()
    takes: Takes = "uint8"


class Normalising(nn.Module):
    """The network behind the normalisation of its pixels: uint8 [B, 3, S, S], RGB, to logits float32 [B, C]."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = map(nn.Buffer, scale_and_shift(mean, std))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float() * self.scale + self.shift)


class Normalised(nn.Module):
    """The network alone: float32 [B, 3, S, S], normalised, to logits float32 [B, C]. Its input has a name of ours."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def check_formats(formats: Sequence[Format]) -> None:
    """UserError, before any work, where a format needs a package that is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(
            f"format=onnx needs {', '.join(missing)}; type: bash tools/setup.sh export, or leave format=onnx out"
        )


def write_programs(
    folder: Path,
    wanted: Programs,
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
) -> dict[str, Any]:
    """Write the programs into `folder`; {file: digest, what it takes, what wrote it, how far its logits are from the network's}.

    UserError where the network cannot be turned into such a program, or that gives other logits.
    """
    if not wanted.formats:
        return {}
    takes = wanted.takes
    network = build(spec, "export")
    fill(network, state, spec, "export")
    module = (Normalising(network, mean, std) if takes == "uint8" else Normalised(network)).eval()
    found = {}
    for one in dict.fromkeys(wanted.formats):
        path, origin = folder / FILES[one], f"format={one}: {spec}"
        try:
            with _quiet(), torch.no_grad():
                versions = _WRITERS[one](module, _images(2, size, takes), path)
        except _UNFIT as error:
            raise UserError(
                f"{origin} cannot be turned into a program ({first_line(error)}); leave format={one} out"
            ) from error
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        found[path.name] = {
            "sha256": sha256_of(path.read_bytes()),  # what follows is said of these very bytes
            "input": takes,
            "shape": ["batch", 3, size, size],
            **versions,
            **_compared(module, _READERS[one](path), size, takes, origin),
        }
    return found


def _images(count: int, size: int, takes: Takes) -> Tensor:
    """Random ones, always the same."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return pixels if takes == "uint8" else pixels.float() / 64 - 2


def _compared(module: nn.Module, program: Callable[[Tensor], Tensor], size: int, takes: Takes, origin: str) -> Any:
    """Largest difference and largest logit; UserError where the program is another one than the network."""
    difference = largest = 0.0
    for count in _CHECKED:
        images = _images(count, size, takes)
        with torch.no_grad():
            own, theirs = module(images), program(images)
        difference = max(difference, (own - theirs).abs().max().item())
        largest = max(largest, own.abs().max().item())
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"{origin}: the program's logits differ from the network's by up to {difference:.3g} (the largest is {largest:.3g}); "
            "leave this format out"
        )
    return {"images_compared": sum(_CHECKED), "largest_difference": difference, "largest_logit": largest}


def _exported(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (images,), dynamic_shapes={"images": {0: batch}}, strict=False)


def _write_torch_export(module: nn.Module, images: Tensor, path: Path) -> dict[str, str]:
    written = io.BytesIO()  # a file that cannot take all of it would end the process, in C++
    torch.export.save(_exported(module, images), written)
    path.write_bytes(written.getvalue())
    return {"torch": torch.__version__}


def _write_onnx(module: nn.Module, images: Tensor, path: Path) -> dict[str, Any]:
    program = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        dynamic_shapes={"images": {0: "batch"}},
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    return {"torch": torch.__version__, "opset": program.model.opset_imports[""]}


def _read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(np.asarray(logits))

    return run


_WRITERS: dict[Format, Callable[[nn.Module, Tensor, Path], dict[str, Any]]] = {
    "torch_export": _write_torch_export,
    "onnx": _write_onnx,
}
_READERS: dict[Format, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "torch_export": _read_torch_export,
    "onnx": _read_onnx,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes about packages that it does not find, and about its own deprecated functions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
