import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tensors import assert_same, damage, some_tensors

from pipelines.errors import UserError
from train.networks.final import load_final, save_final
from train.run.place import run_folder


def test_final_weights_round_trip(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder("teacher")
    assert run == Path("runs/teacher")
    run.mkdir(parents=True)
    meta = {"model": "resnet32", "class_names": ["a", "b"], "mean": [0.1, 0.2, 0.3]}
    weights = some_tensors()["model"]
    save_final(run, weights, meta)
    for given in (
        "teacher",
        "runs/teacher",
        str(run.resolve()),
        run,
        "runs/teacher/",
        "runs/teacher/model.safetensors",
    ):
        state, read = load_final(given)
        assert read == meta | {"kind": "raw"}
        assert_same({"model": state}, {"model": weights})
    with pytest.raises(UserError, match="has no moving average"):
        load_final("teacher", "ema")
    save_final(run, weights, meta, {"w": torch.ones(2)})
    state, read = load_final("teacher", "ema")
    assert read == meta | {"kind": "ema"}
    assert_same({"model": state}, {"model": {"w": torch.ones(2)}})


def test_final_weights_that_are_not_there(tmp_path: Path):
    run = tmp_path / "bsce_if100-s0"
    with pytest.raises(UserError, match="no run 'bsce_if100-s0': there is no folder"):
        load_final(run)
    run.mkdir()
    with pytest.raises(UserError, match="holds no run: no model.json in it"):
        load_final(run)
    command = "python train/teacher.py configs/bsce.yaml"
    (run / "run.json").write_text(json.dumps({"status": "stopped", "command": command}))
    with pytest.raises(UserError, match=f"is unfinished .it is stopped.* type: {command}"):
        load_final(run)
    save_final(run, {"w": torch.ones(10)}, {})
    with pytest.raises(UserError, match="no run 'bsce_if10-s0'.*; finished runs with a name like it: bsce_if100-s0"):
        load_final(tmp_path / "bsce_if10-s0")
    damage(run / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load_final(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read .*model.safetensors"):
        load_final(run)


def test_weights_and_description_of_two_saves_are_not_taken_for_a_pair(tmp_path: Path):
    save_final(tmp_path, {"w": torch.ones(3)}, {"a": 1})
    description = (tmp_path / "model.json").read_bytes()
    save_final(tmp_path, {"w": torch.zeros(3)}, {"a": 2})
    shutil.copy(tmp_path / "model.json", tmp_path / "other.json")
    (tmp_path / "model.json").write_bytes(description)
    with pytest.raises(UserError, match="damaged: digest differs"):
        load_final(tmp_path)
