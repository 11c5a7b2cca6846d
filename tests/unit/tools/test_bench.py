"""The bench from its command line to its three outputs, on small real records; its clock and its verdict separately."""

import contextlib
import io
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.launch import run, tiny_config
from PIL import Image

from pipelines import libffcv
from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.backends.reference import ReferenceBackend
from pipelines.batch import Plan
from pipelines.loader import Loader
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from tools import bench
from tools.benchmark import baselines as bench_baselines
from tools.benchmark import report as bench_report
from tools.benchmark import session
from tools.benchmark.baselines import Baseline, ImageFiles, Job, Unavailable
from tools.benchmark.clock import Stream, Timing, endless
from tools.benchmark.items import Row
from train.run.exits import guard

CPU = torch.device("cpu")
COUNT = 14
CONFIG = """
data:
  train: {records}
  backend: reference
  recipe: {{crop: random_resized_crop, size: 16, jitter: [0.4, 0.4, 0.4]}}
  workers: 2
model: {{name: resnet8}}
optim: {{batch: 4}}
distill: {{method: dive}}
"""
IDS = ["a.resident", "a.dali", "a.ffcv", "a.reference", "b.step", "b.finish", "b.transfer", "c.training", "d.cache"]
IDS += ["e.online", "f.pil", "f.pil_whole", "f.ffcv"]


