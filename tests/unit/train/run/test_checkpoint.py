import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from train.networks.final import load_final, save_final
from train.networks.info import ModelInfo
from train.run.checkpoint import Keep, SaveConfig, load_from, load_latest, pointed_at, save
from train.run.optimizer_state import optimizer_tensors, restore_optimizer
from train.run.place import run_folder

ROOT = Path(__file__).parents[4]


def some_tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    tied = torch.randn(5)
    return {
        "model": {
            "conv.weight": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
            "bn.num_batches_tracked": torch.tensor(2**40 + seed),
            "half": torch.randn(7).bfloat16(),
            "mask": torch.tensor([True, False, True]),
            "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
            "tied.a": tied,
            "tied.b": tied,
            "slice": torch.arange(12.0).reshape(3, 4)[:, 1],
            "empty": torch.empty(0, 3),
        },
        "rng": {"cpu": torch.get_rng_state()},
        "nothing": {},
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    assert got.keys() == expected.keys()
    for group in expected:
        assert got[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert got[group][name].dtype == tensor.dtype and got[group][name].shape == tensor.shape
            assert bits(got[group][name]) == bits(tensor), name


def folders(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


STATE = {
    "best": 0.1 + 0.2,
    "none": None,
    "pair": [1, "é"],
    "tiny": 5e-324,
    "by_epoch": {"10": 1, "2": 2, "1": 3},
}


def test_round_trip_bit_for_bit(tmp_path: Path):
    assert load_latest(tmp_path) is None
    save(tmp_path, 7, some_tensors(), STATE, keep=Keep(2))
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.warnings == []
    assert (loaded.step, loaded.state) == (7, STATE)
    assert_same(loaded.tensors, some_tensors())
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000007"


def test_state_with_integer_keys_is_not_taken_for_damaged(tmp_path: Path):
    save(tmp_path, 1, {}, {"by_epoch": {10: 1, 2: (2, 3)}}, keep=Keep(1))
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.state == {"by_epoch": {"10": 1, "2": [2, 3]}}


def test_a_state_with_nan_is_refused_and_leaves_nothing(tmp_path: Path):
    save(tmp_path, 1, some_tensors(1), {}, keep=Keep(2))
    with pytest.raises(ValueError):
        save(tmp_path, 2, some_tensors(2), {"loss": float("nan")}, keep=Keep(2))
    assert folders(tmp_path) == ["latest", "step_00000001"]


def test_pruning_keeps_the_newest(tmp_path: Path):
    for step in (9, 10, 100):
        save(tmp_path, step, some_tensors(step), {}, keep=Keep(2))
    assert folders(tmp_path) == ["latest", "step_00000010", "step_00000100"]
    save(tmp_path, 101, some_tensors(), {}, keep=Keep(1))
    assert folders(tmp_path) == ["latest", "step_00000101"]


def test_deletion_comes_after_the_new_one_is_in_place(tmp_path: Path, monkeypatch):
    save(tmp_path, 1, some_tensors(1), {}, keep=Keep(1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.run.checkpoint.write_bytes_atomic", killed)  # between the new folder and the pointer
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, some_tensors(2), {}, keep=Keep(1))
    assert folders(tmp_path) == ["latest", "step_00000001", "step_00000002"]
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.step == 1
    monkeypatch.undo()
    save(tmp_path, 2, some_tensors(2), {}, keep=Keep(1))  # the resumed run comes to step 2 again
    assert folders(tmp_path) == ["latest", "step_00000002"]


@pytest.mark.parametrize("kind", ["model bit", "state bit", "truncated", "missing file", "no state"])
def test_a_damaged_newest_falls_back_and_is_replaced(tmp_path: Path, kind: str):
    for step in (10, 20):
        save(tmp_path, step, some_tensors(step), {"step": step}, keep=Keep(2))
    newest = tmp_path / "checkpoints" / "step_00000020"
    if kind == "model bit":
        damage(newest / "model.safetensors")
    elif kind == "state bit":
        (newest / "state.json").write_text((newest / "state.json").read_text().replace('"step": 20', '"step": 21'))
    elif kind == "truncated":
        os.truncate(newest / "model.safetensors", 100)
    elif kind == "missing file":
        (newest / "rng.safetensors").unlink()
    else:
        (newest / "state.json").unlink()

    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.step == 10 and loaded.state == {"step": 10}
    assert_same(loaded.tensors, some_tensors(10))
    (warning,) = loaded.warnings
    assert warning.startswith("checkpoint passed over: ") and "step_00000020" in warning

    save(tmp_path, 15, some_tensors(15), {}, keep=Keep(2))  # a shorter interval: 20 must not win over 15
    assert folders(tmp_path) == ["latest", "step_00000010", "step_00000015"]


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(tmp_path: Path):
    for step in (10, 20):
        save(tmp_path, step, some_tensors(step), {}, keep=Keep(2))
    damage(tmp_path / "checkpoints" / "step_00000020" / "model.safetensors")
    save(tmp_path, 20, some_tensors(20), {}, keep=Keep(2))
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.step == 20 and loaded.warnings == []
    assert folders(tmp_path) == ["latest", "step_00000010", "step_00000020"]


def test_all_damaged_is_an_error_that_says_what_to_type(tmp_path: Path):
    save(tmp_path, 1, some_tensors(), {}, keep=Keep(1))
    damage(tmp_path / "checkpoints" / "step_00000001" / "model.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint .* is intact .*damaged.*rm -r .*checkpoints"):
        load_latest(tmp_path)


def test_a_lost_or_damaged_pointer_costs_nothing(tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step, {}, {}, keep=Keep(2))
    pointer = tmp_path / "checkpoints" / "latest"
    for spoil in (
        pointer.unlink,
        lambda: pointer.write_text("step_x"),
        lambda: pointer.write_text("step_00000009"),
    ):
        spoil()
        loaded = load_latest(tmp_path)
        assert loaded is not None and loaded.step == 2


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("train.run.checkpoint._FORMAT", 3)
    save(tmp_path, 1, {}, {}, keep=Keep(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 3; this program reads format 2"):
        load_latest(tmp_path)


DRILL = """
import itertools, os, random, signal, sys, time, torch
from pathlib import Path
from train.checkpoint import Keep, load_latest, save

def save_for_ever(run, first):
    for step in itertools.count(first):
        weights = {f"w{i}": torch.full((100_000,), float(step)) for i in range(4)}
        tensors = {"model": weights, "optimizer": {"m": torch.full((1000,), step)}}
        save(run, step, tensors, {"step": step}, keep=Keep(2))

torch.set_num_threads(1)
run, draw, last = Path(sys.argv[1]), random.Random(0), 0
for _ in range(8):
    child = os.fork()
    if child == 0:
        save_for_ever(run, last + 1)
    time.sleep(draw.uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = load_latest(run)
    if loaded is None:
        assert last == 0
        continue
    assert loaded.warnings == [] and loaded.step >= last and loaded.state == {"step": loaded.step}
    assert all((tensor == loaded.step).all() for tensor in loaded.tensors["model"].values())
    last = loaded.step
print(last)
"""


def test_killed_at_any_moment_a_complete_checkpoint_remains(tmp_path: Path):
    """kill -9 at random moments of a process that does nothing but save, again and again on one folder."""
    drill = subprocess.run([sys.executable, "-c", DRILL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert drill.returncode == 0, drill.stderr
    last = int(drill.stdout)
    assert last >= 4  # it did get somewhere
    save(tmp_path, last + 1, {}, {}, keep=Keep(2))
    assert len(folders(tmp_path)) == 3 and not [name for name in folders(tmp_path) if name.startswith(".")]


def test_a_full_disk_leaves_the_previous_one(tmp_path: Path):
    save(tmp_path, 1, some_tensors(1), {}, keep=Keep(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2, {"model": {"w": torch.zeros(100_000)}}, {}, keep=Keep(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert folders(tmp_path) == ["latest", "step_00000001"]
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.tensors, some_tensors(1))


def test_save_settings():
    assert SaveConfig() == SaveConfig(every_epochs=1, keep_last=2)
    for name, wrong in (("keep_last", 0), ("every_epochs", 0), ("every_steps", -1), ("keep_every", -1)):
        with pytest.raises(ValueError, match=rf"save.{name}={wrong}: must be at least"):
            SaveConfig(**{name: wrong})
    with pytest.raises(ValueError, match=r"save.keep_every=3: must be a multiple of save.every_epochs=2"):
        SaveConfig(every_epochs=2, keep_every=3)


def test_the_best_and_every_nth_checkpoint_stay(tmp_path):
    for step in range(1, 11):
        save(tmp_path, step, {}, {}, keep=Keep(2, every=4, best=3 if step >= 3 else 1))
    assert folders(tmp_path) == ["best", "latest", *(f"step_{n:08d}" for n in (3, 4, 8, 9, 10))]
    assert pointed_at(tmp_path, "best") == tmp_path / "checkpoints/step_00000003"
    assert pointed_at(tmp_path, "latest") == tmp_path / "checkpoints/step_00000010"
    save(tmp_path, 11, {}, {}, keep=Keep(1, every=4, best=11))
    assert folders(tmp_path) == ["best", "latest", *(f"step_{n:08d}" for n in (4, 8, 11))]


def test_another_runs_checkpoint_is_read_by_folder_or_run(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step, some_tensors(step), {"n": step}, keep=Keep(2))
    first = load_from(str(tmp_path / "run/checkpoints/step_00000001"))
    assert (first.step, first.state, load_from(str(tmp_path / "run")).step) == (1, {"n": 1}, 2)
    assert_same(first.tensors, some_tensors(1))
    with pytest.raises(UserError, match="resume=.*: no checkpoint there"):
        load_from(str(tmp_path))


# ---- the optimizer ----


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).to(
        memory_format=torch.channels_last
    )


def optimizers(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": others, "weight_decay": 0.0},
        {"params": weights, "weight_decay": 1e-2},
    ]  # not the model's order
    return {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
        "plain": lambda: torch.optim.SGD(groups, lr=0.1),
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-3),
    }[kind]()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, frozen: str | None = None) -> None:
    for step in steps:
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        if frozen is not None:
            model.get_parameter(frozen).grad = None
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "plain", "adamw"])
@pytest.mark.parametrize("frozen", [None, "4.bias"])
def test_six_steps_are_three_and_three(tmp_path: Path, kind: str, frozen: str | None):
    """frozen: a parameter without gradient, so without optimizer state, before the checkpoint."""
    whole = network()
    optimizer = optimizers(kind, whole)
    train(whole, optimizer, range(3), frozen)
    train(whole, optimizer, range(3, 6))

    first = network()
    optimizer_1 = optimizers(kind, first)
    train(first, optimizer_1, range(3), frozen)
    save(
        tmp_path,
        3,
        {"model": first.state_dict(), "optimizer": optimizer_tensors(first, optimizer_1)},
        {},
        keep=Keep(1),
    )

    second = network()
    optimizer_2 = optimizers(kind, second)
    train(second, optimizer_2, range(10, 12))  # state of another past, which must go
    loaded = load_latest(tmp_path)
    assert loaded is not None
    second.load_state_dict(loaded.tensors["model"])
    restore_optimizer(second, optimizer_2, loaded.tensors["optimizer"])
    assert_same({"o": optimizer_tensors(second, optimizer_2)}, {"o": loaded.tensors["optimizer"]})
    train(second, optimizer_2, range(3, 6))

    assert_same({"m": dict(second.state_dict())}, {"m": dict(whole.state_dict())})
    assert_same({"o": optimizer_tensors(second, optimizer_2)}, {"o": optimizer_tensors(whole, optimizer)})


def test_names_and_memory_format_of_optimizer_tensors():
    model = network()
    optimizer = optimizers("sgd", model)
    assert optimizer_tensors(model, optimizer) == {}
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(model, optimizer)
    assert set(tensors) == {f"{name}/momentum_buffer" for name, _ in model.named_parameters()}
    restore_optimizer(model, optimizer, {name: tensor.contiguous() for name, tensor in tensors.items()})
    buffer = optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"]
    assert buffer.is_contiguous(memory_format=torch.channels_last)


def test_state_that_does_not_fit_is_refused():
    model = network()
    optimizer = optimizers("sgd", model)
    with pytest.raises(UserError, match="state for '9.weight', which this model does not train"):
        restore_optimizer(model, optimizer, {"9.weight/momentum_buffer": torch.zeros(3)})
    with pytest.raises(UserError, match=r"'4.bias' has shape \[3\], the parameter \[5\]"):
        restore_optimizer(model, optimizer, {"4.bias/momentum_buffer": torch.zeros(3)})
    optimizer.state[model.get_parameter("4.bias")]["count"] = 3
    with pytest.raises(TypeError, match="'count' of 4.bias is a int"):
        optimizer_tensors(model, optimizer)


# ---- final weights ----


def test_final_weights_round_trip(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder("teacher")
    assert run == Path("runs/teacher")
    run.mkdir(parents=True)
    info = ModelInfo(
        architecture="resnet32",
        class_names=["a", "b"],
        mean=[0.1, 0.2, 0.3],
        std=[1.0, 1.0, 1.0],
        input_size=32,
        method="ce",
    )
    weights = some_tensors()["model"]
    save_final(run, weights, info)
    for given in (
        "teacher",
        "runs/teacher",
        str(run.resolve()),
        run,
        "runs/teacher/",
        "runs/teacher/model.safetensors",
    ):
        state, read = load_final(given)
        assert read == info
        assert_same({"model": state}, {"model": weights})
    with pytest.raises(UserError, match="has no moving average"):
        load_final("teacher", "ema")
    save_final(run, weights, info, {"w": torch.ones(2)})
    state, read = load_final("teacher", "ema")
    assert read == dataclasses.replace(info, kind="ema")
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
    info = ModelInfo(architecture="resnet32", class_names=["a"], mean=[0.5] * 3, std=[0.25] * 3, input_size=32)
    save_final(run, {"w": torch.ones(10)}, info)
    with pytest.raises(UserError, match="no run 'bsce_if10-s0'.*; finished runs with a name like it: bsce_if100-s0"):
        load_final(tmp_path / "bsce_if10-s0")
    damage(run / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load_final(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read .*model.safetensors"):
        load_final(run)


def test_weights_and_description_of_two_saves_are_not_taken_for_a_pair(tmp_path: Path):
    info = ModelInfo(architecture="resnet32", class_names=["a"], mean=[0.5] * 3, std=[0.25] * 3, input_size=32)
    save_final(tmp_path, {"w": torch.ones(3)}, info)
    description = (tmp_path / "model.json").read_bytes()
    save_final(tmp_path, {"w": torch.zeros(3)}, info)
    shutil.copy(tmp_path / "model.json", tmp_path / "other.json")
    (tmp_path / "model.json").write_bytes(description)
    with pytest.raises(UserError, match="damaged: digest differs"):
        load_final(tmp_path)
