import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from train.watch.dashboards import Dashboards
from train.watch.tracking import TrackConfig, Tracker, numbers, peak_memory, show_result


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def tracker(tmp_path: Path, clock: Clock, screen: io.StringIO):
    """A function that opens a tracker on `tmp_path`, on a plain screen unless told otherwise."""
    opened = []

    def make(terminal: bool = False, **settings) -> Tracker:
        console = Console(file=screen, force_terminal=terminal, width=200)
        given = {
            "is_main": True,
            "total_steps": 100,
            "steps_per_epoch": 10,
            "console": console,
            "clock": clock,
        }
        opened.append(Tracker(tmp_path, **(given | settings)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rates_leave_out_the_first_step_and_evaluations(tracker, clock, tmp_path):
    t = tracker()
    clock.now += 3  # opening files
    t.data_wait(3)
    clock.now += 50  # compilation
    t.step(1, 64)
    for step in (2, 3):
        clock.now += 2
        t.data_wait(0.5)
        t.step(step, 64)
        with t.evaluating():
            clock.now += 1000
            t.data_wait(1000)  # the evaluation's own data
    t.log(3, loss=2.5, lr=0.1)
    (line,) = metrics(tmp_path)
    assert line.pop("peak_memory_gb") > 0.01
    assert line == {
        "step": 3,
        "epoch": 0.3,
        "loss": 2.5,
        "lr": 0.1,
        "images_per_s": 128 / 4,
        "ceiling_images_per_s": None,
        "of_ceiling": None,
        "data_wait": 0.25,
        "first_step_s": 50.0,
    }


def test_each_line_measures_its_own_interval_and_the_session_all(tracker, clock, tmp_path):
    t = tracker()
    t.step(1, 10)
    t.log(1, loss=3.0)
    for step, seconds in ((2, 1.0), (3, 4.0)):
        t.data_wait(seconds / 2)
        clock.now += seconds
        t.step(step, 10)
        t.log(step, loss=2.0)
    assert [line["images_per_s"] for line in metrics(tmp_path)] == [None, 10.0, 2.5]
    assert [line["data_wait"] for line in metrics(tmp_path)] == [None, 0.5, 0.5]
    speed = t.speed()
    assert (speed["images_per_s"], speed["data_wait"], speed["first_step_s"]) == (20 / 5, 0.5, 0.0)


def test_the_share_of_the_ceiling(tracker, clock, tmp_path, screen):
    t = tracker()
    t.ceiling(None)
    assert screen.getvalue() == "" and t.speed()["of_ceiling"] is None
    t.ceiling(4000.0)
    t.step(1, 1000)
    for step, seconds in ((2, 0.5), (3, 1.0)):
        clock.now += seconds
        t.step(step, 1000)
        t.log(step, loss=1.0)
    assert [line["of_ceiling"] for line in metrics(tmp_path)] == [0.5, 0.25]
    assert [line["ceiling_images_per_s"] for line in metrics(tmp_path)] == [4000.0] * 2
    assert t.speed()["of_ceiling"] == pytest.approx(2000 / 1.5 / 4000)
    assert (
        "ceiling: 4,000 images/s" in screen.getvalue() and "[2,000 images/s (50% of the ceiling), " in screen.getvalue()
    )


class Recorder(Dashboards):
    """Records what a tracker sends to its dashboards."""

    def __init__(self) -> None:
        self.started, self.logged = None, []

    def start(self, resumed_at, history):
        self.started = (resumed_at, list(history))

    def log(self, step, figures):
        self.logged.append((step, figures))


def test_dashboards_are_told_what_is_written(tracker, clock):
    first, second = Recorder(), Recorder()
    session(tracker(dashboards=first), clock, range(1, 10))
    assert first.started == (None, [])
    assert [step for step, _ in first.logged] == [2, 4, 4, 6, 8, 8]
    assert first.logged[2] == (4, {"epoch": 0.4, "top1": 0.04})
    session(tracker(dashboards=second, resumed_at=6), clock, range(7, 11))
    assert second.started == (6, first.logged[:4])  # from the file, where lines of steps 8 and 9 are gone
    assert [step for step, _ in second.logged] == [8, 8, 10]


def test_numbers_are_what_can_be_plotted():
    line = {
        "step": 3,
        "loss": 1.5,
        "nan": math.nan,
        "none": None,
        "test": {"top1": 0.5, "few": None, "classes": [1.0]},
        "n": 2,
    }
    assert numbers(line | {"backend": "ffcv"}) == {"loss": 1.5, "test.top1": 0.5, "n": 2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"trackers": ["wandb", "wandb"]}, "track.trackers=.*at most once"), ({"project": " "}, "track.project")],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        TrackConfig(**settings)


