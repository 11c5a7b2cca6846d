"""Named tensors as safetensors bytes, with the digest by which a reader checks that they are intact. Nothing is unpickled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

Tensors = Mapping[str, torch.Tensor]


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
    return safetensors.torch.load(data)
