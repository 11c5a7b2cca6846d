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
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from helpers.cifar_archives import COARSE, member, pack, python2_pickle
from helpers.paper_runs import IF10, IF100, SMALL, small_choice

from tools import reproduce
from tools.paper import jobs as reproduce_jobs
from tools.paper import outcomes as reproduce_outcomes
from tools.paper import plan as reproduce_plan
from tools.paper import session as reproduce_session
from tools.paper.jobs import claimed
from tools.paper.outcomes import outcome
from tools.paper.plan import table_tasks
from train.config import Config
from train.run.exits import guard
from train.settings import diff, load
from train.watch.text import clock

ROOT = Path(__file__).resolve().parents[3]
ONE_EPOCH, TEN_EPOCHS = 0.005, 0.05


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training images of the first class and one of each other: the minimum for drawing imbalance 10."""
    names = {"fine_label_names": [f"kind_{label}" for label in range(100)], "coarse_label_names": COARSE}
    train = member(109, 100, 1) | {"fine_labels": [0] * 10 + list(range(1, 100))}
    parts = {"meta": names, "train": train, "test": member(100, 100, 2)}
    members = {name: python2_pickle(content) for name, content in parts.items()}
    return pack(tmp_path_factory.mktemp("archive") / "mini.tar", members)


class Here:
    """Replaces a process: runs the same program to its end in this process, which saves its imports."""

    def __init__(self, command: list[str], folder: Path, log: IO[str], threads: int, gpu: str | None):
        assert threads >= 1 and gpu is None
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
    """(OUT, screen): imbalance 10, seed 1, one epoch of each method. It takes long: a test that uses it is slow."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_jobs, "start_process", Here)
        patch.setattr(reproduce_jobs, "_POLL_SECONDS", 0)
        code, screen, errors = call(*table_command(archive, out, seed=1))
    assert code == 0, screen + errors
    return out, screen


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_table_has_the_runs_figures_and_rows_for_what_was_not_run(done: tuple[Path, str]) -> None:
    out, _ = done
    report = read(out / "cifar100_lt.json")
    rows = {(row["method"], row["imbalance"]): row for row in report["rows"]}
    assert len(rows) == 3 * 3 and rows["dive", 100]["state"] == "not run"
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
    assert "| 100 | CE | 38.35 | not run |" in page and f"torch {torch.__version__}" in page
    assert (
        "The archive's `train` is not the published file (MD5 " in page and "last epoch: nothing was selected" in page
    )
    assert "computed in: fp32, backend ffcv\n" in page.replace("reference", "ffcv") and "at most 1 at a time" in page
    assert "`python tools/reproduce.py cifar100-lt --archive ARCHIVE --out OUT --epochs-scale 0.005" in page
    assert str(out) not in page, "no path of this machine in a page that is published"


@pytest.mark.slow
def test_the_table_is_of_all_that_is_finished(done: tuple[Path, str], archive: Path) -> None:
    """Independent of the last choice; and a run whose files are damaged is a row that says so."""
    out, _ = done
    before = read(out / "cifar100_lt.json")["rows"]
    options = ["--out", out, "--epochs-scale", ONE_EPOCH, *SMALL]
    code, screen, errors = call(
        "cifar100-lt", *options, "--imbalance", 100, "--seeds", 1, "--methods", "ce", "--table-only"
    )
    assert code == 0 and read(out / "cifar100_lt.json")["rows"] == before, screen + errors
    call("cifar100-lt", *options, "--seeds", 4, 4, 1, "--table-only")
    (ce,) = [row for row in read(out / "cifar100_lt.json")["rows"] if (row["method"], row["imbalance"]) == ("ce", 10)]
    assert (ce["runs"], ce["finished"], ce["state"], ce["top1"]["std"]) == (2, 1, "1 of 2 seeds", None)
    result = out / "runs" / "ce_if10-e1-s1" / "result.json"
    own = result.read_text()
    for damage in ("{", "{}"):
        result.write_text(damage)
        code, _, _ = call("cifar100-lt", *options, "--seeds", 1, "--table-only")
        assert code == 0 and "| damaged: " in (out / "cifar100_lt.md").read_text()
    assert "delete runs/ce_if10-e1-s1 and run the same command again" in (out / "cifar100_lt.md").read_text()
    result.write_text(own)
    call("cifar100-lt", *options, "--seeds", 1, "--table-only")
    assert read(out / "cifar100_lt.json")["rows"] == before


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(done: tuple[Path, str], archive: Path, in_process: None) -> None:
    """Caches and data are not made again once no run needs them; one deleted run is run again, after its cache is checked."""
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
    started = [line.removeprefix("start: ") for line in screen.splitlines() if line.startswith("start")]
    assert code == 0 and started == ["cache_bsce_if10-e1-s1-v1", "dive_if10-e1-s1"]
    assert re.search(": 0 of [0-9]+ blocks missing", (out / "logs" / f"{started[0]}.log").read_text())
    assert "bsce_if10-e1-s1                              top-1 " in screen


