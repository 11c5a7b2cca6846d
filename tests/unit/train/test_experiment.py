"""The entry scripts from end to end on small real records: teacher, cache, students, evaluation, and every refusal."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import run, tiny_config
from safetensors.torch import load_file

from pipelines.libffcv import library_path
from pipelines.logits import LogitCache
from pipelines.logits.flatness import recommend, virtual_examples
from pipelines.records.reader import Records
from pipelines.records.writing import Sample, write_records

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory with a finished teacher `t` and its cache in caches/."""
    folder = tmp_path_factory.mktemp("work")
    run("teacher", tiny_config(folder, tiny, "bsce"), "run=t", "data.seed=1", cwd=folder)
    run("cache_logits", tiny_config(folder, tiny, "dive", DIVE), "distill.teacher=t", "cache.codec=f32", cwd=folder)
    return folder


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "result.json").read_text())


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def test_teacher_learns_and_counts_every_test_image(work: Path) -> None:
    figures = result(work, "t")
    assert figures["test"]["samples"] == 37
    assert figures["test"]["many"] is None and figures["test"]["few"] is not None
    curve = losses(work, "t")
    assert curve[-1] < curve[0]
    assert (work / "runs/t/model.safetensors").exists()


def test_student_from_the_cache_is_the_student_trained_online(work: Path) -> None:
    run("distill", work / "dive.yaml", "cache.paths=[caches]", "run=cached", cwd=work)
    run("distill", work / "dive.yaml", "distill.teacher=t", "run=online", cwd=work)
    assert np.allclose(losses(work, "cached"), losses(work, "online"), rtol=0, atol=2e-4)
    cached, online = (load_file(work / f"runs/{name}/model.safetensors") for name in ("cached", "online"))
    assert max(float((cached[k].double() - online[k].double()).abs().max()) for k in cached) < 2e-2


def test_same_command_again_prints_the_result(work: Path) -> None:
    before = (work / "runs/t/metrics.jsonl").read_bytes()
    again = run("teacher", work / "bsce.yaml", "run=t", "data.seed=1", cwd=work)
    assert "is finished" in again.stdout and "test.top1" in again.stdout
    assert (work / "runs/t/metrics.jsonl").read_bytes() == before


def test_evaluate_gives_the_runs_own_figures_and_predictions(work: Path) -> None:
    run("evaluate", "t", "predictions=p.npz", cwd=work)
    figures = json.loads((work / "runs/t/evaluation_test.json").read_text())
    assert figures == result(work, "t")["test"]
    saved = np.load(work / "p.npz")
    assert saved["logits"].dtype == np.float16 and saved["logits"].shape == (37, 5)
    assert (np.diff(saved["keys"]) > 0).all()
    assert (saved["logits"].argmax(1) == saved["labels"]).mean() == pytest.approx(figures["top1"], abs=1 / 37)


def test_kd_and_ce_run_too(work: Path, tiny: Path) -> None:
    kd = tiny_config(work, tiny, "kd", "  tau: 4\n")
    run("distill", kd, "distill.teacher=t", "schedule.epochs=1", "cache.codec=f16", cwd=work)
    ce = tiny_config(work, tiny, "ce")
    run("teacher", ce, "schedule.epochs=1", "optim.accumulate=2", "optim.clip=1.0", cwd=work)
    assert result(work, "kd-s0")["test"]["samples"] == result(work, "ce-s0")["test"]["samples"] == 37


def test_accumulation_takes_the_same_rows(work: Path) -> None:
    """Two halves of a batch give the loss of the whole up to batch norm, which sees halves: close, not equal."""
    run("teacher", work / "bsce.yaml", "run=whole", "schedule.epochs=1", cwd=work)
    run("teacher", work / "bsce.yaml", "run=halves", "schedule.epochs=1", "optim.accumulate=2", cwd=work)
    assert losses(work, "whole") == pytest.approx(losses(work, "halves"), rel=0.2)
    assert losses(work, "whole") != losses(work, "halves")


def test_dry_run_writes_nothing(work: Path) -> None:
    done = run("distill", work / "dive.yaml", "cache.paths=[caches]", "run=dry", "--dry-run", cwd=work)
    assert "dry run: loss" in done.stdout and "37 images evaluated" in done.stdout
    assert not (work / "runs/dry").exists()


