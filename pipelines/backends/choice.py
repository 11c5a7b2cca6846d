"""Which backend decodes: the rule of data.backend=auto, why one cannot serve, and how one is made.

Knows the four by name and nothing of how they work; FFCV and DALI are extras, imported only when used.
"""

import importlib.util
import os

import numpy as np
import torch

from pipelines.augment.recipe import Recipe, ViewParams, view_params
from pipelines.backends.contract import Backend, OnHost
from pipelines.backends.pixels import PixelSource
from pipelines.errors import UserError
from pipelines.libffcv import library_path
from pipelines.records.reader import Records

# Part of a device's memory that raw records may fill: beside them live the network, its activations and the test images.
_RESIDENT_SHARE = 4


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no nvidia package at all
        return False


def _device_bytes(device: torch.device) -> int:
    """Memory that this process may count on."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def _resident_refusal(records: Records, recipe: Recipe, device: torch.device) -> str | None:
    if not records.raw.all():
        return "it needs raw records, and these are JPEG"
    sizes = np.concatenate([records.stored_widths, records.stored_heights])
    copied = recipe.crop == "pad_crop" or (recipe.crop == "center" and recipe.resolved_short_side() == recipe.size)
    if not copied or (sizes != recipe.size).any():
        return f"it copies pixels and cannot resize, as recipe {recipe.crop} {recipe.size} on these images would"
    from pipelines.backends.resident import resident_bytes

    needed, room = resident_bytes(records, view_params(recipe, 0)), _device_bytes(device) // _RESIDENT_SHARE
    if needed > room:
        return f"the images take {needed / 1e9:.1f} GB, a quarter of the memory of {device} is {room / 1e9:.1f} GB"
    return None


def refusal(backend: str, records: Records, recipe: Recipe, device: torch.device) -> str | None:
    """Why a backend cannot serve these records here, in words; None when it can."""
    if backend == "resident":
        return _resident_refusal(records, recipe, device)
    if backend == "dali":
        if not _dali_installed():
            return "NVIDIA DALI is not installed; run `bash tools/setup.sh`"
        return "it needs JPEG records, and some of these are raw pixels" if records.raw.any() else None
    if backend == "ffcv" and library_path() is None:
        return "FFCV is not installed; run `bash tools/setup.sh`"
    return None


def available_backends(records: Records, recipe: Recipe, device: torch.device) -> list[str]:
    """The backends that can serve these records here, in the order in which `auto` would choose them."""
    # On a CPU ffcv crops raw images nine times as fast as resident does, beside the training step, and to the same pixels.
    gpu, cpu = ["resident", "dali", "ffcv", "reference"], ["ffcv", "resident", "reference", "dali"]
    order = gpu if device.type == "cuda" else cpu
    return [name for name in order if refusal(name, records, recipe, device) is None]


def resolve_backend(
    setting: str, records: Records, recipe: Recipe, device: torch.device, cached: PixelSource | None = None
) -> str:
    """The backend that `data.backend` means for these records here.

    cached: the pixel source of the cache that is read, if there is one. Raises UserError when the backend
    cannot serve the records.
    """
    available = available_backends(records, recipe, device)
    if setting == "auto":
        setting = (cached and cached.backend) or available[0]
    if setting not in available:
        why = refusal(setting, records, recipe, device)
        others = " or ".join(f"data.backend={name}" for name in available)
        raise UserError(f"data.backend={setting}: {why}; or use {others}")
    return setting


def make_backend(
    name: str,
    records: Records,
    params: ViewParams,
    workers: int,
    verify: str,
    device: torch.device,
    hw_decoder_load: float,
) -> Backend:
    """The backend of a resolved name."""
    if name == "dali":
        from pipelines.backends.dali import DaliBackend

        return DaliBackend(records, params, workers, verify, device, hw_decoder_load)
    if name == "resident":
        from pipelines.backends.resident import ResidentBackend

        return ResidentBackend(records, params, workers, verify, device)
    if name == "ffcv":
        from pipelines.backends.ffcv import FFCVBackend

        return OnHost(FFCVBackend(records, workers, verify).load, params.size, device)
    from pipelines.backends.reference import ReferenceBackend

    return OnHost(ReferenceBackend(records, workers, verify).load, params.size, device)
