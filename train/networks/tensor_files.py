"""Named tensors as safetensors bytes, with the digest by which a reader checks that they are intact."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from pipelines.errors import UserError

Tensors = Mapping[str, torch.Tensor]


def encode(named: Tensors) -> bytes:
    """Serialise named tensors, as contiguous copies: safetensors accepts neither channels_last nor tied tensors."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    return safetensors.torch.save(copies)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if sha256_of(data) != sha256:
        raise UserError(f"{path} is damaged: digest differs")
    return safetensors.torch.load(data)
