"""tools/reproduce.py on a made-up archive, through the entry scripts themselves: plan, interruption, failures, sums."""

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from test_cifar import COARSE, member, pack, python2_pickle

from pipelines.errors import UserError
from tools import reproduce, reproduce_jobs, reproduce_outcomes, reproduce_plan
from tools.reproduce_jobs import Ending, Jobs, Stopped, claimed, clock, makespan, start_process
from tools.reproduce_outcomes import outcome, spread
from tools.reproduce_plan import Choice, Task, scaled_schedule, study_tasks, table_tasks, wanted
from tools.reproduce_report import PAPER, table_report, to_markdown
from train.config import Config, diff, load
from train.exits import guard

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["model.name=resnet20", "optim.batch=32"]
ONE_EPOCH, TEN_EPOCHS = 0.005, 0.05


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training images of the first class and one of each other: the least from which imbalance 10 can be drawn."""
    names = {"fine_label_names": [f"kind_{label}" for label in range(100)], "coarse_label_names": COARSE}
    train = member(109, 100, 1) | {"fine_labels": [0] * 10 + list(range(1, 100))}
    parts = {"meta": names, "train": train, "test": member(100, 100, 2)}
    members = {name: python2_pickle(content) for name, content in parts.items()}
    return pack(tmp_path_factory.mktemp("archive") / "mini.tar", members)


class Here:
    """In place of a process: the same program, run to its end in this one, which saves its imports."""

    def __init__(self, command: list[str], folder: Path, log: IO[str], threads: int):
        assert threads >= 1
        module = importlib.import_module(str(Path(command[0]).relative_to(ROOT).with_suffix("")).replace("/", "."))
        argv, before = sys.argv, torch.get_num_threads()
        sys.argv = command
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                self.returncode = guard(module.main)
        finally:
            sys.argv = argv
            torch.set_num_threads(before)

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_jobs, "start_process", Here)
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0)


def call(*arguments: object) -> tuple[int, str, str]:
    """(exit code, output, errors) of `python tools/reproduce.py ARGUMENTS`."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["tools/reproduce.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return guard(reproduce.main), out.getvalue(), err.getvalue()
    finally:
        sys.argv = argv


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def table_command(archive: Path, out: Path, scale: float = ONE_EPOCH, seed: int = 0) -> list[object]:
    return [
        "cifar100-lt",
        "--archive",
        archive,
        "--out",
        out,
        "--epochs-scale",
        scale,
        "--imbalance",
        10,
        "--seeds",
        seed,
        *SMALL,
    ]


