"""Loads a finished network from its folder, for use in other programs; of the trainer, only this package is needed.

The folder is a run's (runs/NAME) or an export's; it holds model.safetensors and model.json (docs/export.md). Invariant: a
network comes back only if the file is the one that was written, and its tensors fit name for name and shape for shape.
"""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from models.registry import ModelSpec
from models.tensor_files import check_kinds, read_tensors


def load_network(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(network on the CPU in eval mode, what model.json says) of a finished run or an export, given its folder.

    Images float32 [B, 3, S, S], normalised by meta["mean"] and meta["std"], in; logits [B, C] of meta["class_names"] out.
    ValueError where the folder holds no finished network, a file in it is damaged, or the weights do not fit.
    """
    folder = Path(os.path.expanduser(folder))  # unlike Path.expanduser, it leaves the name of an unknown user as it is
    try:
        meta = json.loads((folder / "model.json").read_bytes())
        spec = ModelSpec.of(meta)
    except OSError as error:
        raise ValueError(
            f"{folder} holds no finished network ({folder / 'model.json'}: {error.strerror}); give the folder of an export, or "
            "of a run that is finished"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'} is damaged: {error!r}") from error
    network = spec.build()
    digest = meta.pop("sha256", "")
    meta.pop("ema_sha256", None)
    state = read_tensors(folder / "model.safetensors", digest)
    try:
        check_kinds(state, network.state_dict())
    except ValueError as error:
        raise ValueError(f"{folder / 'model.safetensors'}: {error}") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / 'model.safetensors'} does not fit {spec}: {str(error).splitlines()[-1]}"
        ) from error
    return network.eval(), {"kind": "raw"} | meta