def refused(work: Path, script: str, *arguments: object, apart: bool = False) -> str:
    """The one line of a refusal: exit code 2, no traceback, no run directory left behind."""
    runs = sorted(work.glob("runs/*"))
    done = run(script, *arguments, cwd=work, check=False, apart=apart)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr + done.stdout
    assert sorted(work.glob("runs/*")) == runs
    return lines[0]


def test_refusals_are_one_line(work: Path, tiny: Path, tmp_path: Path) -> None:
    """Every mistake that settings can make: what was given, and what to type."""
    dive, cached = work / "dive.yaml", "cache.paths=[caches]"
    assert "optim.lr" in refused(work, "distill", dive, cached, "optim.lrr=1", apart=True)
    assert "nothere.beton" in refused(work, "distill", dive, cached, "data.train=nothere.beton")
    assert "nothere.yaml" in refused(work, "distill", work / "nothere.yaml")
    cut = tmp_path / "cut.beton"
    cut.write_bytes((tiny / "train.beton").read_bytes()[:-100])
    assert "truncated" in refused(work, "distill", dive, cached, f"data.train={cut}")
    assert "distill.tau=null takes" in refused(work, "distill", dive, "distill.teacher=t", "distill.tau=null")
    assert "cache.paths" in refused(work, "distill", dive)
    assert "train/teacher.py" in refused(work, "distill", work / "bsce.yaml")
    assert "model" in refused(work, "distill", dive, cached, "model.name=resnet33")
    assert "optim.batch" in refused(work, "distill", dive, cached, "optim.batch=1000")
    assert "nothing" in refused(work, "distill", dive, "distill.teacher=nothing")
    assert "data_seed" in refused(work, "distill", dive, cached, "data.seed=5")
    assert "recipe.pad" in refused(work, "distill", dive, cached, "data.recipe.pad=1")
    assert "views" in refused(work, "distill", dive, cached, "schedule.epochs=4")
    assert "schedule.epochs=null schedule.steps=9" in refused(work, "distill", dive, cached, "schedule.steps=9")
    beyond = ["schedule.epochs=null", "schedule.samples=100", "schedule.warmup_epochs=2"]
    assert "from 0 to 1 (7 steps in all, 7 an epoch)" in refused(work, "distill", dive, cached, *beyond)


def test_a_cache_of_another_dataset_or_teacher_is_refused(work: Path, tiny: Path) -> None:
    dive = work / "dive.yaml"
    # test.beton has the same classes, but none of the cached samples
    other = refused(work, "distill", dive, "cache.paths=[caches]", f"data.train={tiny}/test.beton")
    assert "another dataset" in other
    run("teacher", work / "bsce.yaml", "run=t2", "seed=7", "schedule.epochs=1", cwd=work)
    assert "another teacher" in refused(work, "distill", dive, "cache.paths=[caches]", "distill.teacher=t2")


def test_a_class_of_the_test_set_without_training_images_is_named(work: Path, tmp_path: Path) -> None:
    names = [f"class_{c}" for c in range(5)]
    images = [np.full((16, 16, 3), 40 * c, np.uint8) for c in (0, 1, 2)]
    samples = [Sample(f"train/{c}/{i}", c, images[c]) for i in range(12) for c in (0, 1, 2)]
    write_records(tmp_path / "three.beton", samples, names, kind="test")
    line = refused(work, "teacher", work / "bsce.yaml", f"data.train={tmp_path}/three.beton")
    assert "test.beton has images of class class_3 (and of 1 more), of which data.train=" in line
    assert "three.beton has none" in line


def test_class_balanced_sampling_trains_and_is_refused_where_the_prior_corrects_too(work: Path, tiny: Path) -> None:
    balanced = "data.sampling=class_balanced"
    run("teacher", tiny_config(work, tiny, "ce"), balanced, "run=balanced", cwd=work)
    assert losses(work, "balanced")[-1] < losses(work, "balanced")[0]
    kd = tiny_config(work, tiny, "kd", "  tau: 4\n")
    run("distill", kd, "cache.paths=[caches]", "run=kd-balanced", balanced, cwd=work)
    assert "evened out already" in refused(work, "teacher", work / "bsce.yaml", balanced)


