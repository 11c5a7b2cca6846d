"""Reading files of tensors (models/tensor_files.py) where a damaged one is the user's to mend."""

from pathlib import Path

import torch

from models import tensor_files
from models.tensor_files import Tensors, encode, sha256_of
from pipelines.errors import UserError

__all__ = ["Tensors", "check_kinds", "encode", "read_tensors", "sha256_of"]


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU; UserError when it cannot be read or is not the one that was written."""
    try:
        return tensor_files.read_tensors(path, sha256)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_kinds(stored: Tensors, own: Tensors, origin: str) -> None:
    """UserError where a tensor of floats in the network `own` would be filled from one that holds something else."""
    try:
        tensor_files.check_kinds(stored, own)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from error
