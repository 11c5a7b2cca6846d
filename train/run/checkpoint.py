"""Checkpoints of a run.

    RUN/checkpoints/step_00001234/   one safetensors file per group of tensors, state.json with their digests
    RUN/checkpoints/latest, best     names of the newest complete folder, and of the one with the best evaluation

Owns their form on disk; the loop decides when to save and what belongs in them. One process writes. Invariant: a visible
folder was written as a whole, and nothing is used whose digest differs.
"""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pipelines.errors import UserError
from pipelines.files import (
    fsync_folder,
    is_temporary,
    read_json,
    temporary_path,
    write_bytes_atomic,
    write_durable,
)
from train.networks.tensor_files import Tensors, encode, read_tensors, sha256_of
from train.run.place import expanded, run_folder

_FORMAT = 2
NOT_FINITE = "not_finite.json"
"the file that the loop leaves after a loss that was not finite"


@dataclass(kw_only=True)
class SaveConfig:
    every_epochs: int = 1
    "a checkpoint at the end of every n-th epoch, and at the end of the training"
    every_steps: int = 0
    "also a checkpoint after every n-th optimizer step; 0 = only those of save.every_epochs"
    keep_last: int = 2
    "number of newest checkpoints to keep; if the newest is damaged, the one before it is used"
    keep_every: int = 0
    "keep the checkpoint of every n-th epoch for ever; 0 = none"
    keep_best: Literal["no", "val", "test_split_knowingly"] = "no"
    """keep the checkpoint with the highest top-1 (of the moving average, if there is one) in the evaluations during training, on
    data.val; a checkpoint chosen on data.test looks better there than it is"""

    def __post_init__(self) -> None:
        for name, least in (("every_epochs", 1), ("every_steps", 0), ("keep_last", 1), ("keep_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"save.{name}={getattr(self, name)}: must be at least {least}")
        if self.keep_every % self.every_epochs:
            raise ValueError(
                f"save.keep_every={self.keep_every}: must be a multiple of save.every_epochs={self.every_epochs}, as only "
                "what is written can be kept"
            )


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `state` was converted to JSON and back: tuples are lists, keys are strings, floats are exact.

    warnings: one line for each newer checkpoint that was skipped because it is damaged.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    warnings: list[str]


class Keep(NamedTuple):
    """Which checkpoints stay: the newest `last`, those of every `every`-th step (0 = none), and step `best`."""

    last: int
    every: int = 0
    best: int | None = None


def save(run_dir: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any], keep: Keep) -> Path:
    """Write the checkpoint of `step`, let `latest` name it and `best` the best one, then delete those that `keep` does not name.

    tensors: {group: {name: tensor}}, on any device. state: values that JSON can hold, no NaN. An intact checkpoint
    of the same step and state is left as it is. An OSError (disk full) leaves the earlier ones untouched. A checkpoint that
    cannot be deleted stays, with a line on stderr.
    """
    root = run_dir / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    folder = root / _folder_name(step)
    there = _intact(folder)
    if there is None or there["state"] != json.loads(json.dumps(state)):
        _write_folder(folder, step, tensors, state)
    write_bytes_atomic(root / "latest", folder.name.encode())
    if keep.best is not None:
        write_bytes_atomic(root / "best", _folder_name(keep.best).encode())
    _prune(root, step, keep)
    return folder


def step_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of a step, if it is kept."""
    return run_dir / "checkpoints" / _folder_name(step)


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _write_folder(folder: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
    temporary = temporary_path(folder)
    temporary.mkdir()
    try:
        files = {}
        for group, named in tensors.items():
            data = encode(named)
            write_durable(temporary / f"{group}.safetensors", data)
            files[group] = sha256_of(data)
        content = {"format": _FORMAT, "step": step, "files": files, "state": state}
        write_durable(temporary / "state.json", _seal(content))
        fsync_folder(temporary)
        there = _intact(folder)
        # Of the same step before its evaluation: at no time is there none of this step.
        if there is not None and there["files"] == files:
            (temporary / "state.json").replace(folder / "state.json")
            fsync_folder(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            return
        if folder.exists():  # damaged
            _remove(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def _seal(content: dict[str, Any]) -> bytes:
    """JSON that includes a digest of its other content, computed in the form in which it is read back (keys as strings)."""
    content = json.loads(json.dumps(content, allow_nan=False))
    return (json.dumps(content | {"digest": _digest_of(content)}, indent=2) + "\n").encode()


def _digest_of(content: dict[str, Any]) -> str:
    return sha256_of(json.dumps(content, sort_keys=True).encode())


def _remove(folder: Path) -> None:
    """Delete a folder after renaming it, so that a half-deleted folder never has the name of a checkpoint."""
    hidden = temporary_path(folder)
    try:
        folder.rename(hidden)
        shutil.rmtree(hidden)
    # Protected by the user, or open elsewhere on a network disk: no reason to end the training.
    except OSError as error:
        line = f"warning: {folder} is no longer needed, and cannot be deleted: {error.strerror}"
        print(line, file=sys.stderr, flush=True)


def _remove_leftovers(root: Path) -> None:
    for path in root.iterdir():
        if is_temporary(path):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prune(root: Path, step: int, keep: Keep) -> None:
    """Delete the checkpoints that `keep` does not name, and those later than `step`: this run skipped them as damaged.

    The one that `best` names stays also where this session selects none.
    """
    steps = sorted(_steps(root))
    kept = {other for other in steps if other <= step and keep.every and other % keep.every == 0}
    best = pointed_at(root.parent, "best")
    kept |= {other for other in steps if other <= step and best is not None and _folder_name(other) == best.name}
    kept |= set([other for other in steps if other <= step][-keep.last :])
    for other in steps:
        if other not in kept:
            _remove(root / _folder_name(other))


def _steps(root: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in root.glob("step_" + "[0-9]" * 8) if path.is_dir()]


def load_latest(run_dir: Path) -> Checkpoint | None:
    """The newest intact checkpoint; None when there is none at all, UserError when all are damaged."""
    root = run_dir / "checkpoints"
    warnings, tried = [], set[int]()
    # A run that trains on may delete what was listed, once it has saved newer ones: they are listed again after each failure.
    while due := [step for step in _newest_first(root) if step not in tried]:
        tried.add(step := due[0])
        try:
            content, tensors = _read_folder(root / _folder_name(step))
            return Checkpoint(step, tensors, content["state"], warnings)
        except UserError as error:
            warnings.append(f"checkpoint passed over: {error}")
    if warnings:
        raise UserError(
            f"no checkpoint in {root} is intact ({'; '.join(warnings)}); "
            f"to train from the start, delete the folder: rm -r {root}"
        )
    return None


def load_best(run_dir: Path) -> Checkpoint:
    """The checkpoint kept by save.keep_best."""
    folder = pointed_at(run_dir, "best")
    if folder is None and not (run_dir / "run.json").exists():
        raise UserError(f"{run_dir} is an export, or no run; leave weights=best out")
    if folder is None:
        raise UserError(f"run {run_dir} has no best checkpoint: it was trained without save.keep_best=val")
    try:
        content, tensors = _read_folder(folder)
    except UserError:
        if pointed_at(run_dir, "best") in (None, folder):
            raise
        return load_best(run_dir)  # the run trains on, and has just found a better one
    return Checkpoint(content["step"], tensors, content["state"], [])


def load_from(path: str) -> Checkpoint:
    """The checkpoint in a folder step_N, or the newest intact one of a run (name or folder)."""
    folder = expanded(path)
    if (folder / "state.json").exists():
        content, tensors = _read_folder(folder)
        return Checkpoint(content["step"], tensors, content["state"], [])
    found = load_latest(run_folder(path))
    if found is None:
        raise UserError(
            f"resume={path}: no checkpoint there; give a run that has some, or one of the folders RUN/checkpoints/step_N"
        )
    return found


def pointed_at(run_dir: Path, name: Literal["latest", "best"]) -> Path | None:
    """The folder of the newest or the best checkpoint; None when there is none."""
    root = run_dir / "checkpoints"
    try:
        step = (root / name).read_bytes().decode(errors="replace")
    except OSError:
        return None
    return root / step if re.fullmatch(r"step_[0-9]{8}", step) and (root / step).is_dir() else None


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a training in this folder would resume rather than start; `load_latest` finds damage."""
    return bool(_newest_first(run_dir / "checkpoints"))


def has_trained_nothing(run_dir: Path) -> bool:
    """Whether a training in this folder ended before it kept anything: no checkpoint, no weights, no figures.

    Figures before a loss that was not finite do not count: the same command would begin again, and fail again.
    """
    if has_checkpoint(run_dir) or any((run_dir / name).exists() for name in ("result.json", "model.json")):
        return False
    return (run_dir / NOT_FINITE).exists() or not has_figures(run_dir)


def has_figures(run_dir: Path) -> bool:
    """Whether a training in this folder has logged anything."""
    metrics = run_dir / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def _newest_first(root: Path) -> list[int]:
    """Steps from the one that `latest` names downwards, then any newer ones, for when all of those are damaged."""
    steps = sorted(_steps(root), reverse=True) if root.is_dir() else []
    try:
        latest = int((root / "latest").read_bytes().removeprefix(b"step_"))
    except (OSError, ValueError):
        return steps
    return [step for step in steps if step <= latest] + [step for step in steps if step > latest]


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    content = read_json(folder / "state.json")
    if not isinstance(content, dict) or content.pop("digest", None) != _digest_of(content):
        raise UserError(f"{folder / 'state.json'} is damaged: digest differs")
    if content["format"] != _FORMAT:
        raise UserError(f"{folder} has format {content['format']}; this program reads format {_FORMAT}")
    tensors = {group: read_tensors(folder / f"{group}.safetensors", sha) for group, sha in content["files"].items()}
    return content, tensors


def _intact(folder: Path) -> dict[str, Any] | None:
    """What state.json of an intact checkpoint holds; None where there is none, or a damaged one."""
    try:
        return _read_folder(folder)[0]
    except UserError:
        return None