@pytest.mark.parametrize("backend", ["ffcv", "reference", "resident"])
def test_raw_records_train_alike_on_every_backend_and_share_a_cache(work: Path, backend: str) -> None:
    """To the last bit: raw pixels pass through no decoder, so that a cache of one backend is the others' too."""
    if backend == "ffcv" and library_path() is None:
        pytest.skip("FFCV is not installed")
    run("teacher", work / "bsce.yaml", f"data.backend={backend}", "data.seed=1", f"run=t-{backend}", cwd=work)
    assert losses(work, f"t-{backend}") == losses(work, "t")
    strict = ["cache.paths=[caches]", "cache.pixels=same", f"data.backend={backend}", f"run=s-{backend}"]
    run("distill", work / "dive.yaml", *strict, "cache.check=always", cwd=work)


def test_tau_null_takes_the_recommended_temperature(work: Path, tiny: Path) -> None:
    """T from the cache's own distribution; tau = T * p with the configured p; printed, and kept in the result."""
    train = Records(tiny / "train.beton")
    cache = LogitCache(work / "caches")
    chosen = recommend(virtual_examples(cache, train.keys), train.class_counts).temperature
    for p in (0.5, 1.0):
        settings = [
            "cache.paths=[caches]",
            "distill.tau=null",
            f"distill.p={p}",
            f"run=chosen-{p}",
            "schedule.epochs=1",
        ]
        done = run("distill", work / "dive.yaml", *settings, cwd=work)
        assert f"distill.tau: {chosen * p:g}, chosen from the cache (T = tau/p = {chosen:g}, " in done.stdout
        assert result(work, f"chosen-{p}")["tau"] == chosen * p
    given = ["cache.paths=[caches]", f"distill.tau={chosen}", "distill.p=1.0", "run=given", "schedule.epochs=1"]
    run("distill", work / "dive.yaml", *given, cwd=work)
    assert losses(work, "given") == losses(work, "chosen-1.0")


def test_views_of_a_training_in_steps_are_its_begun_epochs(work: Path) -> None:
    """A cache of 3 views, 7 steps an epoch: 15 to 21 steps begin three epochs."""
    in_steps = ["cache.paths=[caches]", "schedule.epochs=null"]
    done = run("distill", work / "dive.yaml", *in_steps, "schedule.steps=15", "run=short", cwd=work)
    assert "each is used" not in done.stdout and result(work, "short")["steps"] == 15
    assert losses(work, "short")[:1] == pytest.approx(losses(work, "cached")[:1], rel=1e-6)
    assert "views" in refused(work, "distill", work / "dive.yaml", *in_steps, "schedule.steps=22")
    images = ["distill.teacher=t", "schedule.epochs=null", "schedule.samples=240", "--dry-run"]
    assert "would write 3 views" in run("cache_logits", work / "dive.yaml", *images, cwd=work).stdout


def unfinish(folder: Path) -> None:
    """As if the run had been killed before its last word."""
    (folder / "result.json").unlink()


def test_a_run_goes_on_with_the_backend_and_the_records_it_began_with(work: Path, tiny: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copy(tiny / f"{split}.beton", tmp_path)
    config = tiny_config(tmp_path, tmp_path)
    run("teacher", config, "data.backend=reference", "run=explicit", "schedule.epochs=1", cwd=work)
    run("teacher", config, "run=kept", "schedule.epochs=1", cwd=work)
    record = json.loads((work / "runs/kept/run.json").read_text())
    assert record["facts"]["pixels"] == "raw" and record["facts"]["train"] == Records(tmp_path / "train.beton").digest
    record["facts"]["backend"] = "reference"  # as where FFCV was missing when the run began
    (work / "runs/kept/run.json").write_text(json.dumps(record))
    unfinish(work / "runs/kept")
    assert "backend reference" in run("teacher", config, "run=kept", "schedule.epochs=1", cwd=work).stdout
    assert result(work, "kept")["test"]["backend"] == "reference"
    run("evaluate", "kept", cwd=work)
    assert json.loads((work / "runs/kept/evaluation_test.json").read_text()) == result(work, "kept")["test"]
    unfinish(work / "runs/kept")
    names = [f"class_{c}" for c in range(5)]
    pixels = np.zeros((16, 16, 3), np.uint8)
    fewer = [Sample(f"train/{i}", i % 5, pixels) for i in range(40)]
    write_records(tmp_path / "train.beton", fewer, names, kind="test", force=True)
    done = run("teacher", config, "run=kept", "schedule.epochs=1", cwd=work, check=False)
    assert done.returncode == 2 and "was started on other records: data.train had the digest" in done.stderr
