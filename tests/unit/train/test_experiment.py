"""The entry scripts from end to end on small real records: teacher, cache, students, evaluation, and every refusal."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import losses, refused, result, run, tiny_config
from PIL import Image
from safetensors.torch import load_file

from pipelines.libffcv import library_path
from pipelines.records.encoding import AS_THEY_ARE, Encoding
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.networks.final import load_final, save_final


def test_teacher_learns_and_counts_every_test_image(taught: Path) -> None:
    figures = result(taught, "t")
    assert figures["test"]["samples"] == 37
    assert figures["test"]["many"] is None and figures["test"]["few"] is not None
    curve = losses(taught, "t")
    assert curve[-1] < curve[0]
    assert (taught / "runs/t/model.safetensors").exists()


def test_student_from_the_cache_is_the_student_trained_online(taught: Path) -> None:
    run("distill", taught / "dive.yaml", "cache.paths=[caches]", "run=cached", cwd=taught)
    run("distill", taught / "dive.yaml", "distill.teacher=t", "run=online", cwd=taught)
    assert np.allclose(losses(taught, "cached"), losses(taught, "online"), rtol=0, atol=2e-4)
    cached, online = (load_file(taught / f"runs/{name}/model.safetensors") for name in ("cached", "online"))
    assert max(float((cached[k].double() - online[k].double()).abs().max()) for k in cached) < 2e-2


def test_same_command_again_prints_the_result(taught: Path) -> None:
    before = (taught / "runs/t/metrics.jsonl").read_bytes()
    again = run("teacher", taught / "bsce.yaml", "run=t", "data.seed=1", cwd=taught)
    assert "is finished" in again.stdout and "test.top1" in again.stdout
    assert (taught / "runs/t/metrics.jsonl").read_bytes() == before


def test_evaluate_gives_the_runs_own_figures_and_predictions(taught: Path) -> None:
    run("evaluate", "t", "predictions=p.npz", cwd=taught)
    figures = json.loads((taught / "runs/t/evaluation_test.json").read_text())
    assert len(figures.pop("by_class")) == 5
    assert figures == result(taught, "t")["test"]
    saved = np.load(taught / "p.npz")
    assert saved["logits"].dtype == np.float32 and saved["logits"].shape == (37, 5)
    assert (np.diff(saved["keys"]) > 0).all()
    assert (saved["logits"].argmax(1) == saved["labels"]).mean() == figures["top1"]


def test_kd_and_ce_run_too(taught: Path, tiny: Path) -> None:
    kd = tiny_config(taught, tiny, "kd", "  tau: 4\n")
    run("distill", kd, "distill.teacher=t", "schedule.epochs=1", "cache.codec=f16", cwd=taught)
    ce = tiny_config(taught, tiny, "ce")
    run("teacher", ce, "schedule.epochs=1", "optim.accumulate=2", "optim.clip=1.0", cwd=taught)
    assert result(taught, "kd-s0")["test"]["samples"] == result(taught, "ce-s0")["test"]["samples"] == 37


def test_accumulation_takes_the_same_rows(taught: Path) -> None:
    """Two halves of a batch give the loss of the whole, except that batch norm sees halves: close, not equal."""
    run("teacher", taught / "bsce.yaml", "run=whole", "schedule.epochs=1", cwd=taught)
    run("teacher", taught / "bsce.yaml", "run=halves", "schedule.epochs=1", "optim.accumulate=2", cwd=taught)
    assert losses(taught, "whole") == pytest.approx(losses(taught, "halves"), rel=0.2)
    assert losses(taught, "whole") != losses(taught, "halves")


def test_dry_run_is_one_batch_and_writes_nothing(taught: Path) -> None:
    dry = ("eval.batch=16", "ema.decay=0.9", "run=dry", "--dry-run")
    done = run("distill", taught / "dive.yaml", "cache.paths=[caches]", *dry, cwd=taught)
    assert "dry run: loss" in done.stdout and "test: 16 of 37 images evaluated" in done.stdout
    assert not (taught / "runs/dry").exists()


def test_dry_run_of_an_evaluation_is_one_batch(taught: Path) -> None:
    before = {path: path.read_bytes() for path in (taught / "runs/t").glob("*.json")}
    dry = ("predictions=dry.npz", "export=dry", "--dry-run")
    done = run("evaluate", "t", "eval.batch=16", *dry, cwd=taught)
    assert "dry run: 16 of 37 images evaluated, nothing written" in done.stdout
    assert {path: path.read_bytes() for path in (taught / "runs/t").glob("*.json")} == before
    assert not (taught / "dry.npz").exists() and not (taught / "dry").exists()
    assert "has other classes" in refused(taught, "evaluate", "t", f"data.test={other_classes(taught)}", "--dry-run")
    assert "the first argument must be a run: python train/evaluate.py RUN" in refused(taught, "evaluate")
    assert "the first argument must be a run" in refused(taught, "evaluate", "--dry-run", "t")


def other_classes(folder: Path) -> Path:
    images = [Sample(f"{i}", i, np.zeros((8, 8, 3), np.uint8)) for i in range(2)]
    write_records(folder / "other.beton", images, ["a", "b"], kind="test", force=True)
    return folder / "other.beton"


def test_refusals_are_one_line(taught: Path, tiny: Path, tmp_path: Path) -> None:
    """Every mistake in settings: what was given, and what to type."""
    dive, cached = taught / "dive.yaml", "cache.paths=[caches]"
    assert "optim.lr" in refused(taught, "distill", dive, cached, "optim.lrr=1", apart=True)
    assert "nothere.beton" in refused(taught, "distill", dive, cached, "data.train=nothere.beton")
    assert "nothere.yaml" in refused(taught, "distill", taught / "nothere.yaml")
    cut = tmp_path / "cut.beton"
    cut.write_bytes((tiny / "train.beton").read_bytes()[:-100])
    assert "truncated" in refused(taught, "distill", dive, cached, f"data.train={cut}")
    assert "distill.tau=null takes" in refused(taught, "distill", dive, "distill.teacher=t", "distill.tau=null")
    assert "cache.paths" in refused(taught, "distill", dive)
    assert "train/teacher.py" in refused(taught, "distill", taught / "bsce.yaml")
    assert "model" in refused(taught, "distill", dive, cached, "model.name=resnet33")
    large = refused(taught, "distill", dive, cached, "optim.batch=1000")
    assert large.endswith("118 training images; type optim.batch=16 optim.lr_scale=linear optim.lr_base_batch=1000")
    scaled = refused(taught, "distill", dive, cached, "optim.batch=1000", "optim.lr_scale=sqrt", "optim.accumulate=10")
    assert scaled.endswith("118 training images; type optim.batch=10")
    shared = refused(taught, "distill", dive, cached, "optim.batch=1000", "optim.accumulate=200")
    assert "cannot share: use fewer processes, or optim.accumulate=1" in shared
    assert "nothing" in refused(taught, "distill", dive, "distill.teacher=nothing")
    assert "data_seed" in refused(taught, "distill", dive, cached, "data.seed=5")
    assert "recipe.pad" in refused(taught, "distill", dive, cached, "data.recipe.pad=1")
    assert "views" in refused(taught, "distill", dive, cached, "schedule.epochs=4")
    assert "schedule.epochs=null schedule.steps=9" in refused(taught, "distill", dive, cached, "schedule.steps=9")
    beyond = ["schedule.epochs=null", "schedule.samples=100", "schedule.warmup_epochs=2"]
    assert "from 0 to 1 (7 steps in all, 7 an epoch)" in refused(taught, "distill", dive, cached, *beyond)


def test_a_batch_that_leaves_out_many_images_says_so(taught: Path) -> None:
    def dry(*settings: str) -> str:
        return run("teacher", taught / "bsce.yaml", "run=dry", *settings, "--dry-run", cwd=taught).stdout

    assert "an epoch has 1 step of 64 images: 54 of 118 are left out of each, others each time" in dry("optim.batch=64")
    assert "left out" not in dry("optim.batch=16")  # 6 of 118
    assert "left out" not in dry("optim.batch=64", "data.sampling=class_balanced"), "it would be another number"


@pytest.mark.parametrize("images", [1, 2, 7])
def test_a_handful_of_images_trains(images: int, tmp_path: Path) -> None:
    """The batch that the refusal names is one that works."""
    rng = np.random.default_rng(0)
    samples = [Sample(f"{i}", i % 2, rng.integers(0, 256, (8, 8, 3), np.uint8)) for i in range(images)]
    names = ["a", "b"][: min(2, images)]
    write_records(tmp_path / "few.beton", samples, names, kind="test")
    few = ["data.train=few.beton", "data.test=few.beton", "schedule.epochs=1", "run=few"]
    config = tiny_config(tmp_path, tmp_path)
    said = refused(tmp_path, "teacher", config, *few)
    typed = said.partition("; type ")[2].split()
    assert typed[0] == f"optim.batch={max(1, images // 4)}"
    assert "--dry-run" not in typed and run("teacher", config, *few, *typed, cwd=tmp_path).returncode == 0
    assert result(tmp_path, "few")["steps"] == images // int(typed[0].partition("=")[2])


def test_sampling_by_class_trains_with_the_prior_of_what_is_drawn(taught: Path, tiny: Path) -> None:
    """Of classes drawn equally often balanced softmax is cross-entropy, and DiVE with p = 1 is KD."""
    balanced, root, cached = "data.sampling=class_balanced", "data.sampling=square_root", "cache.paths=[caches]"
    ce, kd = tiny_config(taught, tiny, "ce"), tiny_config(taught, tiny, "kd", "  tau: 4\n")
    dive = tiny_config(taught, tiny, "dive", "  tau: 4\n  p: 1\n")
    for name, script, first, second in (
        ("plain", "teacher", (ce,), (taught / "bsce.yaml",)),
        ("soft", "distill", (kd, cached), (dive, cached)),
    ):
        run(script, *first, balanced, f"run={name}-balanced", cwd=taught)
        run(script, *second, balanced, f"run={name}-prior-balanced", cwd=taught)
        run(script, *first, root, f"run={name}-root", cwd=taught)
        run(script, *second, root, f"run={name}-prior-root", cwd=taught)
        assert losses(taught, f"{name}-balanced")[-1] < losses(taught, f"{name}-balanced")[0]
        assert losses(taught, f"{name}-balanced") == losses(taught, f"{name}-prior-balanced")
        assert losses(taught, f"{name}-root") != losses(taught, f"{name}-prior-root")


def test_sampling_by_class_is_refused_where_something_else_corrects_too(taught: Path, tiny: Path) -> None:
    cached, ldam, bkd, xerm, ce = (
        "cache.paths=[caches]",
        *(tiny_config(taught, tiny, name) for name in ("ldam", "bkd", "xerm", "ce")),
    )
    for sampling in ("data.sampling=class_balanced", "data.sampling=square_root"):
        assert "distill.drw_from=1 corrects" in refused(taught, "teacher", ldam, sampling, "distill.drw_from=1")
        for config, name in ((bkd, "bkd"), (xerm, "xerm")):
            said = refused(taught, "distill", config, cached, sampling, *(["distill.tau=4"] if name == "bkd" else []))
            assert f"{sampling}: {name} corrects by the class counts" in said
        unweighted = ("distill.tau=4", "distill.bkd_beta=0", "run=unweighted", "--dry-run")
        run("distill", bkd, cached, sampling, *unweighted, cwd=taught)
        mixed = refused(taught, "teacher", ce, sampling, "data.recipe.mix=mixup")
        assert "half of the labels would be drawn otherwise" in mixed


def test_a_temperature_is_not_chosen_for_logits_that_the_loss_changes(taught: Path, tiny: Path) -> None:
    cached = ("cache.paths=[caches]", "distill.tau=null")
    bkd, kd = (tiny_config(taught, tiny, name) for name in ("bkd", "kd"))
    assert "bkd weights them anew" in refused(taught, "distill", bkd, *cached)
    run("distill", bkd, *cached, "distill.bkd_beta=0", "run=flat", "--dry-run", cwd=taught)
    assert "distill.zscore=true changes them" in refused(taught, "distill", kd, *cached, "distill.zscore=true")
    for sampling in ("data.sampling=class_balanced", "data.sampling=square_root"):
        by_class = refused(taught, "distill", kd, *cached, sampling)
        assert f"{sampling} draws them by class: type distill.tau=3" in by_class


def test_switches_of_the_loss_lie_within_the_training_however_its_length_is_given(taught: Path, tiny: Path) -> None:
    """Seven steps an epoch: ten steps begin the epochs 0 and 1."""
    ldam = [tiny_config(taught, tiny, "ldam"), "schedule.epochs=null", "schedule.per=step", "run=switched"]
    for length in ("schedule.steps=10", "schedule.samples=160"):
        line = refused(taught, "teacher", *ldam, length, "distill.drw_from=2")
        assert "distill.drw_from=2: this training has the epochs 0 to 1 (10 steps in all, 7 an epoch)" in line
        run("teacher", *ldam, length, "distill.drw_from=1", "--dry-run", cwd=taught)


@pytest.mark.parametrize("backend", ["ffcv", "reference", "resident"])
def test_raw_records_train_alike_on_every_backend_and_share_a_cache(taught: Path, backend: str) -> None:
    """To the last bit: raw pixels pass through no decoder, so that a cache of one backend is valid for the others."""
    if backend == "ffcv" and library_path() is None:
        pytest.skip("FFCV is not installed")
    run("teacher", taught / "bsce.yaml", f"data.backend={backend}", "data.seed=1", f"run=t-{backend}", cwd=taught)
    assert losses(taught, f"t-{backend}") == losses(taught, "t")
    strict = ["cache.paths=[caches]", "cache.pixels=same", f"data.backend={backend}", f"run=s-{backend}"]
    run("distill", taught / "dive.yaml", *strict, "cache.check=always", cwd=taught)


def unfinish(folder: Path) -> None:
    """Make it look as if the run had been killed just before its end."""
    (folder / "result.json").unlink()


def test_a_run_goes_on_with_the_backend_and_the_records_it_began_with(taught: Path, tiny: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copy(tiny / f"{split}.beton", tmp_path)
    config = tiny_config(tmp_path, tmp_path)
    run("teacher", config, "data.backend=reference", "run=explicit", "schedule.epochs=1", cwd=taught)
    run("teacher", config, "run=kept", "schedule.epochs=1", cwd=taught)
    record = json.loads((taught / "runs/kept/run.json").read_text())
    assert record["facts"]["pixels"] == "raw" and record["facts"]["train"] == Records(tmp_path / "train.beton").digest
    record["facts"]["backend"] = "reference"  # as where FFCV was missing when the run began
    (taught / "runs/kept/run.json").write_text(json.dumps(record))
    unfinish(taught / "runs/kept")
    assert "backend reference" in run("teacher", config, "run=kept", "schedule.epochs=1", cwd=taught).stdout
    assert result(taught, "kept")["test"]["backend"] == "reference"
    run("evaluate", "kept", cwd=taught)
    figures = json.loads((taught / "runs/kept/evaluation_test.json").read_text())
    assert figures.items() >= result(taught, "kept")["test"].items()
    unfinish(taught / "runs/kept")
    names = [f"class_{c}" for c in range(5)]
    pixels = np.zeros((8, 8, 3), np.uint8)
    fewer = [Sample(f"train/{i}", i % 5, pixels) for i in range(40)]
    write_records(tmp_path / "train.beton", fewer, names, kind="test", force=True)
    done = run("teacher", config, "run=kept", "schedule.epochs=1", cwd=taught, check=False)
    assert done.returncode == 2 and "was started on other records: data.train had the digest" in done.stderr


def test_moved_records_and_teacher_are_recognised(tiny: Path, tmp_path: Path) -> None:
    """Their paths may change in mid-run, but not their content."""
    config = tiny_config(tmp_path, tiny, "dive", "  tau: 3\n")
    run("teacher", config, "run=t", "distill.method=bsce", "distill.tau=null", cwd=tmp_path)
    run("teacher", config, "run=u", "distill.method=bsce", "distill.tau=null", "seed=1", cwd=tmp_path)
    moved = tmp_path / "moved.beton"
    shutil.copy(tiny / "train.beton", moved)
    stopped = ["run=s", "distill.teacher=t"]
    run("distill", config, *stopped, cwd=tmp_path)
    for name in ("result.json", "model.json"):  # as if it had been killed before its end
        (tmp_path / "runs/s" / name).unlink()
    shutil.copytree(tmp_path / "runs/t", tmp_path / "elsewhere")
    other = run("distill", config, "run=s", "distill.teacher=u", cwd=tmp_path, check=False)
    assert other.returncode == 2 and "other teachers" in other.stderr
    done = run("distill", config, "run=s", f"data.train={moved}", "distill.teacher=./elsewhere", cwd=tmp_path)
    assert "distill.teacher: t -> ./elsewhere" in done.stdout


def test_a_run_does_not_change_from_a_teacher_to_a_cache_of_another(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny, "dive", "  tau: 3\n")
    for name, seed in (("t", 0), ("u", 1)):
        run("teacher", config, f"run={name}", "distill.method=bsce", "distill.tau=null", f"seed={seed}", cwd=tmp_path)
    run("cache_logits", config, "distill.teacher=u", cwd=tmp_path)
    run("distill", config, "run=s", "distill.teacher=t", cwd=tmp_path)
    for name in ("result.json", "model.json"):
        (tmp_path / "runs/s" / name).unlink()
    other = run("distill", config, "run=s", "cache.paths=[caches]", cwd=tmp_path, check=False)
    assert other.returncode == 2 and "other teachers" in other.stderr


def test_the_same_images_stored_otherwise_are_other_records(tmp_path: Path) -> None:
    """Their digest, which covers the originals, is the same."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 40, 40, 3), np.uint8)
    for image, i in zip(images, range(40), strict=True):
        (tmp_path / f"images/c{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"images/c{i % 2}/{i}.png")
    for name, encoding in (("whole", AS_THEY_ARE), ("small", Encoding(short_side=24))):
        write_records(
            tmp_path / f"{name}.beton",
            [Sample(f"c{i % 2}/{i}", i % 2, tmp_path / f"images/c{i % 2}/{i}.png") for i in range(40)],
            ["a", "b"],
            kind="test",
            encoding=encoding,
        )
    config = tmp_path / "c.yaml"
    config.write_text(
        "data: {recipe: {crop: random_resized_crop, size: 16, short_side: 18}}\nmodel: {name: resnet8}\n"
        "optim: {batch: 16}\nschedule: {epochs: 1}\ndistill: {method: ce}\n"
    )
    run("teacher", config, "run=r", f"data.train={tmp_path}/whole.beton", cwd=tmp_path)
    for name in ("result.json", "model.json"):
        (tmp_path / "runs/r" / name).unlink()
    other = run("teacher", config, "run=r", f"data.train={tmp_path}/small.beton", cwd=tmp_path, check=False)
    assert other.returncode == 2 and "data.train stored otherwise" in other.stderr


def spoilt(taught: Path, name: str, value: float, tensor: str = "fc.weight") -> str:
    """A finished run like `t`, as a path, with `value` in the first row of a tensor."""
    state, info = load_final(taught / "runs/t")
    state[tensor][0] = value
    folder = taught / "runs" / name
    shutil.copytree(taught / "runs/t", folder)
    (folder / "evaluation_test.json").unlink(missing_ok=True)
    save_final(folder, state, info)
    return f"runs/{name}"


@pytest.mark.parametrize(
    ("name", "value", "tensor", "words"),
    [
        ("nan", float("nan"), "fc.weight", "holds NaN or infinity in fc.weight: "),
        ("inf", float("inf"), "bn1.running_var", "holds NaN or infinity in bn1.running_var: "),
        ("below", -1.0, "bn1.running_var", "holds a negative variance in bn1.running_var: "),
    ],
)
def test_weights_that_are_not_finite_are_refused_where_they_are_read(
    taught: Path, name: str, value: float, tensor: str, words: str
) -> None:
    run_of = spoilt(taught, name, value, tensor)
    assert f"model.init={run_of} {words}" in refused(taught, "teacher", taught / "bsce.yaml", f"model.init={run_of}")
    assert f"distill.teacher={run_of} {words}" in refused(
        taught, "distill", taught / "dive.yaml", f"distill.teacher={run_of}"
    )
    for more in ([], [f"export=exports/{name}"], ["predictions=p.npz"]):
        assert f"run {run_of} {words}" in refused(taught, "evaluate", name, *more)
    assert not (taught / "exports" / name).exists()
    shutil.rmtree(taught / run_of)


def test_finite_weights_whose_logits_overflow_are_not_blamed_on_the_learning_rate(taught: Path) -> None:
    """Told by whoever computes the logits first: evaluation, dry run, first step, online teacher."""
    run_of = spoilt(taught, "huge", 3e38)
    by_name = r"gives NaN or infinite logits for \d+ of \d+ images of .*(train|test).beton, first for (train|test)/class_\d/\d+ "
    assert re.search(f"the network {by_name}", refused(taught, "evaluate", "huge", "export=exports/huge"))
    assert not (taught / "exports/huge").exists() and not (taught / "runs/huge/evaluation_test.json").exists()
    init, online = f"model.init={run_of}", ["distill.teacher=" + run_of, "run=s-huge"]
    said = refused(taught, "teacher", taught / "bsce.yaml", init, "--dry-run")
    assert re.search(rf"the network at its start \(model.init={run_of}\) {by_name}", said)
    said = refused(taught, "distill", taught / "dive.yaml", *online, "--dry-run")
    assert re.search(f"the source of soft targets {by_name}", said)
    begun = run("teacher", taught / "bsce.yaml", init, "run=b-huge", cwd=taught, check=False)
    assert begun.returncode == 2 and "loss of step 0 is not finite, before any update" in begun.stderr
    assert init in begun.stderr and "optim.lr" not in begun.stderr
    begun = run("distill", taught / "dive.yaml", *online, cwd=taught, check=False)
    assert begun.returncode == 2 and re.search(f"the source of soft targets {by_name}", begun.stderr)
    assert "optim.lr" not in begun.stderr and not list((taught / "runs/s-huge").glob("checkpoints/step_*"))


def test_batch_norm_over_one_value_is_told_by_the_settings(taught: Path) -> None:
    small = ["data.recipe.crop=random_resized_crop", "data.recipe.short_side=18", "data.recipe.size=4"]
    said = refused(taught, "teacher", taught / "bsce.yaml", *small, "optim.batch=2", "optim.accumulate=2", "--dry-run")
    assert "is trained on 1 image at a time" in said and "data.recipe.size=4" in said and "optim.accumulate" in said
    begun = run("teacher", taught / "bsce.yaml", *small, "optim.batch=1", "run=one", cwd=taught, check=False)
    assert begun.returncode == 2 and begun.stderr.startswith(
        "error: optim.batch: model.name=resnet8 is trained on 1 image"
    )
