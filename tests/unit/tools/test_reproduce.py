"""tools/reproduce.py on a made-up archive, through the entry scripts themselves: plan, interruption, failures, sums."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from helpers import warm
from helpers.cifar_archives import COARSE, cifar10, member, pack, python2_pickle
from helpers.paper_runs import IF10, IF100, SMALL, small_choice

from models import ModelSpec
from tools import reproduce
from tools.paper import jobs as reproduce_jobs
from tools.paper import outcomes as reproduce_outcomes
from tools.paper import plan as reproduce_plan
from tools.paper import session as reproduce_session
from tools.paper.datasets import MORE, ROWS
from tools.paper.jobs import claimed
from tools.paper.outcomes import outcome
from tools.paper.plan import table_tasks
from train.config import Config
from train.evaluation.cost import operations
from train.run.exits import guard
from train.settings import diff, load
from train.watch.text import clock

ROOT = Path(__file__).resolve().parents[3]
ONE_EPOCH, FIVE_EPOCHS = 0.005, 0.025


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training images of the first class and one of each other: the least from which imbalance 10 can be drawn.

    Two test images of each: the least for shifted test sets.
    """
    names = {"fine_label_names": [f"kind_{label}" for label in range(100)], "coarse_label_names": COARSE}
    train = member(109, 100, 1) | {"fine_labels": [0] * 10 + list(range(1, 100))}
    parts = {"meta": names, "train": train, "test": member(200, 100, 2)}
    members = {name: python2_pickle(content) for name, content in parts.items()}
    return pack(tmp_path_factory.mktemp("archive") / "mini.tar", members)


class Here:
    """In place of a process: the same program, run to its end in this one, which saves its imports."""

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
    """Whatever was asked for last; and a run whose files are damaged is a row that says so."""
    out, _ = done
    before = read(out / "cifar100_lt.json")["rows"]
    options = ["--out", out, "--epochs-scale", ONE_EPOCH, *SMALL]
    code, screen, errors = call(
        "cifar100-lt", *options, "--imbalance", 100, "--seeds", 1, "--methods", "ce", "--table-only"
    )
    assert code == 0 and read(out / "cifar100_lt.json")["rows"] == before, screen + errors
    copied = out.parent / "copied"  # from another machine, without data and caches
    shutil.copytree(out / "runs", copied / "runs")
    code, screen, errors = call("cifar100-lt", "--out", copied, *options[2:], "--seeds", 1, "--table-only")
    assert code == 0 and read(copied / "cifar100_lt.json")["rows"] == before, screen + errors
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
    """Nor are caches and data missed, once no run needs them; one deleted run brings back itself, after a look at its cache."""
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
    """It says the sum of what was measured; measured again is only what cannot be read or was another way of running."""
    out, _ = done
    table, timing = (out / "cifar100_lt.md").read_bytes(), out / "timing.json"
    own = read(timing)
    costs = {"teacher": [100.0, 0.1], "cache": [50.0, 0.01], "distill": [10.0, 0.1], "device": "slow"}
    timing.write_text(json.dumps(own | {"costs": costs}))
    command = table_command(archive, out, seed=7)
    code, screen, _ = call(*command, "--plan")
    assert code == 0 and "start: " not in screen and "measuring" not in screen
    # 109 training images are 3 steps of 32, the cache has all, and each of three trainings evaluates 200 once.
    seconds = (100 + 96 * 0.1 + 200 * 0.01) * 2 + (50 + 109 * 0.01) + (10 + 96 * 0.1 + 200 * 0.01)
    assert f"expected: {clock(seconds)} for 4 tasks" in screen
    assert not (out / "runs" / "bsce_if10-e1-s7").exists() and (out / "cifar100_lt.md").read_bytes() == table
    timing.write_text(json.dumps(own | {"key": own["key"] | {"settings": ["optim.batch=64"]}}))
    code, screen, _ = call(*command, "--plan")
    assert code == 0 and "measuring this device by 3 short runs\n" in screen and read(timing)["key"] == own["key"]
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
    for free, code in (("save.keep_last=5", 0), ("optim.accumulate=2", 2)):  # the first changes nothing
        assert call(*command, free, "--table-only")[0] == code
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


