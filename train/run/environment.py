"""The environment of a run, as it is used and recorded: accelerator, settings of the launcher, device, versions.

Owns the choice of precision and torch's global switches. Invariant: the launcher decides processes and devices, nothing else.
"""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from pipelines.errors import UserError
from pipelines.loader import default_workers
from train.config import Config
from train.networks.layout import DDP_OPTIONS
from train.run import launcher
from train.run.agreement import MAY_DIFFER, require_alike
from train.settings import flatten

PACKAGES = (
    *("torch", "accelerate", "numpy", "numba", "omegaconf", "safetensors", "pillow", "timm", "ffcv"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
)

_MOST_COMPILERS = 32  # torch's own limit


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Everything outside the settings that may change results or speed between two sessions of a run, as a flat dictionary."""
    versions = {name: _version(name) for name in PACKAGES}
    versions["torch"] = str(torch.__version__)  # names the build, such as +cu130, which the metadata of PyPI's does not
    return {
        "host": platform.node(),
        "device": device_name(accelerator.device),
        "world_size": accelerator.num_processes,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version is not None},
        "cuda": torch.version.cuda,
        **git_state(Path(__file__).resolve().parents[2]),
    }


@functools.cache  # reading the metadata of all takes 10 ms
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type}: {models[0] if models else platform.processor() or platform.machine()}"


def git_state(root: Path) -> dict[str, Any]:
    """Revision of the code, and whether tracked files were changed; empty when `root` is not a git checkout."""

    def git(*arguments: str) -> str:
        # git refuses the clone of another user, whose settings can run programs; its code runs here anyway.
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        top, _, revision = git("rev-parse", "--show-toplevel", "HEAD").rpartition("\n")
        if Path(top).resolve() != root:
            return {}
        return {
            "git_revision": revision,
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def resolve_precision(setting: str) -> str:
    """fp32, bf16 or fp16; auto is bf16 on a GPU that supports it, and fp32 elsewhere."""
    if setting != "auto":
        return setting
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in (
        "true",
        "1",
        "yes",
    )
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def precision_of(accelerator: Accelerator) -> str:
    """The precision of the accelerator, as the settings name it."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def _accelerates_word(precision: str) -> str:
    return "no" if precision == "fp32" else precision


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator that the settings ask for; UserError when the launcher asked for something else, or processes differ."""
    precision = _accelerates_word(resolve_precision(config.precision))
    _check_numbers()
    _check_launcher(precision)
    if config.deterministic:
        # cuBLAS reads the variable when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # No memory is read before it is written, so filling it would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    torch.backends.cudnn.benchmark = not config.deterministic  # pays off, because input sizes are constant
    torch.backends.cudnn.allow_tf32 = (
        False  # precision=fp32 means it; torch's default convolves with 10 bits of mantissa
    )
    if config.compile:  # torch would start a process for each core, up to 32, in every process of a training
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(_MOST_COMPILERS, default_workers())))
    try:
        accelerator = Accelerator(
            mixed_precision=precision, kwargs_handlers=[DistributedDataParallelKwargs(**DDP_OPTIONS)]
        )
    except ValueError as error:
        raise UserError(f"accelerate does not start (precision={config.precision}): {error}") from error
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU (accelerate would train in fp32); on a CPU use fp32 or bf16")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, but accelerate counts {accelerator.num_processes}: each "
            "would believe to be the only one. Without a GPU, type ACCELERATE_USE_CPU=true before the command"
        )
    settings = {name: value for name, value in flatten(config).items() if name not in MAY_DIFFER}
    require_alike(
        settings | {"the version of torch": str(torch.__version__)},
        "the processes were started with different settings",
        "give the same command, the same configuration and the same installation on all machines",
    )
    if config.precision == "bf16" and accelerator.device.type == "cpu" and not _cpu_has_bf16():
        accelerator.print(
            "warning: precision=bf16 takes many times as long as fp32 on this CPU, which emulates it; type precision=fp32"
        )
    return accelerator


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself, as far as torch can tell; oneDNN emulates it on others."""
    tell = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.11 may lack it
    found = tell()
    bf16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert")
    return found.get("architecture") != "x86_64" or any(found.get(name) for name in bf16)


def _check_numbers() -> None:
    """UserError where a number that a launcher sets is none."""
    names = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in os.environ]
    for name in [*names, "MASTER_PORT"] if names and "MASTER_PORT" in os.environ else names:
        if not re.fullmatch(r"-?[0-9]+", os.environ[name]):
            raise UserError(
                f"{name}={os.environ[name]!r} is no whole number: a launcher sets this variable; without one type: unset {name}"
            )


def _check_launcher(precision: str) -> None:
    """UserError where the launcher's settings, which are environment variables, contradict those of the run."""
    if launcher.asked_for_several():
        raise UserError(
            "accelerate launch was asked for several processes, but starts several only with --multi_gpu, and has started one: "
            "type accelerate launch --multi_gpu --num_processes N, without GPUs ACCELERATE_USE_CPU=true in front of it and no "
            "--cpu; for one process, --num_processes 1"
        )
    allowed = {
        "ACCELERATE_MIXED_PRECISION": (
            ("no", precision),
            "set precision=fp32|bf16|fp16 instead: it belongs to the run",
        ),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "set optim.accumulate=N instead"),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "set compile=true instead"),
        "ACCELERATE_USE_DEEPSPEED": (
            ("false",),
            "each process holds the whole model here: launch with --multi_gpu",
        ),
        "ACCELERATE_USE_FSDP": (
            ("false",),
            "each process holds the whole model here: launch with --multi_gpu",
        ),
    }
    for name, (values, advice) in allowed.items():
        given = os.environ.get(name) or values[0]
        if given.lower() not in values:
            raise UserError(
                f"{name}={given} (from the launcher or its config file) does not fit this trainer; {advice}"
            )
