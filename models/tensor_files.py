"""Named tensors as safetensors bytes, with the digest by which a reader checks that they are intact. Nothing is unpickled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

Tensors = Mapping[str, torch.Tensor]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""the dtypes in which weights may be stored: other ones (int8, float8) need scales, which no file of tensors names"""


def encode(named: Tensors) -> bytes:
    """safetensors needs contiguous tensors that share no memory: channels_last and tied tensors are copied."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    return safetensors.torch.save(copies)


def sha256_of(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU; ValueError when it cannot be read or differs from what was written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if sha256_of(data) != sha256:
        raise ValueError(f"{path} is damaged: digest differs")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: no safetensors file ({error})") from error


def check_kinds(stored: Tensors, own: Tensors) -> None:
    """ValueError where a tensor of floats in the network `own` would be filled from one that holds something else."""
    for name, tensor in stored.items():
        if name in own and own[name].is_floating_point() and not _is_plain(tensor):
            raise ValueError(
                f"{name} is {kind_of(tensor)}, the network's weights are floats: store float64, float32, float16 or bfloat16"
            )


def has_plain_values(tensor: torch.Tensor) -> bool:
    """Whether it holds real numbers, one in each place: not sparse, quantised, complex, or without values."""
    odd = tensor.is_meta or tensor.is_quantized or tensor.is_complex() or tensor.is_nested
    return tensor.layout == torch.strided and not odd


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype in FLOATS and has_plain_values(tensor)


def kind_of(tensor: torch.Tensor) -> str:
    """Its dtype, or what else is odd about it, in words."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return f"a tensor without values (on the device `meta`, {dtype})"
    return dtype if tensor.layout == torch.strided else f"a sparse tensor ({tensor.layout}, {dtype})"
