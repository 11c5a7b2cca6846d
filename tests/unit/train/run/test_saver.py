"""Checkpoints that are written while training goes on: what they hold, and what becomes of an error."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from train.run.checkpoint import Keep, load_latest
from train.run.saver import Saver

KEEP = Keep(2)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    made = Saver(tmp_path)
    yield made
    made.close()


def test_the_tensors_are_those_of_the_call(saver: Saver, tmp_path: Path) -> None:
    """Training changes weights in place while the thread has not even begun to write; the next save waits for the thread."""
    weight, go = torch.zeros(3), threading.Event()
    saver.save(1, {"model": {"weight": weight}}, {}, KEEP, before_writing=lambda: go.wait(30) and None)
    weight += 1
    assert load_latest(tmp_path) is None
    threading.Timer(0.05, go.set).start()
    saver.save(2, {"model": {"weight": weight}}, {}, KEEP, before_writing=lambda: None)
    saver.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_00000001", "step_00000002"]
    newest = load_latest(tmp_path)
    assert newest is not None and newest.step == 2 and newest.tensors["model"]["weight"].tolist() == [1, 1, 1]
    (tmp_path / "checkpoints/latest").write_bytes(b"step_00000001")
    first = load_latest(tmp_path)
    assert first is not None and first.tensors["model"]["weight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("told_by", ["save", "wait"])
def test_an_error_is_told_by_the_next_call(saver: Saver, tmp_path: Path, told_by: str) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")

    def begin(before_writing: Callable[[], None] = lambda: None) -> None:
        saver.save(1, {"model": {}}, {}, KEEP, before_writing)

    begin()
    with pytest.raises(
        UserError, match=f"cannot save a checkpoint in {tmp_path}: File exists; the earlier ones are intact"
    ):
        begin() if told_by == "save" else saver.wait()
    saver.wait()  # told once


def test_closing_waits_and_raises_nothing(tmp_path: Path) -> None:
    saver, done = Saver(tmp_path), []
    saver.save(1, {"model": {}}, {}, KEEP, before_writing=lambda: done.append(1))
    saver.close()
    saver.close()
    assert done and (tmp_path / "checkpoints/latest").read_bytes() == b"step_00000001"
    (tmp_path / "checkpoints/latest").unlink()
    (tmp_path / "checkpoints/latest").mkdir()
    saver = Saver(tmp_path)
    saver.save(2, {"model": {}}, {}, KEEP, before_writing=lambda: None)
    saver.close()