@pytest.mark.slow
def test_interrupted_it_goes_on(
    done: tuple[Path, str], archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a real training process: it stops, the table says how far it is, the same command finishes it."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(done[0] / "data", out / "data")
    timing = read(done[0] / "timing.json")
    timing["key"]["settings"].append("save.every_epochs=1")
    timing["key"]["threads"] = 1  # OMP_NUM_THREADS below
    (out / "timing.json").write_text(json.dumps(timing))
    command = [*table_command(archive, out, FIVE_EPOCHS, seed=5), "--methods", "ce", "save.every_epochs=1"]
    folder = out / "runs" / "ce_if10-e5-s5"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not (folder / "checkpoints" / "latest").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", warm.python())  # which begins the processes
    monkeypatch.setattr(reproduce_jobs, "_POLL_SECONDS", 0.02)
    start = reproduce_jobs.start_process
    held = str(ROOT / "tests/helpers/held.py")  # it trains as teacher.py does, and does not end before the signal
    monkeypatch.setattr(reproduce_jobs, "start_process", lambda command, *more: start([held, *command[1:]], *more))
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code, screen, errors = call(*command)
    watcher.join()
    assert code == 130 and "stopped; the same command goes on" in screen, screen + errors
    assert "measuring" not in screen, "the costs are known"
    assert read(folder / "run.json")["sessions"][0]["ended"] and not (folder / "result.json").exists()
    (row,) = [row for row in read(out / "cifar100_lt.json")["rows"] if (row["method"], row["imbalance"]) == ("ce", 10)]
    assert row["state"].startswith("unfinished: epoch ") and row["state"].endswith(" of 5")

    monkeypatch.setattr(reproduce_jobs, "start_process", Here)
    code, screen, _ = call(*command)
    assert code == 0 and "done: ce_if10-e5-s5" in screen and "expected, from epoch " in screen
    log = (out / "logs" / "ce_if10-e5-s5.log").read_text()
    assert log.count("$ python ") == 2 and "resumed after step" in log
    assert (
        outcome(table_tasks(small_choice(archive, FIVE_EPOCHS), [IF10], [5], ["ce"])[-1], out, None).state == "finished"
    )


@pytest.mark.slow
def test_the_studies_differ_in_one_thing_each(
    done: tuple[Path, str], archive: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the teacher of the table, at imbalance 10, for which the small archive suffices."""
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


@pytest.mark.slow
def test_the_figures_are_of_the_runs_of_the_table(done: tuple[Path, str], in_process: None) -> None:
    """Nothing is trained again; the predictions that are missing are computed once, and the uniform set is the test split."""
    out, _ = done
    command = ["cifar100-lt-figures", "--out", out, "--imbalance", 10, "--seeds", 1, "--epochs-scale", ONE_EPOCH]
    code, screen, errors = call(*command, *SMALL)
    assert code == 0 and "everything is finished" in screen, screen + errors
    names = [f"{method}_if10-e1-s1" for method in ("ce", "bsce", "dive")]
    assert [line for line in screen.splitlines() if line.startswith("evaluating")] == [
        f"evaluating {name} on data.test" for name in names
    ]
    alone = "samples" in read(out / "cifar100_lt_figures.json")  # of so few images, DiVE may have none right alone
    names_of = ("shifted", "embeddings", "samples")[: 2 + alone]
    files = [f"cifar100_lt_figures{end}" for end in (".md", ".json")]
    files += [f"cifar100_lt_figures_{name}.{kind}" for name in names_of for kind in ("svg", "png")]
    assert screen.endswith(f"written: {out / files[0]}, {', '.join(files[1:])}\n") and all(
        (out / file).stat().st_size for file in files
    )
    page, found = (out / files[0]).read_text(), read(out / files[1])
    assert "](cifar100_lt_figures_shifted.svg)" in page and "| CE + PC | " in page and str(out) not in page
    assert [panel["run"] for panel in found["embeddings"]["runs"]] == ["CE", "BSCE", "DiVE"]
    assert alone != (
        "Not shown: Figure 3: test images that the last run alone answers right: there is no image" in page
    )
    lines = {(line["run"], line["compensated"]): line for line in found["shifted"]["lines"]}
    assert [line["rule"] for line in lines.values()] == ["softmax", "balanced", "balanced"] * 2
    for name, title in zip(names, ("CE", "BSCE", "DiVE"), strict=True):
        top1 = read(out / "runs" / name / "result.json")["test"]["top1"]
        assert lines[title, False]["accuracy"]["U"]["first"] == pytest.approx(top1)
    code, screen, _ = call(*command, *SMALL, "--table-only")
    assert code == 0 and "evaluating" not in screen and read(out / files[1])["shifted"] == found["shifted"]
    code, screen, _ = call(*command[:-3], 2, 1, *command[-2:], *SMALL, "--table-only")
    assert code == 0 and "Not shown, because not finished: ce_if10-e1-s2 (not run)" in (out / files[0]).read_text()


def test_the_flatness_study(in_process: None, tmp_path: Path) -> None:
    """Two values of eps, on 15 images of two classes; a run of an earlier revision, which did not know the setting, is eps 0."""
    archive, out = pack(tmp_path / "mini.tar", cifar10()), tmp_path / "out"
    chosen = ["--head", "kind_3", "--tail", "kind_1", "--counts", "10:5", "--eps", 0.4, 0, "--seeds", 2]
    command = [
        "cifar10-flatness",
        "--out",
        out,
        *chosen,
        "--epochs-scale",
        0.01,
        "model.name=resnet8",
        "optim.batch=4",
    ]
    code, screen, errors = call(*command, "--archive", archive)
    assert code == 0, screen + errors
    names = [f"ce_kind_3_kind_1_10_5_eps{eps}-e1-s2" for eps in ("0.4", "0")]
    lines = screen.splitlines()
    measured = lines[lines.index("measuring this device by 1 short run") + 1 :]
    assert [line[7:] for line in measured if line.startswith("start: ")] == ["ce_kind_3_kind_1_10_5_eps0-s0", *names]
    assert read(out / "timing.json")["costs"].keys() == {"teacher", "device"}, "no cache and no student to be timed"
    assert re.search(r"images/s of each: hard labels [\d,.]+; start-up and compilation \d+ s$", screen, re.MULTILINE)
    report, page = read(out / "cifar10_flatness.json"), (out / "cifar10_flatness.md").read_text()
    assert [(row["eps"], row["R"]) for row in report["rows"]] == [(0, 0.5), (0.4, pytest.approx(9 / 6))]
    for row, name in zip(report["rows"], reversed(names), strict=True):
        head, tail = read(out / "runs" / name / "result.json")["test"]["classes"]
        found = [row[group]["mean"] for group in ("head", "tail", "mean")]
        assert found == pytest.approx([100 * head, 100 * tail, 50 * (head + tail)])
        assert f"head_smoothing: {row['eps']}\n" in (out / "runs" / name / "config.yaml").read_text()
    losses = [(out / "runs" / name / "metrics.jsonl").read_text().partition('"loss": ')[2][:9] for name in names]
    assert len(set(losses)) == 2 and "kind_3 10, kind_1 5: the claim " in page and str(out) not in page
    assert (out / "cifar10_flatness.png").exists() and "(cifar10_flatness.svg)" in page
    files = {path: path.read_bytes() for path in out.glob("cifar10_flatness.[jms]*")}
    for path in files:
        path.unlink()
    settings = out / "runs" / names[1] / "config.yaml"
    settings.write_text(settings.read_text().replace("  head_smoothing: 0.0\n", ""))
    code, screen, errors = call(*command, "--table-only")
    assert code == 0 and "start: " not in screen, screen + errors
    assert read(out / "cifar10_flatness.json")["rows"] == report["rows"] and len(files) == 3
    assert (out / "cifar10_flatness.svg").read_bytes() == files[out / "cifar10_flatness.svg"]
    code, _, errors = call(*command[:-2], "model.name=resnet8", "optim.batch=8", "--table-only")
    assert code == 2 and "optim.batch: 4 -> 8" in errors


@pytest.mark.slow
def test_rows_with_experts(in_process: None, done: tuple[Path, str], archive: Path, tmp_path: Path) -> None:
    """Added to an OUT with runs of Table 1, which stay as they are: measured, planned, trained and shown beside them."""
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    before = read(out / "cifar100_lt.json")["rows"]
    command = [*table_command(archive, out, 0.015, seed=1), "--methods", "ride_dive4_router", "model.experts=2"]
    code, screen, errors = call(*command)
    assert code == 0, screen + errors
    names = ["bsce6_if10-e3-s1", "cache_bsce6_if10-e3-s1-v3", "ride_dive4_if10-e3-s1", "ride_dive4_router_if10-e3-s1"]
    measured, _, planned = screen.partition("expected: ")
    started = [line.removeprefix("start: ") for line in planned.splitlines() if line.startswith("start: ")]
    assert started == names and "start: bsce6_if10-s0" in measured and "start: bsce_if10-s0" not in measured
    assert re.search(
        r"hard labels \(2 experts\) [\d,.]+, from a cache \(2 experts\) [\d,.]+, writing a cache \(2 ", measured
    )
    config = load(Config, out / "runs" / names[2] / "config.yaml")
    assert (config.distill.diversity_from, config.schedule.milestones, config.schedule.epochs) == (2, [2], 3)
    rows = {(row["method"], row["imbalance"]): row for row in read(out / "cifar100_lt.json")["rows"]}
    assert [method for method, imbalance in rows if imbalance == 10] == ["ce", "bsce", "dive", *MORE[-3:]]
    gain = rows["ride_dive4", 10]["top1"]["mean"] - rows["bsce6", 10]["top1"]["mean"]
    assert rows["ride_dive4", 10]["gain"]["mean"] == pytest.approx(gain)
    used = [rows[method, 10]["experts_used"]["mean"] for method in MORE[-3:]]
    assert used[:2] == [2, 2] and 1 <= used[2] <= 2 and "gain" not in rows["ride_dive4_router", 10]
    record = out / "runs" / names[-1] / "run.json"
    stale = read(record) | {"facts": read(record)["facts"] | {"init": "0" * 64}}
    record.write_text(json.dumps(stale))
    code, _, errors = call(*command, "--table-only")
    assert (
        code == 2 and f"{names[-1]} has the routers of another network than " in errors and "delete the run" in errors
    )
    code, _, _ = call(*table_command(archive, out, seed=1), "--table-only")
    assert code == 0 and read(out / "cifar100_lt.json")["rows"] == before, "these have other lengths"


def test_rows_are_shown_where_they_are_asked_for(tmp_path: Path) -> None:
    """Or begun; by default those of Table 1 alone."""
    (tmp_path / "runs" / "ride4_if100-s7").mkdir(parents=True)
    for more, shown in (([], {("ride4", 100)}), (["--methods", "ride_dive4", "--imbalance", 50], {("ride4", 100)})):
        code, screen, errors = call("cifar100-lt", "--out", tmp_path, "--table-only", "--seeds", 3, *more)
        assert code == 0, screen + errors
        rows = {(row["method"], row["imbalance"]): row for row in read(tmp_path / "cifar100_lt.json")["rows"]}
        others = {key for key in rows if key[0] not in ("ce", "bsce", "dive")}
        assert others == shown | ({("bsce6", 50), ("ride_dive4", 50)} if more else set())
        assert len(rows) == 9 + len(others) and rows["ce", 100]["runs"] == rows["ride4", 100]["runs"] == 1


@pytest.mark.slow
def test_whether_the_draw_is_the_papers(
    done: tuple[Path, str], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records say what they were drawn from, whatever --archive is now."""
    tasks = table_tasks(small_choice(), [IF10], [1])
    other = reproduce_outcomes.draw_of_images(tasks, done[0])
    assert "the draw of images differs where that order does" in other
    monkeypatch.setattr(reproduce_outcomes, "PUBLISHED_TRAIN_MD5", other.partition("MD5 ")[2].partition(")")[0])
    assert reproduce_outcomes.draw_of_images(tasks, done[0]).startswith("The draw of images is the papers'")
    assert "not known" in reproduce_outcomes.draw_of_images(tasks, tmp_path)


def _operations(experts: int | None) -> int:
    network = ModelSpec("resnet32", 100, "cosine", experts=experts).build().eval()
    return operations(network, 32, torch.device("cpu")).without_routing


def test_the_page_on_it_names_what_exists() -> None:
    """Options, scripts, settings of the commands, and the places of runs and caches."""
    text, text_options = (ROOT / "docs" / "reproduce.md").read_text(), set()
    for command, options in (
        ("cifar100-lt", {"imbalance", "methods", "seeds"}),
        ("cifar100-lt-studies", {"teacher"}),
        ("cifar100-lt-figures", {"imbalance", "seeds"}),
        ("cifar10-flatness", {"head", "tail", "counts", "eps", "seeds"}),
    ):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
            reproduce.parse([command, "--help"])
        common = {"archive", "out", "plan", "jobs", "table-only", "epochs-scale"}
        assert all(f"--{option} " in shown.getvalue() and f"--{option}" in text for option in options | common)
        text_options |= options | common
    assert set(re.findall(r"--([a-z][a-z-]+)", text)) == text_options
    for line in re.findall(r"^python tools/reproduce.py (.+)$", text, re.MULTILINE):
        reproduce.parse(shlex.split(line))
    rows = [
        line.strip("| ").split(" | ")
        for line in re.findall(r"^\| [a-z]+\w* \| .* \| \w+_if100 \|.*$", text, re.MULTILINE)
    ]
    expected = {
        name: [row.title, f"{row.stem}_if100", *([row.after] if row.after else [])] for name, row in ROWS.items()
    }
    assert {name: cells for name, *cells in rows} == {name: expected[name] for name in MORE}
    operations = [_operations(experts) for experts in (None, 3, 4, 6)]
    times = " and ".join(", ".join(f"{count / operations[0]:.1f}" for count in operations[1:]).rsplit(", ", 1))
    assert f"3, 4 and 6 experts need {times} times the operations" in " ".join(text.split())
    typed = re.findall(r"^python REPOSITORY/(\S+\.py) REPOSITORY/(\S+) (.+)$", text, re.MULTILINE)
    tasks = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0,)) if task.kind != "data"]
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
    code, _, errors = call("cifar100-lt-figures", "--out", tmp_path / "new", "--imbalance", 100, 50)
    assert code == 2 and "unrecognized arguments: 50" in errors
    code, _, errors = call("cifar100-lt-studies", "--archive", archive, "--out", tmp_path, "--teacher", tmp_path)
    assert code == 2 and "is not the folder of a finished run" in errors
    for arguments, words in (
        (["--counts", "5000"], "images of head and tail expected, such as 5000:500"),
        (["--counts", "5000:0"], "5000:0 given"),
        (["--eps", 0, 1], "1 given, a number of at least 0 and less than 1 allowed"),
        (["--head", "../dog"], "../dog given, a class of CIFAR-10"),
        (["--archive", tmp_path / "none.tar"], "give the CIFAR-10 python archive"),
        (["--counts", "10:5"], "has no records of counts 10:5 yet: give --archive"),
        (["--archive", archive, "--counts", "10:5"], "is a cifar100 archive; type cifar100-lt, or give one of cifar10"),
        (["distill.head_smoothing=0.1"], "distill is set by this tool"),
    ):
        code, _, errors = call("cifar10-flatness", "--out", tmp_path / "new", *arguments)
        assert code == 2 and words in errors
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