@pytest.fixture(scope="module")
def done(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(OUT, screen): imbalance 10, seed 1, one epoch of each method."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_jobs, "start_process", Here)
        patch.setattr(reproduce_jobs, "_POLL_SECONDS", 0)
        code, screen, errors = call(*table_command(archive, out, seed=1), "--report", out.parent / "page.md")
    assert code == 0, screen + errors
    return out, screen


# ---- the whole way ----


def test_it_says_how_long_it_takes_before_it_starts(done: tuple[Path, str]) -> None:
    out, screen = done
    lines = screen.splitlines()
    (said,) = [i for i, line in enumerate(lines) if line.startswith("expected: ")]
    started = [line.removeprefix("start: ") for line in lines[said:] if line.startswith("start: ")]
    assert started == ["bsce_if10-e1-s1", "cache_bsce_if10-e1-s1-v1", "dive_if10-e1-s1", "ce_if10-e1-s1"]
    planned = [line.split()[0] for line in lines[:said] if line.endswith(" expected")]
    assert planned == started and "images/s of each: hard labels " in lines[said - 1]
    costs = read(out / "timing.json")["costs"]
    assert all(image_s > 0 for _, image_s in (costs[kind] for kind in ("teacher", "cache", "distill")))
    assert not (out / "timing").exists()


def test_the_runs_are_the_shipped_configurations(done: tuple[Path, str]) -> None:
    out, _ = done
    configs = {path.name.split("_")[0]: (path / "config.yaml").read_text() for path in (out / "runs").iterdir()}
    assert set(configs) == {"ce", "bsce", "dive"}
    for method, text in configs.items():
        assert "\nseed: 1\n" in text and "train: data/cifar100_lt_if10/train.beton" in text
        assert f"  seed: {0 if method == 'dive' else 1}\n" in text, "data.seed is the configuration's"
    assert "paths: [caches/bsce_if10-e1-s1-v1]" in configs["dive"]
    (identity,) = (out / "caches" / "bsce_if10-e1-s1-v1").glob("bsce_if10-e1-s1-*/identity.json")
    assert read(identity)["data_seed"] == 0


def test_the_table_has_the_runs_figures_and_rows_for_what_was_not_run(done: tuple[Path, str]) -> None:
    out, _ = done
    report = read(out / "cifar100_lt.json")
    rows = {(row["method"], row["imbalance"]): row for row in report["rows"]}
    assert set(rows) == set(PAPER) and rows["dive", 100]["state"] == "not run"
    top1 = {}
    for method in ("ce", "bsce", "dive"):
        result = read(out / "runs" / f"{method}_if10-e1-s1" / "result.json")
        row, top1[method] = rows[method, 10], 100 * result["test"]["top1"]
        assert row["top1"] == {"mean": pytest.approx(top1[method]), "std": None, "n": 1}
        assert row["few"]["mean"] == pytest.approx(100 * result["test"]["few"]) and row["many"]["mean"] is None
        assert row["images_per_s"]["mean"] == pytest.approx(result["speed"]["images_per_s"])
    assert rows["dive", 10]["gain"]["mean"] == pytest.approx(top1["dive"] - top1["bsce"])
    assert report["caches"][0]["views"] == 1 and report["caches"][0]["megabytes"] > 0.01
    page = (out / "cifar100_lt.md").read_text()
    assert page == (out.parent / "page.md").read_text() and read(out.parent / "page.json") == report
    assert "| 100 | CE | 38.35 | not run |" in page and f"torch {torch.__version__}" in page
    assert "The draw of images differs from the papers'" in page and "last epoch: nothing was selected" in page
    assert str(out) not in page, "no path of this machine in a page that is published"


def test_what_is_finished_is_not_run_again(done: tuple[Path, str], archive: Path, in_process: None) -> None:
    """Nor are caches and data missed, once no run needs them; one deleted run brings back itself alone."""
    out, _ = done
    hidden = [(out / name, out.parent / name) for name in ("caches", "data")]
    for here, there in hidden:
        here.rename(there)
    code, screen, _ = call(*table_command(archive, out, seed=1))
    for here, there in hidden:
        there.rename(here)
    assert code == 0 and "everything is finished" in screen and "start: " not in screen
    shutil.rmtree(out / "runs" / "dive_if10-e1-s1")
    code, screen, _ = call(*table_command(archive, out, seed=1))
    assert code == 0 and [line for line in screen.splitlines() if line.startswith("start")] == [
        "start: dive_if10-e1-s1"
    ]
    assert "bsce_if10-e1-s1                              finished, top-1 " in screen


def test_plan_runs_and_writes_no_training(done: tuple[Path, str], archive: Path, in_process: None) -> None:
    out, _ = done
    table = (out / "cifar100_lt.md").read_bytes()
    code, screen, _ = call(*table_command(archive, out, seed=7), "--plan")
    assert code == 0 and "expected: 0:0" in screen and "start: " not in screen
    assert not (out / "runs" / "bsce_if10-e1-s7").exists() and (out / "cifar100_lt.md").read_bytes() == table


def test_foreign_runs_and_own_settings_are_refused(done: tuple[Path, str], archive: Path) -> None:
    out, _ = done
    command = table_command(archive, out, seed=1)
    code, _, errors = call(*command, "optim.lr=0.3")
    assert code == 2 and "ce_if10-e1-s1 was started with other settings" in errors.replace("bsce", "ce")
    assert "optim.lr: 0.1 -> 0.3" in errors
    for setting in ("seed=3", "distill.tau=4", "data.train=x.beton", "run=x"):
        code, _, errors = call(*command, setting)
        assert code == 2 and f"error: {setting}: " in errors and "is set by this tool" in errors
    code, _, errors = call(*command, "optim.lrr=1")
    assert code == 2 and "nearest: optim.lr" in errors
    settings = out / "runs" / "dive_if10-e1-s1" / "config.yaml"  # a run may move its cache; a row is of one cache
    own = settings.read_text()
    settings.write_text(own.replace("caches/bsce_if10", "caches/another"))
    code, _, errors = call(*command)
    settings.write_text(own)
    assert code == 2 and "cache.paths: [caches/another" in errors
    record = out / "runs" / "ce_if10-e1-s1" / "run.json"
    before = record.read_text()
    record.write_text(json.dumps(read(record) | {"facts": {"train": "0" * 32}}))
    code, _, errors = call(*command)
    record.write_text(before)
    assert code == 2 and "was trained on other records" in errors


def test_interrupted_it_goes_on(
    done: tuple[Path, str], archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a real training process: it stops, the table says how far it is, the same command finishes it."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(done[0] / "data", out / "data")
    shutil.copy(done[0] / "timing.json", out)
    command = [*table_command(archive, out, TEN_EPOCHS, seed=5), "--methods", "ce"]
    folder = out / "runs" / "ce_if10-e10-s5"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not (folder / "checkpoints" / "latest").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0.02)
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code, screen, errors = call(*command)
    watcher.join()
    assert code == 130 and "stopped; the same command goes on" in screen, screen + errors
    assert read(folder / "run.json")["sessions"][0]["ended"] and not (folder / "result.json").exists()
    (row,) = [row for row in read(out / "cifar100_lt.json")["rows"] if (row["method"], row["imbalance"]) == ("ce", 10)]
    assert row["state"].startswith("unfinished: epoch ") and row["state"].endswith(" of 10")

    monkeypatch.setattr(reproduce_jobs, "start_process", Here)
    code, screen, _ = call(*command)
    assert code == 0 and "done: ce_if10-e10-s5" in screen and "expected, from epoch " in screen
    log = (out / "logs" / "ce_if10-e10-s5.log").read_text()
    assert log.count("$ python ") == 2 and "resumed after step" in log
    assert outcome(table_tasks(small_choice(archive, TEN_EPOCHS), [10], [5], ["ce"])[-1], out, None).state == "finished"


def test_the_studies_differ_in_one_thing_each(
    done: tuple[Path, str], archive: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the teacher of the table, at imbalance 10, for which the small archive suffices."""
    out, _ = done
    monkeypatch.setattr(reproduce_plan, "STUDIES_IMBALANCE", 10)
    teacher = out / "runs" / "bsce_if10-e1-s1"
    options = ["--archive", archive, "--out", out, "--teacher", teacher, "--epochs-scale", ONE_EPOCH]
    code, screen, errors = call("cifar100-lt-studies", *options, *SMALL)
    assert code == 0, screen + errors
    report = read(out / "cifar100_lt_studies.json")
    rows = {row["role"]: row for row in report["rows"]}
    assert list(rows) == ["online", "cache", "tenth", "rule", "matched"]
    assert (rows["cache"]["tau"], rows["cache"]["p"], rows["matched"]["tau"], rows["matched"]["p"]) == (
        [3],
        0.5,
        [6],
        1,
    )
    for row in rows.values():
        assert row["finished"] == 1 and row["top1"]["mean"] is not None and row["wall_s"]["mean"] >= 0
        assert (row["cache"] is None) == (row["role"] == "online")
    page = (out / "cifar100_lt_studies.md").read_text()
    assert "| (f) matched: the paper's T = tau / p on both sides, p = 1 | 6 | 1 | 6 | 1 |" in page
    assert "teacher: bsce_if10-e1-s1, given: 1 epochs, top-1 " in page


# ---- the plan ----


def small_choice(
    archive: Path = Path("archive"), scale: float = 1.0, settings: tuple[str, ...] = tuple(SMALL)
) -> Choice:
    return Choice(archive, scale, settings, 1)


def test_the_plan_of_the_whole_table() -> None:
    tasks = table_tasks(small_choice(settings=("precision=bf16",)), (50, 10), (1, 2))
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 2 + 4 * 4
    for i, task in enumerate(tasks):
        assert set(task.needs) <= set(names[:i]), "in an order in which they can run"
    by_name = {task.name: task for task in tasks}
    student = by_name["dive_if50-s2"]
    assert student.teacher == "bsce_if50-s2" and student.needs == ("data_if50", "cache_bsce_if50-s2-v200")
    assert student.settings.cache.paths == ["caches/bsce_if50-s2-v200"] and student.settings.seed == 2
    cache = by_name["cache_bsce_if50-s2-v200"]
    assert cache.needs == ("data_if50", "bsce_if50-s2") and cache.settings.distill.teacher == "bsce_if50-s2"
    assert all(task.settings.precision == "bf16" for task in tasks if task.kind != "data")
    assert by_name["ce_if10-s1"].settings.schedule.milestones == [120, 160]


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (1, []),
        (0.2, ["epochs=40", "warmup_epochs=1", "milestones=[24,32]"]),
        (0.01, ["epochs=2", "warmup_epochs=0", "milestones=[1]"]),
        (0.005, ["kind=constant", "epochs=1", "warmup_epochs=0", "milestones=[]"]),
        (2, ["epochs=400", "warmup_epochs=10", "milestones=[240,320]"]),
    ],
)
def test_schedules_are_scaled_with_all_their_boundaries(scale: float, settings: list[str]) -> None:
    file = ROOT / "configs" / "cifar100_lt" / "ce_if100.yaml"
    assert scaled_schedule(file, scale) == [f"schedule.{setting}" for setting in settings]


def test_the_plan_of_the_studies() -> None:
    tasks = {task.role: task for task in study_tasks(small_choice(scale=0.2), [0], None) if task.is_run}
    found = {
        role: (bool(t.settings.cache.paths), t.settings.data.views, t.settings.distill.tau, t.settings.distill.p)
        for role, t in tasks.items()
        if role != "bsce"
    }
    assert found == {
        "online": (False, None, 3, 0.5),
        "cache": (True, None, 3, 0.5),
        "tenth": (True, 4, 3, 0.5),
        "rule": (True, None, None, 0.5),
        "matched": (True, None, 6, 1),
    }
    assert {task.settings.schedule.epochs for task in tasks.values()} == {40}
    assert tasks["online"].needs == ("data_if100", "bsce_if100-e40-s0")
    given = study_tasks(small_choice(scale=0.2), [0, 1], Path("elsewhere") / "mine-s0")
    assert not [task for task in given if task.role == "bsce"]
    assert [task.folder for task in given if task.kind == "cache"] == ["caches/mine-s0-v40", "caches/mine-s0-v4"]


def test_makespan_keeps_the_order_and_the_slots() -> None:
    tasks = table_tasks(small_choice(), [10], [0])  # data, bsce, cache, dive, ce
    seconds = {"data": 1.0, "bsce": 10.0, "cache": 5.0, "dive": 10.0, "ce": 12.0}
    assert makespan(tasks, lambda task: seconds[task.role], 1) == 38
    assert makespan(tasks, lambda task: seconds[task.role], 2) == 26
    assert makespan(tasks[3:], lambda task: seconds[task.role], 2) == 12, "what is not among them is there already"


# ---- processes ----


def program(name: str, text: str, *needs: str) -> Task:
    return Task(name=name, kind="data", role="x", imbalance=10, folder=name, arguments=(text,), needs=needs)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, list[str]], Jobs]]:
    """Makes Jobs that run the Python texts of `program`, without imports."""
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        reproduce_jobs,
        "start_process",
        lambda command, folder, log, threads: start_process(["-I", "-S", "-c", command[1]], folder, log, threads),
    )
    yield lambda slots, said: Jobs(tmp_path, slots, 1, said.append)


def test_a_failure_takes_only_what_needs_it(jobs: Callable[[int, list[str]], Jobs]) -> None:
    said: list[str] = []
    tasks = [
        program("a", "print('error: no room'); print('more'); raise SystemExit(2)"),
        program("b", "", "a"),
        program("c", "", "b"),
        program("d", "print('fine')"),
    ]
    ended = jobs(1, said).run(tasks)
    assert (ended["a"].code, ended["a"].words) == (2, "error: no room (exit code 2)")
    assert (ended["b"].code, ended["b"].words) == (None, "it needs a, which failed") and ended["c"].code is None
    assert ended["d"].code == 0 and any(line.startswith("failed: a: error: no room") for line in said)


def test_as_many_at_a_time_as_asked_for(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    """Two that wait for each other, and one after both."""
    meet = "import os, time\nopen('{0}', 'w').close()\nend = time.monotonic() + 20\n"
    meet += "while not os.path.exists('{1}'): time.sleep(0.01 if time.monotonic() < end else -1)"
    said: list[str] = []
    tasks = [
        program("a", meet.format("a", "b")),
        program("b", meet.format("b", "a")),
        program("c", "open('a')", "a", "b"),
    ]
    ended = jobs(2, said).run(tasks)
    assert [end.code for end in ended.values()] == [0, 0, 0] and said[:2] == ["start: a", "start: b"]
    assert said.index("start: c") > max(
        i for i, line in enumerate(said) if line.startswith("done: ") and "done: c" not in line
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_each_once_and_starts_no_more(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, number: signal.Signals
) -> None:
    save = "import time\nopen('{0}', 'w').close()\ntry: time.sleep(20)\nexcept KeyboardInterrupt: open('{0}.saved', 'x').close()"

    def interrupt() -> None:
        while not all((tmp_path / name).exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        jobs(2, []).run(
            [program("a", save.format("a")), program("b", save.format("b")), program("c", "open('c', 'w')")]
        )
    assert stopped.value.code == 128 + number and signal.getsignal(number) is before
    assert all((tmp_path / f"{name}.saved").exists() for name in "ab") and not (tmp_path / "c").exists()


STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: open('asked', 'w').close())
open('ready', 'w').close()
while True: time.sleep(0.05)
"""


def test_killed_it_leaves_nothing_running_and_out_is_kept_till_then(tmp_path: Path) -> None:
    """kill -9 of the tool: its training is asked to stop by the kernel, and holds OUT for as long as it is still saving."""
    source, target = os.pipe()
    tool = os.fork()
    if tool == 0:  # the tool: no return from here
        with claimed(tmp_path), open(tmp_path / "log", "w") as log:
            process = start_process(["-I", "-S", "-c", STUBBORN], tmp_path, log, 1)
            os.write(target, str(process.pid).encode())
            time.sleep(60)
        os._exit(0)
    training = int(os.read(source, 20))
    try:
        wait_for(tmp_path / "ready")
        os.kill(tool, signal.SIGKILL)
        os.waitpid(tool, 0)
        wait_for(tmp_path / "asked")
        with (
            pytest.raises(UserError, match=r"is in use by .* a training of one that is still saving"),
            claimed(tmp_path),
        ):
            pass
    finally:
        os.kill(training, signal.SIGKILL)
    until = time.monotonic() + 10
    while True:  # the lock goes when the process has gone
        try:
            with claimed(tmp_path):
                break
        except UserError:
            assert time.monotonic() < until
            time.sleep(0.02)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


# ---- sums, by hand ----


def write_run(
    out: Path, task: Task, top1: float, sessions: list[tuple[str, str | None]], speed: float | None = 500.0
) -> None:
    """The files of a finished run; sessions: times of 2026-11-01, the end None for a killed one."""
    folder = out / task.folder
    folder.mkdir(parents=True)
    test = {"top1": top1, "many": top1 + 0.1, "medium": top1, "few": None, "samples": 10000}
    result = {"method": task.role, "steps": 100, "test": test, "speed": {"images_per_s": speed}}
    (folder / "result.json").write_text(json.dumps(result))
    stamp = "2026-11-01T{}+00:00"
    environment = {"device": "slow box", "torch": "2.13.0", "git_revision": "abc", "git_dirty": True}
    told = [
        {"started": stamp.format(a), "ended": b and stamp.format(b), "environment": environment} for a, b in sessions
    ]
    (folder / "run.json").write_text(json.dumps({"facts": {"train": "d"}, "sessions": told}))


def test_the_arithmetic_of_the_table(tmp_path: Path) -> None:
    tasks = table_tasks(small_choice(settings=()), (100,), (0, 1, 2))
    by_name = {task.name: task for task in tasks}
    accuracies = {"bsce": [0.40, 0.42, 0.41], "dive": [0.44, 0.45], "ce": [0.38]}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            times: list[tuple[str, str | None]] = [("10:00:00", "11:00:00"), ("12:00:00", "12:30:00")]
            write_run(tmp_path, by_name[f"{method}_if100-s{seed}"], value, times, 100.0 * (seed + 1))
    killed = by_name["bsce_if100-s2"]
    shutil.rmtree(tmp_path / killed.folder)
    write_run(tmp_path, killed, 0.41, [("10:00:00", None), ("10:30:00", "10:40:00")])
    failed = by_name["dive_if100-s2"].name
    report = table_report(tasks, tmp_path, {failed: Ending(2, 5.0, "error: no room")}, {}, [])
    rows = {(row["method"], row["imbalance"]): row for row in report.data["rows"]}
    bsce, dive, ce = (rows[method, 100] for method in ("bsce", "dive", "ce"))
    assert (bsce["top1"]["mean"], bsce["top1"]["std"], bsce["top1"]["n"]) == (pytest.approx(41), pytest.approx(1), 3)
    assert bsce["difference"] == pytest.approx(41 - 42.39) and bsce["few"]["mean"] is None
    assert bsce["many"]["mean"] == pytest.approx(51) and bsce["killed_sessions"] == 1
    assert bsce["wall_s"]["mean"] == pytest.approx((2 * 5400 + 600) / 3)
    assert dive["gain"] == {"mean": pytest.approx(3.5), "std": pytest.approx(0.5**0.5), "n": 2}, (
        "paired by seed: 4 and 3"
    )
    assert dive["paper_gain"] == pytest.approx(2.96) and dive["state"] == "2 of 3 seeds"
    assert dive["images_per_s"]["mean"] == pytest.approx(150) and ce["top1"]["std"] is None
    assert report.data["total_images_per_s"] is None, "a session without an end"
    page = to_markdown(report)
    assert (
        "| 100 | BSCE | 42.39 | 41.00 ± 1.00 | -1.39 | 51.00 ± 1.00 | 41.00 ± 1.00 | - |  |  | 3 | 1:03:20 + 1 killed |"
        in page
    )
    assert (
        "| 100 | DiVE | 45.35 | 44.50 ± 0.71 | -0.85 |" in page and "| +2.96 | 3.50 ± 0.71 | 2 (2 of 3 seeds) |" in page
    )
    assert f"| `{failed}` | 2 | failed: error: no room |" in page and "| `ce_if100-s1` | 1 | not run |" in page
    assert "CE 38.00, BSCE 41.00, DiVE 44.50: in the paper's order" in page
    assert "device: slow box" in page and "code: abc with changes" in page


def test_images_per_second_in_total(tmp_path: Path) -> None:
    """Two that overlap and one later: 3 x 12,800 images in the 3,600 + 1,800 seconds in which any was at work."""
    tasks = [task for task in table_tasks(small_choice(settings=()), (100,), (0, 1, 2), ["ce"]) if task.is_run]
    times = [("10:00:00", "10:40:00"), ("10:20:00", "11:00:00"), ("12:00:00", "12:30:00")]
    for task, session in zip(tasks, times, strict=True):
        write_run(tmp_path, task, 0.4, [session])
    total = reproduce_outcomes.total_images_per_s([outcome(task, tmp_path, None) for task in tasks])
    assert total == pytest.approx(3 * 100 * 128 / 5400)


def test_spreads_leave_out_what_is_not_there() -> None:
    assert spread([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5), 2) and spread([None]) == (None, None, 0)
    assert spread([1234.5]).text(0) == "1,234" and spread([]).text() == "-" and clock(3725.4) == "1:02:05"


def test_whether_the_draw_is_the_papers(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = reproduce_outcomes.draw_of_images(archive)
    assert other.startswith("The draw of images differs from the papers'") and "`mini.tar`" in other
    monkeypatch.setattr(reproduce_outcomes, "PUBLISHED_MD5", (other.partition("MD5 ")[2].rstrip(")."),))
    assert reproduce_outcomes.draw_of_images(archive).startswith("The draw of images is the papers'")
    assert "not known" in reproduce_outcomes.draw_of_images(tmp_path)


def test_wanted_follows_what_is_missing(tmp_path: Path) -> None:
    tasks = table_tasks(small_choice(settings=()), (100,), (0,))
    assert wanted(tasks, tmp_path) == tasks
    for name in ("dive_if100-s0", "ce_if100-s0"):
        write_run(tmp_path, next(task for task in tasks if task.name == name), 0.4, [])
    assert [task.name for task in wanted(tasks, tmp_path)] == ["data_if100", "bsce_if100-s0"], (
        "no student needs the cache"
    )


def test_the_page_on_it_names_what_exists() -> None:
    """Options, scripts, settings of the commands, and the places of runs and caches."""
    text, text_options = (ROOT / "docs" / "reproduce.md").read_text(), set()
    for command, options in (("cifar100-lt", {"imbalance", "methods", "seeds"}), ("cifar100-lt-studies", {"teacher"})):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
            reproduce.parse([command, "--help"])
        common = {"archive", "out", "plan", "jobs", "table-only", "epochs-scale", "report"}
        assert all(f"--{option} " in shown.getvalue() and f"--{option}" in text for option in options | common)
        text_options |= options | common
    assert set(re.findall(r"--([a-z][a-z-]+)", text)) == text_options
    typed = re.findall(r"^python REPOSITORY/(\S+\.py) REPOSITORY/(\S+) (.+)$", text, re.MULTILINE)
    tasks = [
        task for task in table_tasks(small_choice(settings=("precision=bf16",)), (100,), (0,)) if task.kind != "data"
    ]
    for (script, config, settings), task in zip(typed, tasks[:3], strict=True):
        assert ROOT / script == Path(task.command[0])
        changed = {
            line.partition(":")[0] for line in diff(load(Config, ROOT / config, settings.split()), task.settings)
        }
        assert changed == {"data.workers"}, "which is free"
        assert f"OUT/{task.folder}/" in text or task.role == "dive"


def test_it_says_what_is_wrong_with_the_command(tmp_path: Path, archive: Path) -> None:
    for arguments, words in (
        (["--archive", tmp_path / "none.tar", "--out", tmp_path], "none.tar: no such file or folder"),
        (["--archive", archive, "--out", tmp_path, "--imbalance", 20], "invalid choice"),
        (["--archive", archive, "--out", tmp_path, "--epochs-scale", 0], "above 0"),
        (["--archive", archive, "--out", tmp_path, "--report", tmp_path], "cannot write"),
    ):
        code, _, errors = call("cifar100-lt", *arguments)
        assert code == 2 and words in errors
    code, _, errors = call("cifar100-lt-studies", "--archive", archive, "--out", tmp_path, "--teacher", tmp_path)
    assert code == 2 and "is not the folder of a finished run" in errors
