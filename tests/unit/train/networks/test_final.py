import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tensors import assert_same, damage, some_tensors

from pipelines.errors import UserError
from train.networks.final import load_final, save_final
from train.networks.info import ModelInfo
from train.run.place import run_folder

INFO = ModelInfo(
    architecture="resnet32",
    class_names=["a", "b"],
    mean=[0.1, 0.2, 0.3],
    std=[0.2, 0.2, 0.2],
    input_size=32,
    method="ce",
)


def test_final_weights_round_trip(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder("teacher")
    assert run == Path("runs/teacher")
    run.mkdir(parents=True)
    weights = some_tensors()["model"]
    save_final(run, weights, INFO)
    for given in (
        "teacher",
        "runs/teacher",
        str(run.resolve()),
        run,
        "runs/teacher/",
        "runs/teacher/model.safetensors",
    ):
        state, read = load_final(given)
        assert read == INFO
        assert_same({"model": state}, {"model": weights})
    with pytest.raises(UserError, match="has no moving average"):
        load_final("teacher", "ema")
    save_final(run, weights, INFO, {"w": torch.ones(2)})
    state, read = load_final("teacher", "ema")
    assert read == replace(INFO, kind="ema")
    assert_same({"model": state}, {"model": {"w": torch.ones(2)}})


def test_an_export_of_the_name_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    save_final(tmp_path / "mine", {"w": torch.ones(10)}, INFO)
    with pytest.raises(UserError, match=r"no run 'mine'.*; the folder of this name here is given by \./mine$"):
        load_final(Path("runs/mine"))


def test_final_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    save_final(run, {"w": torch.ones(10)}, INFO)
    with pytest.raises(UserError, match="no run 'bsce_if10-s0'.*; finished runs with a name like it: bsce_if100-s0"):
        load_final(tmp_path / "bsce_if10-s0")
    with pytest.raises(UserError, match="no run 'mine'.*; finished runs there: bsce_if100-s0$"):
        load_final(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no run 'mine': there is no folder runs/mine; looked for from {tmp_path}$"):
        load_final(Path("runs/mine"))
    damage(run / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load_final(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read .*model.safetensors"):
        load_final(run)


def test_weights_and_description_of_two_saves_are_not_taken_for_a_pair(tmp_path: Path):
    save_final(tmp_path, {"w": torch.ones(3)}, INFO)
    description = (tmp_path / "model.json").read_bytes()
    save_final(tmp_path, {"w": torch.zeros(3)}, replace(INFO, method="bsce"))
    shutil.copy(tmp_path / "model.json", tmp_path / "other.json")
    (tmp_path / "model.json").write_bytes(description)
    with pytest.raises(UserError, match="damaged: digest differs"):
        load_final(tmp_path)


@pytest.mark.parametrize("text", ['{"class_names": ["a"]}', "[]", '"x"'])
def test_a_description_that_is_not_ours_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match="model.json is damaged, or was not written by this program"):
        load_final(tmp_path)


def test_a_description_reads_as_it_was_written():
    export = replace(INFO, name="mine", training={"run": "a"}, evaluation={"top1": 0.5}, kind="ema")
    for info in (INFO, export):
        assert ModelInfo.of(info.to_json()) == info
    assert "kind" not in INFO.to_json() and export.to_json()["kind"] == "ema"
