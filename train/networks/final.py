"""The final weights of a run, and the information that is needed to use them.

    RUN/model.safetensors, model.json   the final weights, their description and their digests
    RUN/model_ema.safetensors           their moving average, if there is one

Invariant: nothing is used whose digest differs, and nothing is ever unpickled.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from pipelines.errors import UserError
from pipelines.files import (
    read_json,
    read_object,
    write_bytes_atomic,
    write_json_atomic,
)
from train.networks.info import ModelInfo
from train.networks.tensor_files import Tensors, encode, read_tensors, sha256_of
from train.run.lock import status_of
from train.run.place import run_folder
from train.watch.text import short_list


def save_final(run_dir: Path, model_state: Tensors, info: ModelInfo, ema_state: Tensors | None = None) -> None:
    """Write the final weights and their average; `info` is what a user of them must know.

    model.json is written last and holds the digests of the weights: a kill in between leaves no valid set.
    """
    digests = {}
    for name, state in (("model", model_state), ("model_ema", ema_state)):
        if state is not None:
            data = encode(state)
            write_bytes_atomic(run_dir / f"{name}.safetensors", data)
            digests["sha256" if name == "model" else "ema_sha256"] = sha256_of(data)
    write_json_atomic(run_dir / "model.json", info.to_json() | digests)


def load_final(run: str | Path, kind: Literal["raw", "ema"] = "raw") -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """(weights on the CPU, what model.json says) of a finished run: its name, its folder or its model.safetensors.

    kind: the weights, or their moving average.
    """
    folder = run if isinstance(run, Path) else run_folder(run)
    if folder.name == "model.safetensors":
        folder = folder.parent
    if not (folder / "model.json").is_file():
        raise UserError(why_not_final(folder))
    content = read_json(folder / "model.json")
    try:
        info = ModelInfo.of(content)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder / 'model.json'} is damaged, or was not written by this program ({error})") from error
    raw, ema = content.get("sha256", ""), content.get("ema_sha256")
    if kind == "raw":
        return read_tensors(folder / "model.safetensors", raw), info
    if ema is None and info.is_export:
        raise UserError(f"{folder} is an export and holds {info.kind} weights; leave weights={kind} out")
    if ema is None:
        raise UserError(f"run {folder} has no moving average of its weights: it was trained without ema.decay")
    return read_tensors(folder / "model_ema.safetensors", ema), replace(info, kind="ema")


def why_not_final(folder: Path) -> str:
    """Why there are no final weights, and what to do, in words."""
    if (folder / "run.json").is_file():
        record = read_object(folder / "run.json", status=str, command=str)
        status = status_of(folder, record["status"])
        words = status if status != record["status"] else f"it is {status}"
        return (
            f"run {folder} is unfinished ({words}) and has no final weights yet; "
            f"to go on with it type: {record['command']}"
        )
    if folder.exists():
        return f"{folder} holds no run: no model.json in it; give the name or the folder of a finished run"
    there = sorted(path.parent.name for path in folder.parent.glob("*/model.json"))
    hint = f"; finished runs there: {short_list(there, 5)}" if there else ""
    if near := difflib.get_close_matches(folder.name, there):
        hint = f"; finished runs with a name like it: {', '.join(near)}"
    elif not folder.is_absolute():
        hint += f"; looked for from {Path.cwd()}"
    if (Path(folder.name) / "model.json").is_file():
        hint = f"; the folder of this name here is given by ./{folder.name}"
    return f"no run '{folder.name}': there is no folder {folder}{hint}"
