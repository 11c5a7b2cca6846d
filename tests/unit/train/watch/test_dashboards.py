"""TensorBoard and W&B: what reaches them, and that a resumed run shows no step twice.

Uses the real packages where they are installed (`pip install -e '.[track]'`), and everywhere a stand-in for W&B and its server,
on which accelerate's own tracker runs.
"""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from helpers.launch import run, tiny_config
from helpers.wandb_stand_in import stand_in

from pipelines.errors import UserError
from train.watch.dashboards import Dashboards, require_packages

SETTINGS = {"optim.lr": 0.1, "track.trackers": ["wandb"]}


@pytest.fixture(autouse=True)
def one_process() -> None:
    PartialState(cpu=True)


@pytest.fixture
def wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with stand_in(tmp_path_factory.mktemp("stand_in")) as package:
        yield package


def boards(folder: Path, *names: str, is_main: bool = True) -> Dashboards:
    return Dashboards(list(names), "project", folder, SETTINGS, is_main)


def test_a_missing_package_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_packages([])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed; type pip install wandb"):
        require_packages(["wandb"])
    arguments = [tiny_config(tmp_path, tiny), "run=r", "track.trackers=[tensorboard]"]
    done = run("teacher", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "type pip install tensorboard" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_wandb_is_told_which_run_it_is(wandb, tmp_path: Path) -> None:
    with boards(tmp_path, "wandb") as first:
        first.start(None, [])
        first.log(7, {"loss": 1.0})
    with boards(tmp_path, "wandb") as second:
        second.start(7, [(7, {"loss": 1.0})])
    with boards(tmp_path, "wandb") as again:  # from the beginning: the steps are logged again, in a new run
        again.start(None, [])
    a, b, c = wandb.given
    assert a["project"] == "project" and a["name"] == tmp_path.name and a["dir"] == str(tmp_path)
    assert a["resume"] == "allow" and a["id"] == b["id"] != c["id"]
    assert wandb.sent[0] == SETTINGS
    assert [run.ended for run in wandb.runs] == [0, 0, 0]


@pytest.mark.parametrize(
    ("known", "sent"),
    [
        (0, [2, 4, 6, 7, 8]),  # offline, or all of it lost with the killed process: everything
        (5, [6, 7, 8]),  # lost in part
        (8, [8]),  # nothing lost: 7 was logged before the kill
    ],
)
def test_wandb_gets_what_it_lacks_and_nothing_twice(wandb, tmp_path: Path, known: int, sent: list[int]) -> None:
    """Killed after step 7, resumed from the checkpoint of step 6."""
    wandb.starting_step = known
    with boards(tmp_path, "wandb") as opened:
        opened.start(6, [(step, {"loss": 1 / step}) for step in (2, 4, 6)])
        opened.log(7, {"loss": 1 / 7})
        opened.log(8, {"loss": 1 / 8})
    assert wandb.runs[0].logged == [(step, {"loss": 1 / step}) for step in sent]


def test_a_failed_run_is_shown_as_failed(wandb, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), boards(tmp_path, "wandb") as opened:
        opened.start(None, [])
        raise RuntimeError
    assert wandb.runs[0].ended == 1


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_dashboard_that_fails_takes_no_training_with_it(
    wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: str
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError("the service\nis gone")

    with boards(tmp_path, "wandb") as opened:
        opened.start(None, [])
        opened.log(1, {"loss": 1.0})
        monkeypatch.setattr(wandb.Run, fails, lost)
        opened.log(2, {"loss": 0.5})
        opened.log(3, {"loss": 0.25})
    said = "warning: wandb failed and is left out from here on: ConnectionResetError: the service is gone; metrics.jsonl has "
    assert capfd.readouterr().err.count(said) == 1
    assert len(wandb.runs[0].logged) == (1 if fails == "log" else 3)


def test_a_wandb_that_does_not_start_is_the_users_to_mend(wandb, tmp_path: Path) -> None:
    wandb.failure = "No API key\nconfigured."
    with pytest.raises(UserError, match="No API key configured.; type wandb login, or WANDB_MODE=offline"):
        boards(tmp_path, "wandb").start(None, [])


def test_other_ranks_open_nothing(wandb, tmp_path: Path) -> None:
    with boards(tmp_path, "tensorboard", "wandb", is_main=False) as opened:
        opened.start(None, [])
        opened.log(1, {"loss": 1.0})
    assert not wandb.given and not list(tmp_path.iterdir())


def test_a_run_shows_what_its_metrics_hold(wandb, tiny: Path, tmp_path: Path) -> None:
    arguments = ["run=r", "schedule.epochs=2", "eval.every_epochs=1", "track.trackers=[wandb]", "track.project=mine"]
    run("teacher", tiny_config(tmp_path, tiny), *arguments, cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    shown = wandb.runs[0].logged
    assert wandb.given[0]["project"] == "mine" and wandb.sent[0]["optim.lr"] == 0.05
    assert [step for step, _ in shown] == [7, 7, 14, 14]  # the last line is that of the result
    for line, (_, values) in zip(lines, shown, strict=False):
        flat = line | {f"test.{name}": value for name, value in line.get("test", {}).items()}
        assert values and all(flat[name] == value for name, value in values.items())
    assert {"loss", "lr", "epoch", "images_per_s", "data_wait"} <= set(shown[2][1])
    result = json.loads((tmp_path / "runs/r/result.json").read_text())
    assert shown[-1][1]["test.top1"] == result["test"]["top1"] and "test.many" not in shown[-1][1]
    for name in ("balanced_accuracy", "nll", "ece"):
        assert shown[-1][1][f"test.{name}"] == result["test"][name] and name in lines[1]["test"]


# ---- the real packages ----


def test_tensorboard_forgets_what_is_done_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = boards(tmp_path, "tensorboard")
    killed.start(None, [])
    for step in (2, 4, 6, 8):
        killed.log(step, {"loss": float(step), "epoch": step / 10})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [2, 4, 6, 8]  # on disk before it is closed
    with boards(tmp_path, "tensorboard") as resumed:
        resumed.start(6, [])
        for step in (8, 10):
            resumed.log(step, {"loss": step + 0.5, "epoch": step / 10})
            resumed.log(step, {"test.top1": 0.5, "epoch": step / 10})
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [
        (2, 2),
        (4, 4),
        (6, 6),
        (8, 8.5),
        (10, 10.5),
    ]
    assert [point.step for point in events.Scalars("epoch")] == [2, 4, 6, 8, 10]
    assert events.Tags()["tensors"] == ["settings/text_summary"]


def history(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every row in a W&B file: LevelDB's log format, after a head of 7 bytes."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, whole, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block is too short for a head
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, whole = records.Record.FromString(whole), b""
            row = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
            rows += [(int(row["_step"]), float(row["loss"]))] if row else []
    return rows


def test_the_newest_offline_session_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    before = [(step, {"loss": float(step)}) for step in (2, 4, 6)]
    with boards(tmp_path, "wandb") as first:
        first.start(None, [])
        for step, figures in [*before, (8, {"loss": 8.0})]:
            first.log(step, figures)
    with boards(tmp_path, "wandb") as second:
        second.start(6, before)
        second.log(8, {"loss": 8.5})
    newest = next((tmp_path / "wandb/latest-run").glob("*.wandb"))
    assert history(newest) == [(2, 2.0), (4, 4.0), (6, 6.0), (8, 8.5)]
    assert len({path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1  # one id