@pytest.fixture(scope="module", autouse=True)
def warm_comparisons() -> Iterator[None]:
    """The processes of the comparisons are forks of one that has imported torch (tests/conftest.py), not new interpreters."""
    here = SimpleNamespace(get_context=lambda kind: multiprocessing.get_context("forkserver"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_baselines, "multiprocessing", here)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 14 JPEG records of 3 classes, 40 x 30 to 66 x 43, and bench.yaml."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    samples = []
    for i in range(COUNT):
        path = folder / f"{i}.jpg"
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        small.resize((40 + 2 * i, 30 + i), Image.Resampling.BICUBIC).save(path, quality=95)
        samples.append(Sample(path.name, i % 3, path))
    write_records(folder / "train.beton", samples, ["a", "b", "c"], kind="test")
    (folder / "bench.yaml").write_text(CONFIG.format(records=folder / "train.beton"))
    return folder


def call(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """(exit code, output, errors) of `python tools/bench.py ARGUMENTS` in `folder`; temporary files go to folder/tmp."""
    (folder / "tmp").mkdir(exist_ok=True)
    out, err = io.StringIO(), io.StringIO()
    argv, before = sys.argv, tempfile.tempdir
    sys.argv, tempfile.tempdir = ["tools/bench.py", *map(str, arguments)], str(folder / "tmp")
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guard(bench.main)
    finally:
        sys.argv, tempfile.tempdir = argv, before
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def outputs(work: Path) -> tuple[dict, str, str]:
    """(JSON, Markdown, screen) of everything except the stock FFCV Loader, which compiles for ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "COMPARISONS", {name: name for name in ("pil", "pil_whole")})
        flags = ("--seconds", 0.05, "--rounds", 2, "--images", 20, "--json", "b.json", "--markdown", "b.md")
        code, screen, errors = call(work, "bench.yaml", "optim.accumulate=2", "optim.clip=5", *flags)
    assert code == 0, errors
    return json.loads((work / "b.json").read_text()), (work / "b.md").read_text(), screen


def test_the_step_of_routers_trains_them_alone(work: Path) -> None:
    """Of a network as drawn: the speed does not depend on the weights, so model.init is not read."""
    routers = ("distill.method=router", "model.experts=2", "model.router=3", "data.backend=reference")
    flags = ("--only", "b,c,d", "--seconds", 0, "--rounds", 1, "--images", 8, "--json", "r.json")
    code, _, errors = call(work, "bench.yaml", *routers, *flags)
    assert code == 0, errors
    rows = {row["id"]: row for row in json.loads((work / "r.json").read_text())["rows"]}
    assert rows["b.step"]["note"] == "router" and rows["c.training"]["title"] == "training from disk (router)"
    assert rows["c.training"]["images_per_s"] > 0 and "router has no soft targets" in rows["d.cache"]["absent"]
    code, _, errors = call(work, "bench.yaml", *routers[:2], "--only", "b")
    assert code == 2 and "this one has none: type model.router=30" in errors


def test_every_row_is_measured_or_says_why_not(outputs: tuple[dict, str, str]) -> None:
    rows = {row["id"]: row for row in outputs[0]["rows"]}
    assert list(rows) == IDS[:-1]
    for name, row in rows.items():
        if row["absent"]:
            assert name in ("a.resident", "a.dali", "a.ffcv", "b.transfer") and "rounds" not in row
            continue
        assert len(row["rounds"]) == 2
        for timing in row["rounds"]:
            assert timing["seconds"] >= 0.05 and timing["cpu_seconds"] > 0
            assert timing["images"] % 4 == 0 and timing["images"] >= (28 if name[0] in "af" else 8), "14 records twice"
        speeds = [timing["images"] / timing["seconds"] for timing in row["rounds"]]
        assert row["images_per_s"] == pytest.approx(np.median(speeds))
    assert rows["a.resident"]["absent"] == "it needs raw records, and these are JPEG"
    assert rows["b.transfer"]["absent"] == "none, the device is the CPU"
    assert rows["a.reference"]["note"] == "used in (c), (d), (e)"
    assert rows["d.cache"]["note"].startswith("temporary: u8") and rows["e.online"]["note"] == "resnet8, untrained"


def test_ratios_are_quotients_of_the_rows(outputs: tuple[dict, str, str]) -> None:
    rows = {row["id"]: row for row in outputs[0]["rows"]}
    ratios = outputs[0]["ratios"]
    pairs = {(ratio["over"], ratio["under"]) for ratio in ratios}
    assert {("c.training", "b.step"), ("d.cache", "b.step"), ("d.cache", "e.online")} <= pairs
    assert not any(under == "f.ffcv" for _, under in pairs), "it was not measured"
    for ratio in ratios:
        over, under = rows[ratio["over"]], rows[ratio["under"]]
        assert ratio["value"] == pytest.approx(over[ratio["figure"]] / under[ratio["figure"]])
        assert ratio["low"] <= ratio["high"]


def test_screen_and_markdown_tell_the_same(outputs: tuple[dict, str, str]) -> None:
    report, text, screen = outputs
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for row in report["rows"]:
        (line,) = [line for line in lines if f"| {row['title']} |" in line]
        shown = row["absent"] or f"{row['images_per_s']:,.0f}"
        assert shown in line and row["title"] in screen
    for ratio in report["ratios"]:
        assert f"| {ratio['title']} | {ratio['value']:.3f} |" in text and ratio["title"] in screen
    sentence = report["limits"]["sentence"]
    assert sentence in text and sentence in screen.replace("\n", " ")
    for fact in ("28 records, 14 of them distinct", "jitter [0.4, 0.4, 0.4]", "batch 4, 2 workers, backend reference"):
        assert fact in text and fact in screen


def test_nothing_is_left_behind(outputs: tuple[dict, str, str], work: Path) -> None:
    assert outputs and not list((work / "tmp").glob("bench-*")), "teacher, cache, unpacked images"
    assert not list(work.glob(".*")), "temporary files of atomic writes"
    assert not multiprocessing.active_children()


def test_a_given_cache_and_teacher_are_used(tmp_path: Path, tiny: Path) -> None:
    dive = tiny_config(tmp_path, tiny, "dive", "  tau: 3\n")
    epochs = "schedule.epochs=1"
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "data.seed=1", epochs, cwd=tmp_path)
    run("cache_logits", dive, "distill.teacher=t", "cache.codec=f16", epochs, cwd=tmp_path)
    given = (dive, epochs, "distill.teacher=t", "cache.paths=[caches]", "--only", "d,e", "--json", "j.json")
    code, _, errors = call(tmp_path, *given, "--seconds", 0, "--rounds", 1)
    assert code == 0 and "certified loss" in errors, errors
    cached, online = json.loads((tmp_path / "j.json").read_text())["rows"]
    assert cached["note"] == "given: f16, views: 1" and online["note"] == "resnet8"
    assert cached["images_per_s"] > 0 and online["images_per_s"] > 0


def test_a_method_without_soft_targets_has_no_distillation(tmp_path: Path, tiny: Path) -> None:
    flags = ("--only", "cde", "--seconds", 0, "--rounds", 1, "--json", "j.json")
    code, screen, errors = call(tmp_path, tiny_config(tmp_path, tiny, "ce"), *flags)
    assert code == 0, errors
    training, cached, online = json.loads((tmp_path / "j.json").read_text())["rows"]
    assert training["title"] == "training from disk (ce)" and training["images_per_s"] > 0
    assert cached["absent"] == online["absent"] == "distill.method=ce has no soft targets"
    assert "What limits" not in screen


def test_a_comparison_that_hangs_costs_its_row_alone(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_baselines, "_START_SECONDS", -1000.0)  # faster than anything can be
    baseline = Baseline("pil", job_of(work, tmp_path))
    try:
        with pytest.raises(Unavailable, match="failed: no answer for"):
            baseline.ready()
    finally:
        baseline.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(libffcv.library_path() is None, reason="FFCV is not installed")
def test_stock_ffcv_is_measured_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "COMPARISONS", {"ffcv": "ffcv"})  # `outputs` has the others
    monkeypatch.setattr(bench_baselines, "_START_SECONDS", 600.0)  # FFCV compiles; the machine may be busy
    flags = ("--only", "f", "--seconds", 0.05, "--rounds", 2, "--images", 20, "--json", "f.json")
    code, _, errors = call(work, "bench.yaml", "data.workers=1", *flags)
    assert code == 0, errors
    (stock,) = json.loads((work / "f.json").read_text())["rows"]
    assert stock["absent"] is None
    assert stock["note"] == "RandomResizedCropRGBImageDecoder" and stock["images_per_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench.yaml", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["bench.yaml", "--images", "0"], "--images 0: must be at least 1"),
        (["bench.yaml", "--images", "many"], "argument --images: invalid int value: 'many'; --help explains"),
        (["bench.yaml", "--seconds", "nan"], "--seconds nan: must be 0 or more"),
        (["bench.yaml", "--only", "a,g"], "'a,g' given, letters of a,b,c,d,e,f allowed"),
        (["bench.yaml", "--json", "missing/b.json"], "cannot write missing/b.json: give a file in a folder"),
        (["bench.yaml", "--markdown", "."], "cannot write .: give a file in a folder"),
        (["bench.yaml", "--round", "2"], "unknown flag '--round'"),
        (["bench.yaml", "optim.bath=4"], "nearest: optim.batch"),
        (["bench.yaml", "data.train=null"], "data.train is not set"),
        (["bench.yaml", "data.train=no.beton"], "no such record file"),
        (["bench.yaml", "data.backend=resident"], "it needs raw records"),
        (["bench.yaml", "model.name=resnet21", "--only", "b"], "no model is named 'resnet21'"),
        (["bench.yaml", "cuda_graph=true"], "cuda_graph=true needs a GPU"),
        ([], "the first argument must be a config file"),
    ],
)
def test_mistakes_are_one_line(work: Path, arguments: list[str], message: str) -> None:
    code, screen, errors = call(work, *arguments)
    lines = [line for line in errors.splitlines() if not line.startswith("preparing")]
    assert code == 2 and not screen
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_damage_is_named_before_anything_is_measured(work: Path, tmp_path: Path) -> None:
    data = bytearray((work / "train.beton").read_bytes())
    data[Records(work / "train.beton").offsets[5] + 200] ^= 1
    (tmp_path / "damaged.beton").write_bytes(data)
    code, _, errors = call(work, "bench.yaml", f"data.train={tmp_path}/damaged.beton")
    assert code == 2 and re.search(r"record 5 \(key \d+, 5.jpg\) is damaged", errors)


def test_dry_run_shows_what_would_be_measured_on(work: Path) -> None:
    code, screen, _ = call(work, "bench.yaml", "--dry-run")
    assert code == 0 and "records: train.beton: 14 JPEG images of 3 classes, median 53x36.5" in screen
    assert "images/s" not in screen


# ---- the clock ----


def test_a_stream_is_timed_after_its_warm_up_and_closed() -> None:
    events = []

    def start() -> Generator[int, None, None]:
        try:
            while True:
                time.sleep(0.002)
                events.append("batch")
                yield 7
        finally:
            events.append("closed")

    timing = Stream(start, CPU, warm=3).measure(0.05, 0)
    assert timing.seconds >= 0.05 and timing.images == 7 * (events.count("batch") - 3) and events[-1] == "closed"
    assert timing.images_per_s <= 7 / 0.002 and timing.cpu_seconds < timing.seconds, "it slept"
    assert Stream(start, CPU).measure(0, 65).images == 70
    assert Stream(start, CPU).measure(0, 0).images == 14, "two batches at least"
    assert Stream(start, CPU, workers=3).measure(0, 50).images == 63, "whole rounds of three workers"


def test_the_endless_order_repeats_the_pool_under_the_next_view() -> None:
    pool = np.array([2, 3, 5, 7, 11])
    batches = endless(pool, 4, views=2)
    plans = [next(batches) for _ in range(5)]
    positions, views = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("positions", "views"))
    assert positions.dtype == np.int64 and views.dtype == np.int32 and len(positions) == 20
    for number in range(4):
        part = slice(5 * number, 5 * number + 5)
        assert sorted(positions[part]) == pool.tolist() and set(views[part]) == {number % 2}
    assert len({tuple(positions[i : i + 5]) for i in range(0, 20, 5)}) > 1, "a new order each time"
    large = endless(pool, 12, views=3)
    assert [len(next(large)[0]) for _ in range(3)] == [12, 12, 12], "a batch may be larger than the pool"


def test_a_pass_repeats_a_small_file_and_draws_from_a_large_one(work: Path) -> None:
    records = Records(work / "train.beton")
    assert np.bincount(session.draw_pool(records, 30)).tolist() == [3] * COUNT
    drawn = session.draw_pool(records, 5)
    assert len(set(drawn.tolist())) == 5 and (np.diff(drawn) > 0).all()


# ---- comparisons ----


def job_of(work: Path, folder: Path, **changes: object) -> Job:
    pool = np.arange(COUNT)
    recipe = Recipe(size=16)
    return Job(work / "train.beton", pool, recipe, 0, 2, 4, 2, CPU, folder)._replace(**changes)


def test_pil_shows_the_pixels_of_our_views(work: Path, tmp_path: Path) -> None:
    records, params = Records(work / "train.beton"), view_params(Recipe(size=16), 0)
    positions, views = np.arange(COUNT), np.full(COUNT, 3, np.int32)
    expected = np.empty((COUNT, 16, 16, 3), np.uint8)
    found = draw(params, records, Plan(positions, views)).boxes
    ReferenceBackend(records, 1, "first").load(positions, found, expected)
    files = ImageFiles(bench_baselines._unpack(records, positions, tmp_path), records.labels, 16)
    for i in range(COUNT):
        pixels, label = files[i, *(part[i].tolist() for part in found), None]
        assert label == records.labels[i]
        difference = np.abs(pixels.numpy().astype(int) - expected[i]).max()
        assert difference <= 2, "the same filter, rounded elsewhere"


def test_pil_with_the_whole_recipe_jitters_and_normalises_as_ours(work: Path, tmp_path: Path) -> None:
    """Within the 8-bit rounding after each of three transforms: 2 levels on average."""
    records, recipe = Records(work / "train.beton"), Recipe(size=16, jitter=[0.4, 0.4, 0.4])
    finish = Finish([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], CPU, channels_last=False)
    loader = Loader(records, recipe, seed=0, backend="reference", finish=finish, device=CPU, workers=1)
    job = job_of(work, tmp_path, recipe=recipe, batch=COUNT)
    indices = next(iter(bench_baselines._Boxes(records, job, whole=True)))
    files = ImageFiles(bench_baselines._unpack(records, job.pool, tmp_path), records.labels, 16)
    [ours] = list(loader.stream([next(endless(job.pool, COUNT, 2))]))
    for index, expected in zip(indices, ours.images, strict=True):
        assert (files[index][0] - expected).abs().mean() < 2 / 255 / 0.225


def test_absent_ffcv_is_said_to_be_absent(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    monkeypatch.setattr(bench_baselines.signal, "signal", lambda *_: None)
    ours, theirs = Pipe()
    bench_baselines._serve("ffcv", job_of(work, tmp_path), theirs)
    assert ours.recv() == ("failed", "not installed")


def test_a_comparison_that_dies_costs_its_row_alone(work: Path, tmp_path: Path) -> None:
    baseline = Baseline("pil", job_of(work, tmp_path, records=tmp_path / "none.beton"))
    try:
        with pytest.raises(Unavailable, match="failed: .*no such record file"):
            baseline.ready()
        with pytest.raises(Unavailable, match="its process ended with exit code 0"):
            baseline.measure(0, 1)
    finally:
        baseline.close()
    assert not multiprocessing.active_children()

    class Dies:
        def measure(self, seconds: float, images: int) -> Timing:
            raise Unavailable("gone")

    class Lives:
        def measure(self, seconds: float, images: int) -> Timing:
            return Timing(10, 1.0, 2.0)

    dead, alive = Row("f.pil", "dead", source=Dies()), Row("a.ffcv", "alive", source=Lives())
    session.measure([dead, alive], rounds=2, seconds=0)
    assert dead.absent == "gone" and not dead.timings
    assert [timing.images_per_core_s for timing in alive.timings] == [5.0, 5.0]


# ---- the verdict ----


def rows_at(**speeds: float) -> list[Row]:
    return [Row(name.replace("_", "."), name, timings=[Timing(int(v), 1.0, 1.0)]) for name, v in speeds.items()]


@pytest.mark.parametrize(
    ("data", "step", "transfer", "trained", "least", "share"),
    [
        (5000, 1000, 50000, 940, "finish with step", "98.7% of finish with step alone"),
        (10000, 1025, 50000, 970, "finish with step", "99.5% of finish with step alone"),
        (800, 1000, 50000, 760, "data", "95.0% of data alone"),
        (5000, 1000, 500, 490, "transfer", "98.0% of transfer alone"),
    ],
)
def test_the_slowest_part_limits(data: int, step: int, transfer: int, trained: int, least: str, share: str) -> None:
    rows = rows_at(a_dali=data, a_ffcv=10, b_step=step, b_finish=20000, b_transfer=transfer, c_training=trained)
    found = bench_report.limits(rows, "dali", on_cpu=False)
    assert found is not None and found[0] == least and share in found[1]
    assert (
        f"data {data:,}, step {step:,}, finish 20,000, transfer {transfer:,}" in found[1]
        and f"from disk {trained:,}" in found[1]
    )


def test_on_a_cpu_the_parts_take_turns() -> None:
    rows = rows_at(a_ffcv=300, b_step=100, b_finish=300, c_training=60)
    rows.append(Row("b.transfer", "transfer", absent="none, the device is the CPU"))
    found = bench_report.limits(rows, "ffcv", on_cpu=True)
    assert found is not None and found[0] == "step"
    assert "step 100, finish 300 (transfer: none, the device is the CPU); training" in found[1]
    assert "60.0% of step alone and 100.0% of what" in found[1], "3 + 10 + 3 ms an image"
    slow = bench_report.limits(rows_at(a_ffcv=800, b_step=1000, b_finish=500, c_training=230), "ffcv", on_cpu=True)
    assert slow is not None and slow[0] == "finish"
    assert bench_report.limits([rows[0], *rows[2:]], "ffcv", on_cpu=True) is None, "the step was not measured"
    assert bench_report.limits(rows, "dali", on_cpu=True) is None, "its loader was not measured"