@pytest.mark.slow
def test_plan_runs_and_writes_no_training(done: tuple[Path, str], archive: Path, in_process: None) -> None:
    """It prints the sum of the measured times; it measures again only what cannot be read or was run in another way."""
    out, _ = done
    table, timing = (out / "cifar100_lt.md").read_bytes(), out / "timing.json"
    own = read(timing)
    costs = {"teacher": [100.0, 0.1], "cache": [50.0, 0.01], "distill": [10.0, 0.1], "device": "slow"}
    timing.write_text(json.dumps(own | {"costs": costs}))
    command = table_command(archive, out, seed=7)
    code, screen, _ = call(*command, "--plan")
    assert code == 0 and "start: " not in screen and "measuring" not in screen
    # 109 training images are 3 steps of 32, the cache holds all of them, and each of three trainings evaluates 100 once.
    seconds = (100 + 96 * 0.1 + 100 * 0.01) * 2 + (50 + 109 * 0.01) + (10 + 96 * 0.1 + 100 * 0.01)
    assert f"expected: {clock(seconds)} for 4 tasks" in screen
    assert not (out / "runs" / "bsce_if10-e1-s7").exists() and (out / "cifar100_lt.md").read_bytes() == table
    timing.write_text(json.dumps(own | {"key": own["key"] | {"settings": ["optim.batch=64"]}}))
    code, screen, _ = call(*command, "--plan")
    assert code == 0 and "measuring this device by 1 short training\n" in screen and read(timing)["key"] == own["key"]
    timing.write_text("{")
    assert call(*command, "--plan")[0] == 0 and read(timing)["key"] == own["key"]


@pytest.mark.slow
def test_a_student_is_of_the_teacher_beside_it(
    done: tuple[Path, str], archive: Path, in_process: None, tmp_path: Path
) -> None:
    """A cache that an earlier teacher of the same name left is not used; a student of such a teacher is refused."""
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    student = out / "runs" / "dive_if10-e1-s1" / "run.json"
    old = read(student)["facts"]["teachers"]
    shutil.rmtree(out / "runs" / "bsce_if10-e1-s1")
    shutil.rmtree(out / "runs" / "dive_if10-e1-s1")
    settings = out / "runs" / "ce_if10-e1-s1" / "config.yaml"
    settings.write_text(settings.read_text().replace("lr: 0.1\n", "lr: 0.02\n"))
    code, screen, errors = call(*table_command(archive, out, seed=1), "optim.lr=0.02")
    assert code == 0, screen + errors
    assert (
        read(student)["facts"]["teachers"] != old and len(list((out / "caches" / "bsce_if10-e1-s1-v1").iterdir())) == 2
    )
    student.write_text(json.dumps(read(student) | {"facts": read(student)["facts"] | {"teachers": old}}))
    code, _, errors = call(*table_command(archive, out, seed=1), "optim.lr=0.02", "--table-only")
    assert code == 2 and "dive_if10-e1-s1 learnt from another teacher than" in errors and "delete the student" in errors