def test_the_evaluating_time_of_a_failed_evaluation_is_left_out_too(tracker, clock):
    t = tracker()
    t.step(1, 10)
    with pytest.raises(RuntimeError), t.evaluating():
        clock.now += 7
        raise RuntimeError
    clock.now += 2
    t.data_wait(2)
    t.step(2, 10)
    assert t.speed()["images_per_s"] == 5 and t.speed()["data_wait"] == 1


def test_events_have_no_speed_and_nan_is_null(tracker, tmp_path, screen):
    t = tracker()
    t.log(5, loss=float("nan"), hard=float("inf"))
    t.event(5, test={"top1": 0.25, "few": None, "classes": [0.5] * 100})
    log, event = metrics(tmp_path)
    assert log["loss"] is None and log["hard"] is None
    assert event == {"step": 5, "epoch": 0.5, "test": {"top1": 0.25, "few": None, "classes": [0.5] * 100}}
    assert "step 5/100  test.top1 0.25  test.few -  test.classes (100 values)\n" in screen.getvalue()


def test_the_line_of_an_evaluation_stays_short(tracker, tmp_path, screen):
    """The file and the dashboards have every figure, the line on the screen the main ones."""
    figures = {"top1": 0.25, "top5": 0.75, "balanced_accuracy": 0.5, "few": 0.125, "nll": 1.5, "ece": 0.2}
    tracker().event(5, test=figures)
    assert metrics(tmp_path)[0]["test"] == figures
    assert screen.getvalue().endswith("step 5/100  test.top1 0.25  test.few 0.125\n")


def test_tensors_are_refused(tracker):
    with pytest.raises(TypeError):
        tracker().log(1, loss=torch.tensor(1.0))


def session(t: Tracker, clock: Clock, steps: range) -> None:
    for step in steps:
        clock.now += 1
        t.step(step, 8)
        if step % 2 == 0:
            t.log(step, loss=1 / step)
        if step % 4 == 0:
            t.event(step, top1=step / 100)


@pytest.mark.parametrize("killed_at", [6, 7, 8, 9])
def test_an_interrupted_run_has_the_lines_of_an_undisturbed_one(tracker, clock, tmp_path, killed_at):
    """The last checkpoint is that of step 6 in all cases."""
    session(tracker(), clock, range(1, 13))
    undisturbed = [
        {name: line[name] for name in line if name in ("step", "loss", "top1")} for line in metrics(tmp_path)
    ]
    keys = [set(line) for line in metrics(tmp_path)]
    (tmp_path / "metrics.jsonl").unlink()

    session(tracker(), clock, range(1, killed_at + 1))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # a power cut in the middle of a line
    session(tracker(resumed_at=6), clock, range(7, 13))
    lines = metrics(tmp_path)
    assert [{name: line[name] for name in line if name in ("step", "loss", "top1")} for line in lines] == undisturbed
    assert [set(line) for line in lines] == keys
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_start_from_the_beginning_drops_all_lines(tracker, clock, tmp_path):
    session(tracker(), clock, range(1, 5))
    first = tracker(resumed_at=None)
    assert metrics(tmp_path) == []
    first.event(0, top1=0.01)
    tracker(resumed_at=0)
    assert [line["step"] for line in metrics(tmp_path)] == [0]


