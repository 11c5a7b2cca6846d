import errno
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.tensors import assert_same, damage, some_tensors

from pipelines.errors import UserError
from train.run import checkpoint
from train.run.checkpoint import Keep, SaveConfig, load_best, load_from, load_latest, pointed_at, save

ROOT = Path(__file__).parents[4]


def folders(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


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


@pytest.mark.parametrize("last", [1, 2])
def test_a_run_that_trains_on_may_prune_what_a_reader_has_listed(tmp_path: Path, monkeypatch, last: int) -> None:
    for step in range(1, last + 1):
        save(tmp_path, step, some_tensors(step), {}, keep=Keep(last, best=1))
    read, saved = checkpoint._read_folder, iter(range(last))

    def late(folder: Path):
        if next(saved, None) == 0:
            for step in range(11, 11 + last):
                save(tmp_path, step, some_tensors(step), {}, keep=Keep(last, best=step))
        return read(folder)

    monkeypatch.setattr(checkpoint, "_read_folder", late)
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.step == 10 + last
    assert_same(loaded.tensors, some_tensors(10 + last))


def test_a_better_one_may_take_the_place_of_the_best_that_is_read(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1, some_tensors(1), {}, keep=Keep(1, best=1))
    read, saved = checkpoint._read_folder, iter(range(1))

    def late(folder: Path):
        if next(saved, None) == 0:
            save(tmp_path, 2, some_tensors(2), {}, keep=Keep(1, best=2))
        return read(folder)

    monkeypatch.setattr(checkpoint, "_read_folder", late)
    assert load_best(tmp_path).step == 2


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
from train.run.checkpoint import Keep, load_latest, save

def save_for_ever(run, steps):
    for step in steps:
        weights = {f"w{i}": torch.full((100_000,), float(step)) for i in range(4)}
        tensors = {"model": weights, "optimizer": {"m": torch.full((1000,), step)}}
        save(run, step, tensors, {"step": step}, keep=Keep(2))

torch.set_num_threads(1)
run, draw, last = Path(sys.argv[1]), random.Random(0), 0
begun = time.monotonic()
save_for_ever(run.with_name("timed"), range(1, 5))
one = (time.monotonic() - begun) / 4  # on this machine and its disk
for _ in range(8):
    child = os.fork()
    if child == 0:
        save_for_ever(run, itertools.count(last + 1))
    time.sleep(draw.uniform(0.0, 8 * one))
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
    drill = subprocess.run([warm.python(), "-c", DRILL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert drill.returncode == 0, drill.stderr
    last = int(drill.stdout)
    assert last >= 4  # it made progress
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


def test_the_best_stays_also_where_a_later_session_selects_none(tmp_path):
    save(tmp_path, 3, {}, {}, keep=Keep(1, best=3))
    for step in (4, 5):
        save(tmp_path, step, {}, {}, keep=Keep(1))
    assert folders(tmp_path) == ["best", "latest", "step_00000003", "step_00000005"]
    assert load_best(tmp_path).step == 3


def test_the_same_step_with_another_state_is_never_without_a_checkpoint(tmp_path, monkeypatch):
    """An evaluation that was interrupted is made up for, and its step saved once more."""
    save(tmp_path, 3, some_tensors(), {"unevaluated": True}, keep=Keep(1))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the first thing that could take a folder away
        patch.setattr("train.run.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 3, some_tensors(), {"unevaluated": False}, keep=Keep(1))
    found = load_latest(tmp_path)
    assert found is not None and found.step == 3
    save(tmp_path, 3, some_tensors(), {"unevaluated": False}, keep=Keep(1))
    found = load_latest(tmp_path)
    assert found is not None and found.state == {"unevaluated": False} and found.warnings == []
    assert folders(tmp_path) == ["latest", "step_00000003"]


def test_a_checkpoint_that_cannot_be_deleted_ends_no_training(tmp_path, monkeypatch, capfd):
    """Open elsewhere on a network disk, for example; what is in its way is written all the same."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr("train.run.checkpoint.shutil.rmtree", refused)
    for step in (1, 2, 3):
        save(tmp_path, step, some_tensors(step), {}, keep=Keep(1))
    found = load_latest(tmp_path)
    assert found is not None and found.step == 3
    assert "step_00000001 is no longer needed, and cannot be deleted: Directory not empty" in capfd.readouterr().err
    monkeypatch.undo()
    save(tmp_path, 4, some_tensors(4), {}, keep=Keep(1))
    assert folders(tmp_path) == ["latest", "step_00000004"]


def test_another_runs_checkpoint_is_read_by_folder_or_run(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step, some_tensors(step), {"n": step}, keep=Keep(2))
    first = load_from(str(tmp_path / "run/checkpoints/step_00000001"))
    assert (first.step, first.state, load_from(str(tmp_path / "run")).step) == (1, {"n": 1}, 2)
    assert_same(first.tensors, some_tensors(1))
    with pytest.raises(UserError, match="resume=.*: no checkpoint there"):
        load_from(str(tmp_path))


@pytest.mark.parametrize("pointer", [b"", b"3", b"\xff", b"step_zz", b"/etc", b"..", b"a\0b", b"x" * 400])
def test_a_damaged_pointer_names_no_checkpoint(tmp_path, pointer):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best").write_bytes(pointer)
    (tmp_path / "run.json").touch()
    assert pointed_at(tmp_path, "best") is None
    with pytest.raises(UserError, match="has no best checkpoint"):
        load_best(tmp_path)


def test_a_home_folder_that_is_not_known():
    with pytest.raises(UserError, match="is no home folder here"):
        load_from("~nosuch/x")