@pytest.mark.slow
def test_foreign_runs_and_own_settings_are_refused(done: tuple[Path, str], archive: Path) -> None:
    out, _ = done
    command = table_command(archive, out, seed=1)
    code, _, errors = call(*command, "optim.lr=0.3")
    assert code == 2 and "ce_if10-e1-s1 was started with other settings" in errors.replace("bsce", "ce")
    assert "optim.lr: 0.1 -> 0.3" in errors
    for setting in ("seed=3", "distill.tau=4", "data.train=x.beton", "run=x", "data={seed: 3}", "resume=never"):
        code, _, errors = call(*command, setting)
        assert code == 2 and f"error: {setting}: " in errors and "is set by this tool" in errors
    code, _, errors = call(*command, "optim.lrr=1")
    assert code == 2 and "nearest: optim.lr" in errors
    for free, code in (("save.keep_last=5", 0), ("optim.accumulate=2", 2)):  # the first changes no result
        assert call(*command, free, "--table-only")[0] == code
    settings = out / "runs" / "dive_if10-e1-s1" / "config.yaml"  # a run may move its cache; a row belongs to one cache
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


@pytest.mark.slow
def test_interrupted_it_goes_on(
    done: tuple[Path, str], archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a real training process: it stops, the table says how far it came, the same command finishes it."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(done[0] / "data", out / "data")
    timing = read(done[0] / "timing.json")
    timing["key"]["settings"].append("save.every_epochs=1")
    (out / "timing.json").write_text(json.dumps(timing))
    command = [*table_command(archive, out, TEN_EPOCHS, seed=5), "--methods", "ce", "save.every_epochs=1"]
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
    assert (
        outcome(table_tasks(small_choice(archive, TEN_EPOCHS), [IF10], [5], ["ce"])[-1], out, None).state == "finished"
    )


@pytest.mark.slow
def test_the_studies_differ_in_one_thing_each(
    done: tuple[Path, str], archive: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the teacher of the table, at imbalance 10, for which the small archive is enough."""
    out, _ = done
    monkeypatch.setattr(reproduce_plan, "STUDIES_DATASET", IF10)
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
        assert [cache["views"] for cache in row["caches"]] == ([] if row["role"] == "online" else [1])
    page = (out / "cifar100_lt_studies.md").read_text()
    assert "| (f) matched: the paper's T = tau / p on both sides, p = 1 | 6 | 1 | 6 | 1 |" in page
    assert "teacher: bsce_if10-e1-s1, given: 1 epochs, top-1 " in page


<<<<<<< HEAD
# ---- the plan ----


def small_choice(
    archive: Path = Path("archive"), scale: float = 1.0, settings: tuple[str, ...] = tuple(SMALL)
) -> Choice:
    return Choice(archive, scale, settings, 1)


def test_the_plan_of_the_whole_table() -> None:
    tasks = table_tasks(small_choice(settings=("precision=bf16",)), (CIFAR100_LT[50], IF10), (1, 2))
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
    tasks = table_tasks(small_choice(), [IF10], [0])  # data, bsce, cache, dive, ce
    seconds = {"data": 1.0, "bsce": 10.0, "cache": 5.0, "dive": 10.0, "ce": 12.0}
    assert makespan(tasks, lambda task: seconds[task.role], 1) == 38
    assert makespan(tasks, lambda task: seconds[task.role], 2) == 26
    assert makespan(tasks[3:], lambda task: seconds[task.role], 2) == 12, "what is not among them is there already"


# ---- processes ----


def program(name: str, text: str, *needs: str) -> Task:
    return Task(name=name, kind="data", role="x", dataset=IF10, folder=name, arguments=(text,), needs=needs)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, list[str]], Jobs]]:
    """Makes Jobs that run the Python programs of `program`, without imports."""
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        reproduce_jobs,
        "start_process",
        lambda command, *rest: start_process(["-I", "-S", "-c", command[1]], *rest),
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
    """Two jobs that wait for each other, and one after both."""
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
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


def test_what_failed_before_a_signal_is_not_forgotten(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    here = f"import os, signal\nos.kill({os.getpid()}, signal.SIGINT)"
    with pytest.raises(Stopped) as stopped:
        jobs(1, []).run([program("a", "raise SystemExit(2)"), program("b", here), program("c", "open('c', 'w')")])
    assert stopped.value.ended["a"].code == 2 and not (tmp_path / "c").exists()


def test_our_own_error_lets_the_others_save(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    (tmp_path / "logs" / "b.log").mkdir(parents=True)  # cannot be opened
    save = "import time\nopen('a', 'w').close()\ntry: time.sleep(20)\nexcept KeyboardInterrupt: open('a.saved', 'x').close()"
    late = "import os, time\nwhile not os.path.exists('a'): time.sleep(0.01)"
    with pytest.raises(IsADirectoryError):
        jobs(2, []).run([program("a", save), program("first", late), program("b", "", "first")])
    assert (tmp_path / "a.saved").exists()


def test_nobody_listening_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = os.pipe()
    os.close(source)
    with open(os.dup(target), "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        for _ in range(2):
            say("x")
        assert sys.stdout is not closed
        with contextlib.suppress(BrokenPipeError):
            closed.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
    os.close(target)


def test_a_passing_fault_is_tried_once_more(jobs: Callable[[int, list[str]], Jobs], tmp_path: Path) -> None:
    text = "import os\nopen('{0}', 'a').write('x')\n"
    text += "if os.path.getsize('{0}') < {1}: raise SystemExit('error: torn: run the same command again')"
    said: list[str] = []
    ended = jobs(1, said).run(
        [program("a", text.format("a", 2)), program("b", text.format("b", 3)), program("c", "", "a")]
    )
    assert [ended[name].code for name in "abc"] == [0, 1, 0]
    assert (tmp_path / "a").read_text() == "xx" and (tmp_path / "b").read_text() == "xx"


def test_gpus_are_shared_out(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    text = "import os, time\nopen('{0}', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    text += "while len(os.listdir('.')) < 4: time.sleep(0.01)"
    jobs(3, []).run([program(name, text.format(name)) for name in "abc"])  # logs, and one file of each
    assert [(tmp_path / name).read_text() for name in "abc"] == ["4", "6", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert reproduce_jobs.gpus() == []


STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: open('asked', 'w').close())
open('ready', 'w').close()
while True: time.sleep(0.05)
"""


def test_what_does_not_stop_is_killed(
    jobs: Callable[[int, list[str]], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce_jobs, "_GRACE_SECONDS", 0.2)

    def interrupt() -> None:
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped) as stopped:
        jobs(1, []).run([program("a", STUBBORN.replace("while True:", "for _ in range(400):"))])
    assert (tmp_path / "asked").exists() and stopped.value.ended == {}


def test_killed_it_leaves_nothing_running_and_out_is_kept_till_then(tmp_path: Path) -> None:
    """kill -9 of the tool: the kernel tells its training to stop, which holds OUT until it has saved."""
    source, target = os.pipe()
    tool = os.fork()
    if tool == 0:  # the tool: never returns from here
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
            pytest.raises(UserError, match=rf"is in use by process {tool} on .* that is still saving"),
            claimed(tmp_path),
        ):
            pass
    finally:
        os.kill(training, signal.SIGKILL)
    until = time.monotonic() + 10
    while True:  # the lock is released when the process has ended
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
    result = {"method": task.role, "steps": 100, "test": test, "speed": {"images_per_s": speed, "peak_memory_gb": 1.5}}
    (folder / "result.json").write_text(json.dumps(result))
    stamp = "2026-11-01T{}+00:00"
    environment = {"device": "slow box", "torch": "2.13.0", "git_revision": "abc", "git_dirty": True}
    told = [
        {"started": stamp.format(a), "ended": b and stamp.format(b), "environment": environment} for a, b in sessions
    ]
    (folder / "run.json").write_text(
        json.dumps({"facts": {"train": "d", "backend": "ffcv", "precision": "bf16"}, "sessions": told})
    )


def test_the_arithmetic_of_the_table(tmp_path: Path) -> None:
    tasks = table_tasks(small_choice(settings=()), (IF100,), (0, 1, 2))
    by_name = {task.name: task for task in tasks}
    accuracies = {"bsce": [0.40, 0.42, 0.41], "dive": [0.44, 0.45], "ce": [0.38]}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            times: list[tuple[str, str | None]] = [("10:00:00", "11:00:00"), ("12:00:00", "12:30:00")]
            write_run(tmp_path, by_name[f"{method}_if100-s{seed}"], value, times, 100.0 * (seed + 1))
    failed = by_name["dive_if100-s2"].name
    report = table_report(tasks, tmp_path, {failed: Ending(2, 5.0, "error: no room")}, {}, [])
    rows = {(row["method"], row["imbalance"]): row for row in report.data["rows"]}
    bsce, dive, ce = (rows[method, 100] for method in ("bsce", "dive", "ce"))
    assert (bsce["top1"]["mean"], bsce["top1"]["std"], bsce["top1"]["n"]) == (pytest.approx(41), pytest.approx(1), 3)
    assert bsce["difference"] == pytest.approx(41 - 42.39) and bsce["few"]["mean"] is None
    assert bsce["many"]["mean"] == pytest.approx(51) and bsce["wall_s"]["mean"] == pytest.approx(5400)
    assert dive["gain"] == {"mean": pytest.approx(3.5), "std": pytest.approx(0.5**0.5), "n": 2}, (
        "paired by seed: 4 and 3"
    )
    assert dive["paper_gain"] == pytest.approx(2.96) and dive["state"] == "2 of 3 seeds"
    assert dive["images_per_s"]["mean"] == pytest.approx(150) and ce["top1"]["std"] is None
    page = to_markdown(report)
    assert "| 100 | BSCE | 42.39 | 41.00 ± 1.00 | -1.39 | 51.00 ± 1.00 | 41.00 ± 1.00 | - |  |  | 3 | 1:30:00 |" in page
    assert (
        "| 100 | DiVE | 45.35 | 44.50 ± 0.71 | -0.85 |" in page and "| +2.96 | 3.50 ± 0.71 | 2 (2 of 3 seeds) |" in page
    )
    assert f"| `{failed}` | 2 | failed: error: no room |" in page and "`ce_if100-s1`" not in page
    assert "in the paper's order" not in page, "not before all have the same seeds"
    assert "at most 6 at a time" in page and "computed in: bf16, backend ffcv" in page
    report = table_report([task for task in tasks if task.seed == 0 or task.kind == "data"], tmp_path, {}, {}, [])
    assert "CE 38.00, BSCE 40.00, DiVE 44.00: in the paper's order" in to_markdown(report)
    assert "device: slow box" in page and "code: abc with changes" in page


def test_data_sets_are_told_apart_by_name(tmp_path: Path) -> None:
    """One more row: only names and tags separate its tasks and figures from those of the other."""
    other = replace(
        IF100, name="other_lt", tag="other", column="data set", value="Other-LT", paper=dict.fromkeys(METHODS, 50.0)
    )
    tasks = table_tasks(small_choice(settings=()), (IF100, other), (0,))
    assert len({task.name for task in tasks}) == len({task.folder for task in tasks}) == len(tasks)
    for task in tasks:
        if task.role == "ce":
            write_run(tmp_path, task, 0.6 if task.dataset is other else 0.4, [("10:00:00", "11:00:00")])
    rows = table_report(tasks, tmp_path, {}, {}, []).data["rows"]
    ce = [row for row in rows if row["method"] == "ce"]
    assert [(row["paper"], row["top1"]["mean"]) for row in ce] == [(38.35, pytest.approx(40)), (50, pytest.approx(60))]
    assert ce[0]["imbalance"] == 100 and ce[1]["data set"] == "Other-LT"


def test_when_something_was_at_work(tmp_path: Path) -> None:
    """Two sessions that overlap and one later: 3,600 + 1,800 seconds, in which 3 x 12,800 images were trained."""
    tasks = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0, 1, 2), ["ce"]) if task.is_run]
    times = [("10:00:00", "10:40:00"), ("10:20:00", "11:00:00"), ("12:00:00", "12:30:00")]
    for task, session in zip(tasks, times, strict=True):
        write_run(tmp_path, task, 0.4, [("09:00:00", None), session])
    runs = [outcome(task, tmp_path) for task in tasks]
    assert reproduce_outcomes.at_work(runs) == (5400, 2)
    facts = reproduce_outcomes.environment_facts(runs)
    assert facts["images/s in total"].startswith(f"{3 * 100 * 128 / 5400:,.0f}, ")
    assert facts["trained"] == "2026-11-01, at most 2 at a time"


