"""Traces: the requested steps, complete or not at all, and no cost where none are requested."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from train.watch.profiling import ProfileConfig, traced
from train.watch.tracking import Tracker


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def tracker(tmp_path: Path, screen: io.StringIO) -> Iterator[Tracker]:
    (tmp_path / "run").mkdir()
    console = Console(file=screen, width=200)
    with Tracker(tmp_path / "run", is_main=True, total_steps=20, steps_per_epoch=5, console=console) as opened:
        yield opened


def work(steps: Iterator[int]) -> list[int]:
    """A matrix product in every step."""
    done = []
    for step in steps:
        torch.ones(8, 8) @ torch.ones(8, 8)
        done.append(step)
    return done


def traces(folder: Path) -> dict[str, list[str]]:
    """{file: names of its events}"""
    found = {}
    for path in folder.glob("*trace*"):
        found[path.name] = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    return found


@pytest.mark.parametrize(
    ("steps", "start", "count", "recorded"),
    [
        (range(0, 8), 3, 2, [3, 4]),
        (range(0, 8), 0, 1, [0]),
        (range(5, 8), 3, 4, [5, 6]),  # resumed in the middle of them
        (range(5, 8), 6, 9, [6, 7]),  # the training ends first
    ],
)
def test_the_trace_holds_the_steps_that_were_asked_for(
    tracker: Tracker, tmp_path: Path, screen: io.StringIO, steps: range, start: int, count: int, recorded: list[int]
) -> None:
    asked = ProfileConfig(start=start, steps=count)
    assert work(traced(steps, asked, tmp_path, tracker, is_main=True)) == list(steps)
    ((name, events),) = traces(tmp_path).items()
    assert name == f"trace_{recorded[0]}-{recorded[-1]}.json"
    assert sorted({event for event in events if event.startswith("step ")}) == [f"step {step}" for step in recorded]
    assert events.count("aten::mm") == len(recorded)
    assert screen.getvalue().count(str(tmp_path / name)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", name]


def test_none_asked_none_written(tracker: Tracker, tmp_path: Path, screen: io.StringIO) -> None:
    assert work(traced(range(4), ProfileConfig(), tmp_path, tracker, is_main=True)) == [0, 1, 2, 3]
    assert work(traced(range(4), ProfileConfig(start=1, steps=2), tmp_path, tracker, is_main=False)) == [0, 1, 2, 3]
    assert not traces(tmp_path) and not screen.getvalue()


def test_steps_that_do_not_come_are_pointed_out(tracker: Tracker, tmp_path: Path, screen: io.StringIO) -> None:
    assert work(traced(range(5, 8), ProfileConfig(start=1, steps=2), tmp_path, tracker, is_main=True)) == [5, 6, 7]
    assert not traces(tmp_path) and "has the steps 5 to 7, profile.start=1" in screen.getvalue()


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_within_drops_the_recording(tracker: Tracker, tmp_path: Path, at: int) -> None:
    steps = traced(range(8), ProfileConfig(start=1, steps=4), tmp_path, tracker, is_main=True)
    with pytest.raises(RuntimeError):
        for step in steps:
            if step == at:
                raise RuntimeError
    steps.close()
    assert not traces(tmp_path) and not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    work(traced(range(3), ProfileConfig(start=1, steps=1), tmp_path, tracker, is_main=True))  # another trace can begin
    assert list(traces(tmp_path)) == ["trace_1-1.json"]


@pytest.mark.parametrize("name", ["start", "steps"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"profile.{name}=-1"):
        ProfileConfig(**{name: -1})


@pytest.mark.parametrize("whole", [True, False])
def test_a_disk_that_takes_no_trace_ends_no_training(
    tracker: Tracker, tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Torch prints that it cannot write, and leaves no file or its beginning."""

    def export(recorder: torch.profiler.profile, path: str) -> None:
        if not whole:
            Path(path).write_text('{"traceEvents": [')

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    assert work(traced(range(4), ProfileConfig(start=1, steps=2), tmp_path, tracker, is_main=True)) == [0, 1, 2, 3]
    assert "warning: no trace: " in screen.getvalue() and "the training goes on" in screen.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