def test_a_line_is_on_the_file_as_soon_as_it_is_logged(tracker, tmp_path):
    t = tracker()
    t.log(1, loss=1.0)
    assert len(metrics(tmp_path)) == 1  # nothing was flushed or closed
    t.sync()


def test_plain_lines_at_a_sensible_pace(tracker, clock, screen):
    t = tracker(total_steps=1000, steps_per_epoch=100)
    for step in range(1, 1001):
        clock.now += 0.05  # 50 s in all, 5 s an epoch
        t.step(step, 8)
        t.log(step, loss=1.0)
    shown = [int(step) for step in re.findall(r"^step (\d+)/1000", screen.getvalue(), re.MULTILINE)]
    assert shown == [1, *range(100, 1001, 100)]
    assert "loss 1  [160 images/s, waiting 0%, " in screen.getvalue()
    assert "0:45 left]" in screen.getvalue()  # at step 100


def test_plain_lines_of_long_and_of_very_short_epochs(tracker, clock, screen):
    t = tracker(total_steps=1000, steps_per_epoch=500)
    for step in range(1, 1001):
        clock.now += 0.1
        t.log(step, loss=1.0)
    assert len(screen.getvalue().splitlines()) == 11  # the first step, then each 10 s or epoch
    screen.truncate(0)
    t = tracker(total_steps=1000, steps_per_epoch=1)
    for step in range(1, 1001):
        clock.now += 0.1
        t.log(step, loss=1.0)
    assert 90 <= len(screen.getvalue().splitlines()) <= 101  # one a second, not a thousand


def test_the_bar_on_a_terminal(tracker, clock, screen, tmp_path):
    t = tracker(terminal=True, resumed_at=40)
    for step in range(41, 51):
        clock.now += 1
        t.step(step, 8)
        assert t._bar._progress.tasks[0].fields["after"] == "first step 1.0 s"  # until there are figures
    t.log(50, loss=1.25)
    t.say("a line above [not markup]")
    t.event(50, top1=0.5)
    t.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "50/100 loss 1.25  [8 images/s, waiting 0%" in shown and "0:50 left]" in shown
    assert "a line above [not markup]" in shown and "step 50/100  top1 0.5" in shown
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back
    assert metrics(tmp_path)[0]["loss"] == 1.25


def test_other_ranks_do_nothing(tracker, clock, screen, tmp_path):
    with tracker(is_main=False, terminal=True) as t:
        session(t, clock, range(1, 9))
        t.data_wait(1)
        with t.evaluating():
            t.say("x")
        t.sync()
    assert list(tmp_path.iterdir()) == [] and screen.getvalue() == ""


RESULT = {
    "test": {"top1": 0.38354, "few": None},
    "images_per_s": 12345.6,
    "classes": list(range(100)),
    "run": "a[b]",
}


def test_the_result_in_plain_lines(screen):
    show_result(RESULT, Console(file=screen, force_terminal=False, width=100))
    assert screen.getvalue() == (
        "result:\n  test.top1: 0.3835\n  test.few: -\n  images_per_s: 12,346\n  classes: (100 values)\n  run: a[b]\n"
    )


def test_the_result_on_a_terminal(screen):
    show_result(RESULT, Console(file=screen, force_terminal=True, width=100))
    assert re.search(r"test.top1 *│ *0.3835", screen.getvalue()) and "a[b]" in screen.getvalue()


def test_peak_memory_of_this_process():
    before = peak_memory(torch.device("cpu"))
    assert 50e6 < before < 1e12
    block = torch.ones(60_000_000)  # 240 MB
    assert peak_memory(torch.device("cpu")) >= before
    assert peak_memory(torch.device("cpu")) > block.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_a_gpu():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    block = torch.ones(60_000_000, device=device)
    assert peak_memory(device) >= before + block.nbytes


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"3", b"null", b'{"step": "4"}', b'{"step": null}', b"\xff\x00", b'{"ste']
)
def test_a_damaged_line_is_dropped(tracker, tmp_path: Path, line: bytes):
    good = b'{"step": 5, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b"\n" + good + line)
    tracker(resumed_at=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good * 2