def test_what_is_left_of_a_task(tmp_path: Path) -> None:
    """By hand, at 0.1 s an image of training, 0.02 from a cache, 0.01 forward: 10 steps an epoch, evaluation every 10."""
    costs = Costs(Cost(100, 0.1), Cost(50, 0.01), Cost(10, 0.02), "slow")
    rows = Rows(1300, 1000)
    tasks = {task.role: task for task in study_tasks(small_choice(settings=()), [0], None)}
    batch = {role: 10 * 128 * 200 * image_s for role, image_s in (("bsce", 0.1), ("online", 0.03), ("cache", 0.02))}
    evaluations = 20 * 1000 * 0.01
    left = {role: expected_seconds(tasks[role], tmp_path, costs, rows) for role in ("bsce", "online")}
    assert left == {
        "bsce": pytest.approx(100 + batch["bsce"] + evaluations),
        "online": pytest.approx(10 + batch["online"] + evaluations),
    }
    folder = tmp_path / tasks["bsce"].folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 150.0}\n{"epoch": 150.7}\n{"epoch": 151')
    half = expected_seconds(tasks["bsce"], tmp_path, costs, rows)
    assert half == pytest.approx(100 + batch["bsce"] / 4 + 5 * 1000 * 0.01)
    cache = next(task for task in study_tasks(small_choice(settings=()), [0], None) if task.kind == "cache")
    assert expected_seconds(cache, tmp_path, costs, rows) == pytest.approx(50 + 200 * 1300 * 0.01)
    for view in range(150):
        (tmp_path / cache.folder / "one" / f"v{view:03}").mkdir(parents=True)
    assert expected_seconds(cache, tmp_path, costs, rows) == pytest.approx(50 + 50 * 1300 * 0.01)


def test_costs_are_means_over_those_that_ran_side_by_side(tmp_path: Path) -> None:
    """By hand: 100 steps of 128 at 500 and 1,000 images/s are 25.6 and 12.8 s of 40."""
    tasks = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0, 1), ["dive"]) if task.kind != "data"]
    for task in tasks:
        if task.is_run:
            write_run(tmp_path, task, 0.1, [], 500.0 * (1 + task.seed))
        else:
            made = {"sessions": [{"seconds": 10.0 * (1 + task.seed), "images": 1000}]}
            (tmp_path / task.folder / "one").mkdir(parents=True)
            (tmp_path / task.folder / "one" / "made.json").write_text(json.dumps(made))
    found = reproduce_timing._costs_of(tasks, tmp_path, dict.fromkeys((task.name for task in tasks), 40.0))
    assert (
        found["teacher"]
        == found["distill"]
        == [pytest.approx((14.4 + 27.2) / 2), pytest.approx((1 / 500 + 1 / 1000) / 2)]
    )
    assert found["cache"] == [pytest.approx((30 + 20) / 2), pytest.approx(0.015)]


def test_the_papers_figures() -> None:
    """Table 1 of the paper."""
    table = {"ce": (38.35, 42.41, 56.51), "bsce": (42.39, 47.60, 58.38), "dive": (45.35, 51.13, 62.00)}
    for method, values in table.items():
        assert tuple(CIFAR100_LT[imbalance].paper[method] for imbalance in (100, 50, 10)) == values


def test_spreads_leave_out_what_is_not_there() -> None:
    assert spread([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5), 2) and spread([None]) == (None, None, 0)
    assert spread([1234.5]).text(0) == "1,234" and spread([]).text() == "-" and clock(3725.4) == "1:02:05"


=======
@pytest.mark.slow
>>>>>>> w-tools2
def test_whether_the_draw_is_the_papers(
    done: tuple[Path, str], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records say what they were drawn from, independent of the present --archive."""
    tasks = table_tasks(small_choice(), [IF10], [1])
    other = reproduce_outcomes.draw_of_images(tasks, done[0])
    assert "the draw of images differs where that order does" in other
    monkeypatch.setattr(reproduce_outcomes, "PUBLISHED_TRAIN_MD5", other.partition("MD5 ")[2].partition(")")[0])
    assert reproduce_outcomes.draw_of_images(tasks, done[0]).startswith("The draw of images is the papers'")
    assert "not known" in reproduce_outcomes.draw_of_images(tasks, tmp_path)


def test_the_page_on_it_names_what_exists() -> None:
    """Options, scripts, settings of the commands, and the places of runs and caches."""
    text, text_options = (ROOT / "docs" / "reproduce.md").read_text(), set()
    for command, options in (("cifar100-lt", {"imbalance", "methods", "seeds"}), ("cifar100-lt-studies", {"teacher"})):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
            reproduce.parse([command, "--help"])
        common = {"archive", "out", "plan", "jobs", "table-only", "epochs-scale"}
        assert all(f"--{option} " in shown.getvalue() and f"--{option}" in text for option in options | common)
        text_options |= options | common
    assert set(re.findall(r"--([a-z][a-z-]+)", text)) == text_options
    typed = re.findall(r"^python REPOSITORY/(\S+\.py) REPOSITORY/(\S+) (.+)$", text, re.MULTILINE)
    tasks = [
        task for task in table_tasks(small_choice(settings=("precision=bf16",)), (IF100,), (0,)) if task.kind != "data"
    ]
    for (script, config, settings), task in zip(typed, tasks[:3], strict=True):
        assert ROOT / script == Path(task.command[0])
        changed = {
            line.partition(":")[0] for line in diff(load(Config, ROOT / config, settings.split()), task.settings)
        }
        assert changed == {"data.workers", "save.every_epochs"}, "which are free"
        assert f"OUT/{task.folder}/" in text or task.role == "dive"


def test_it_says_what_is_wrong_with_the_command(tmp_path: Path, archive: Path) -> None:
    for arguments, words in (
        (["--archive", tmp_path / "none.tar", "--out", tmp_path], "none.tar: no such file or folder"),
        (["--archive", archive, "--out", tmp_path, "--imbalance", 20], "invalid choice"),
        (["--archive", archive, "--out", tmp_path, "--epochs-scale", 0], "above 0"),
        (["--archive", archive, "--out", tmp_path, "--epochs-scale", "abc"], "abc given, a number above 0"),
        (["--out", tmp_path / "new"], "has no records of imbalance 100 yet: give --archive"),
        (["--out", tmp_path / "none", "--table-only"], "none: no such folder"),
    ):
        code, _, errors = call("cifar100-lt", *arguments)
        assert code == 2 and words in errors
    code, _, errors = call("cifar100-lt-studies", "--archive", archive, "--out", tmp_path, "--teacher", tmp_path)
    assert code == 2 and "is not the folder of a finished run" in errors
    with claimed(tmp_path):
        code, _, errors = call("cifar100-lt", "--archive", archive, "--out", tmp_path)
    assert code == 2 and f"{tmp_path} is in use by process {os.getpid()}" in errors


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--out a=b` is a folder, not a setting."""
    found = []
    monkeypatch.setattr(reproduce_session, "run_missing", lambda tasks, options, choice: found.append(choice) or {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for jobs in (1, 4, 24):
        assert call("cifar100-lt", "--out", tmp_path / "a=b", "--jobs", jobs, "optim.lr=0.2")[0] == 0
    assert reproduce.typed(["x", "--out=/here", "--archive", "/a", "a.b=c"]) == (
        "python tools/reproduce.py x --out OUT --archive ARCHIVE a.b=c"
    )
    assert [(choice.threads, choice.settings) for choice in found] == [(n, ("optim.lr=0.2",)) for n in (12, 3, 1)]
