"""The training loop: what is periodic, what is saved and resumed, and how a bad step ends it."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.launch import refused, run, tiny_config, write_tiny

from pipelines.records.reader import Records
from train import assembly, experiment, loop
from train.loop import due
from train.networks.final import load_final
from train.networks.weights import weights_hash
from train.run.checkpoint import Keep, load_latest, save


def test_due() -> None:
    assert [n for n in range(1, 11) if due(n, 3, 10)] == [3, 6, 9, 10]
    assert [n for n in range(1, 11) if due(n, 5, 10)] == [5, 10]  # the end and the period coincide: only once
    assert [n for n in range(1, 11) if due(n, 0, 10)] == [10]


def test_a_diverging_run_stops_and_keeps_no_bad_checkpoint(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    done = run("teacher", config, "run=bad", "optim.lr=1e30", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "is not finite" in done.stderr and "optim.lr" in done.stderr
    assert not list((tmp_path / "runs/bad").glob("checkpoints/step_*"))
    assert "there is no checkpoint yet" in done.stderr
    assert json.loads((tmp_path / "runs/bad/run.json").read_text())["status"] == "error"
    assert "resume=" not in done.stderr and "fp32: with other settings the same command begins anew" in done.stderr
    better = run("teacher", config, "run=bad", "schedule.epochs=1", cwd=tmp_path)
    assert "it begins anew with the settings given now" in better.stdout


def test_a_run_that_has_lost_its_checkpoints_says_that_it_begins_anew(tiny: Path, tmp_path: Path) -> None:
    command = ("teacher", tiny_config(tmp_path, tiny), "run=r", "schedule.epochs=2")
    words = "no checkpoint was kept of the steps trained before: the training begins at step 0"
    assert words not in run(*command, cwd=tmp_path).stdout
    for name in ("result.json", "model.json", "model.safetensors"):
        (tmp_path / "runs/r" / name).unlink()
    assert words not in run(*command, cwd=tmp_path).stdout
    (tmp_path / "runs/r/result.json").unlink()
    shutil.rmtree(tmp_path / "runs/r/checkpoints")
    assert words in run(*command, cwd=tmp_path).stdout
    assert [line["step"] for line in lines_of(tmp_path / "runs/r")] == [7, 14]


def test_learning_rates_are_those_of_the_schedule(tiny: Path, tmp_path: Path) -> None:
    """Seven steps per epoch; cosine per epoch over three epochs from 0.05."""
    run("teacher", tiny_config(tmp_path, tiny), "run=r", "eval.every_epochs=2", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], round(line["lr"], 6)) for line in lines if "lr" in line] == [
        (7, 0.05),
        (14, 0.0375),
        (21, 0.0125),
    ]
    assert [line["step"] for line in lines if "test" in line] == [14]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_images_of_a_bad_step_are_named_and_the_last_good_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of one step in the second epoch is made NaN; its keys are those that step was given."""
    seen, tell, add = [], loop.Objective.given, loop.Objective.loss

    def told(self, batch, step):
        seen.append(batch.keys)
        return tell(self, batch, step)

    def spoilt(self, outputs, given):
        loss, parts = add(self, outputs, given)
        return (loss * float("nan") if len(seen) == 10 else loss), parts

    monkeypatch.setattr(loop.Objective, "given", told)
    monkeypatch.setattr(loop.Objective, "loss", spoilt)
    done = run("teacher", tiny_config(tmp_path, tiny), "run=r", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "the loss of step 9 is not finite" in done.stderr
    assert "step_00000007" in done.stderr and "(with resume=runs/r it begins where this one was good)" in done.stderr
    found = json.loads((tmp_path / "runs/r/not_finite.json").read_text())
    assert found["step"] == 9 and [image["key"] for image in found["images"]] == list(seen[9])
    assert {image["view"] for image in found["images"]} == {1}
    records = Records(tiny / "train.beton")
    assert all(records.name(int((records.keys == image["key"]).argmax())) == image["name"] for image in found["images"])


def test_a_loss_scaler_changes_no_step_and_is_resumed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of fp16, which there is on a GPU alone. A power of two changes no bit of a gradient; it doubles every ten steps."""
    config, scalers, told = tiny_config(tmp_path, tiny), [], []
    make, build = experiment.make_accelerator, assembly.build_optimizer

    def scaling(config):
        accelerator = make(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", 2.0 ** (8 + len(scalers)), growth_interval=10)
        scalers.append(accelerator.scaler)
        return accelerator

    def building(*given, **more):
        told.append(more)
        return build(*given, **more)

    run("teacher", config, "run=plain", cwd=tmp_path)
    monkeypatch.setattr(experiment, "make_accelerator", scaling)
    monkeypatch.setattr(assembly, "build_optimizer", building)
    run("teacher", config, "run=scaled", "save.every_epochs=1", "save.keep_last=9", cwd=tmp_path)
    run("teacher", config, "run=again", "resume=runs/scaled/checkpoints/step_00000014", cwd=tmp_path)
    weights = [(tmp_path / f"runs/{name}/model.safetensors").read_bytes() for name in ("plain", "scaled", "again")]
    assert weights[0] == weights[1] == weights[2]
    assert [scaler.get_scale() for scaler in scalers] == [2.0**10, 2.0**10]  # 7 steps alone would have left it at 2^9
    assert told == [{"scaled": True}] * 2


def test_switches_of_the_loss_are_functions_of_the_step(tiny: Path, tmp_path: Path) -> None:
    """Resumed before the epoch that re-weights (step 7), and after it: the same weights, as no checkpoint holds the switch."""
    losses = ("distill.method=ldam", "distill.drw_from=1", "distill.diversity=-0.2", "distill.diversity_from=1")
    given = ("teacher", tiny_config(tmp_path, tiny), *losses, "model.experts=2", "schedule.epochs=2")
    run(*given, "run=calm", "save.every_steps=3", "save.keep_last=9", cwd=tmp_path)
    weights = (tmp_path / "runs/calm/model.safetensors").read_bytes()
    for step in (6, 9):
        run(*given, f"run=from-{step}", f"resume=runs/calm/checkpoints/step_{step:08d}", cwd=tmp_path)
        assert (tmp_path / f"runs/from-{step}/model.safetensors").read_bytes() == weights
    run(*given, "run=other", "distill.drw_from=0", cwd=tmp_path)
    assert (tmp_path / "runs/other/model.safetensors").read_bytes() != weights


def test_sums_between_two_log_lines_survive_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """A checkpoint every 3 of 7 steps, resumed from one in mid-epoch: the lines are those of an undisturbed run."""
    config = tiny_config(tmp_path, tiny)
    run("teacher", config, "run=calm", "schedule.epochs=2", cwd=tmp_path)
    run("teacher", config, "run=r", "schedule.epochs=2", "save.every_steps=3", "save.keep_last=9", cwd=tmp_path)
    folder = tmp_path / "runs/r"
    steps = [9, 12, 14]
    assert sorted(path.name for path in folder.glob("checkpoints/step_*")) == [
        f"step_{step:08d}" for step in (3, 6, 7, *steps)
    ]
    for step in steps:
        shutil.rmtree(folder / f"checkpoints/step_{step:08d}")
    for name in ("result.json", "model.json"):
        (folder / name).unlink()
    (folder / "checkpoints/latest").write_text("step_00000006")
    shutil.rmtree(folder / "checkpoints/step_00000007")
    again = run("teacher", config, "run=r", "schedule.epochs=2", cwd=tmp_path)
    assert "resumed after step 6 " in again.stdout
    calm, other = (
        [(line["step"], line.get("loss")) for line in lines_of(tmp_path / "runs" / name)] for name in ("calm", "r")
    )
    assert calm == other
    assert (tmp_path / "runs/calm/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_best_evaluation_is_kept(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    given = ["run=r", f"data.val={tiny}/test.beton", "data.test=null", "eval.every_epochs=1", "schedule.epochs=6"]
    given.append("ema.decay=0.5")
    refused = run("teacher", config, *given, "save.keep_best=test", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "test_split_knowingly" in refused.stderr
    run("teacher", config, *given, "save.keep_best=val", "save.keep_last=1", cwd=tmp_path)
    scores = {line["step"]: line["val_ema"]["top1"] for line in lines_of(tmp_path / "runs/r") if "val_ema" in line}
    assert len(scores) == 6
    best = max(scores, key=lambda step: (scores[step], -step))  # the first among equals
    kept = {path.name for path in (tmp_path / "runs/r/checkpoints").glob("step_*")}
    assert kept == {f"step_{best:08d}", "step_00000042"}
    assert (tmp_path / "runs/r/checkpoints/best").read_text() == f"step_{best:08d}"
    for kind, name in (("best", "val_ema"), ("ema", "val_ema"), ("raw", "val")):
        run("evaluate", "r", "split=val", f"weights={kind}", cwd=tmp_path)
        suffix = "" if kind == "raw" else f"_{kind}"
        found = json.loads((tmp_path / f"runs/r/evaluation_val{suffix}.json").read_text())
        result = json.loads((tmp_path / "runs/r/result.json").read_text())[name]
        assert found["top1"] == (scores[best] if kind == "best" else result["top1"])
    missing = run("teacher", config, "run=q", "save.keep_best=val", cwd=tmp_path, check=False)
    assert missing.returncode == 2 and "needs data.val" in missing.stderr and not (tmp_path / "runs/q").exists()


def test_resume_never_and_from_another_runs_checkpoint(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    run("teacher", config, "run=a", "save.keep_last=9", cwd=tmp_path)
    never = run("teacher", config, "run=a", "resume=never", cwd=tmp_path, check=False)
    assert never.returncode == 2 and "resume=never" in never.stderr
    fork = ["run=b", "resume=runs/a/checkpoints/step_00000014"]
    done = run("teacher", config, *fork, cwd=tmp_path)
    assert "resumed after step 14 " in done.stdout
    a, b = ((tmp_path / f"runs/{name}/model.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert [line["step"] for line in lines_of(tmp_path / "runs/b")] == [21]
    spoilt = load_latest(tmp_path / "runs/a")
    assert spoilt is not None
    spoilt.tensors["model"]["fc.weight"][0] = float("nan")
    save(tmp_path / "spoilt", spoilt.step, spoilt.tensors, spoilt.state, Keep(1))
    nan = run("teacher", config, "run=n", f"resume={tmp_path}/spoilt", cwd=tmp_path, check=False)
    assert nan.returncode == 2 and "the checkpoint of step 21 holds NaN or infinity in fc.weight" in nan.stderr
    wrong = run("teacher", config, "run=c", "resume=nothing", cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and "no checkpoint there" in wrong.stderr and not (tmp_path / "runs/c").exists()
    other = run("teacher", config, "run=d", "resume=a", "model.name=resnet32", cwd=tmp_path, check=False)
    assert other.returncode == 2 and "does not fit model.name" in other.stderr


def test_a_run_tells_from_which_checkpoint_it_started(tiny: Path, tmp_path: Path) -> None:
    """Its card does, and model.json, also where a later session was not given `resume`."""
    config, folder = tiny_config(tmp_path, tiny), tmp_path / "runs/b"
    run("teacher", config, "run=a", "schedule.epochs=1", cwd=tmp_path)
    run("teacher", config, "run=b", "resume=a", "schedule.epochs=2", cwd=tmp_path)
    hashed = weights_hash(load_final(tmp_path / "runs/a")[0])
    started = {"source": "a", "step": 7, "weights": hashed}
    assert json.loads((folder / "model.json").read_text())["init"] == started
    for name in ("result.json", "model.json"):
        (folder / name).unlink()
    run("teacher", config, "run=b", "schedule.epochs=2", cwd=tmp_path)
    assert json.loads((folder / "model.json").read_text())["init"] == started
    run("evaluate", "b", "export=exports/b", cwd=tmp_path)
    assert f"| started from | a, after step 7, weights `{hashed}` |" in (tmp_path / "exports/b/README.md").read_text()


def test_a_checkpoint_of_other_classes_is_refused(tiny: Path, tmp_path: Path) -> None:
    """As many classes in another order: told of a finished run, of an unfinished one by its records, and of a step's folder."""
    config, other = tiny_config(tmp_path, tiny), tmp_path / "other"
    run("teacher", config, "run=a", "schedule.epochs=1", cwd=tmp_path)
    other.mkdir()
    write_tiny(other, [f"class_{c}" for c in (1, 0, 2, 3, 4)])
    records = (f"data.train={other}/train.beton", f"data.test={other}/test.beton")
    words = "was trained on other classes than those of data.train, or in another order; give the records"
    for path in ("a", "runs/a/checkpoints/step_00000007"):
        assert f"resume={path} {words}" in refused(tmp_path, "teacher", config, "run=b", f"resume={path}", *records)
    for name in ("result.json", "model.json"):
        (tmp_path / "runs/a" / name).unlink()
    assert words in refused(tmp_path, "teacher", config, "run=b", "resume=a", *records)
    run("teacher", config, "run=b", "resume=a", cwd=tmp_path)


def test_a_training_in_steps_ends_within_an_epoch(tiny: Path, tmp_path: Path) -> None:
    """17 steps, 7 an epoch: the last is logged and saved, evaluation follows steps, a resumed run says how far it had come."""
    length = ["schedule.epochs=null", "schedule.steps=17", "schedule.per=step", "eval.every_steps=5"]
    run("teacher", tiny_config(tmp_path, tiny), *length, "run=r", "optim.lr_scale=linear", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test" in line] == [5, 10, 15]
    # 0.05 x 16 / 256 at first
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    expected = {done: 0.05 / 16 * (1 + math.cos(math.pi * (done - 1) / 17)) / 2 for done in (7, 14, 17)}
    assert rates == pytest.approx(expected)
    result = json.loads((tmp_path / "runs/r/result.json").read_text())
    assert (result["steps"], result["epochs"]) == (17, 17 / 7)
    (tmp_path / "runs/r/result.json").unlink()
    again = run("teacher", tmp_path / "bsce.yaml", *length, "run=r", "optim.lr_scale=linear", cwd=tmp_path).stdout
    assert "resumed after step 17 (epoch 2.42857 of 2.42857)" in again
    assert "learning rate 0.003125 = optim.lr 0.05 x 16 / 256 (optim.lr_scale=linear)" in again


def test_a_finite_loss_with_an_overflowing_gradient_is_not_saved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update of the second epoch is corrupted: its checkpoint would hold it, and every resumed run would fail there."""
    config, calls, scale = tiny_config(tmp_path, tiny), [], torch.amp.GradScaler.scale

    def spoilt(self, loss):
        calls.append(loss)
        return scale(self, loss * float("inf") if len(calls) == 14 else loss)

    with monkeypatch.context() as patched:
        patched.setattr(torch.amp.GradScaler, "scale", spoilt)
        done = run("teacher", config, "run=r", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "step 13 is not finite, or the weights after it" in done.stderr
    assert "step_00000007" in done.stderr and not (tmp_path / "runs/r/checkpoints/step_00000014").exists()
    assert "resumed after step 7 " in run("teacher", config, "run=r", cwd=tmp_path).stdout


def test_the_best_is_saved_when_it_is_found_and_means_one_run_and_split(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    given = ["schedule.epochs=6", "save.every_epochs=6", "eval.every_epochs=1"]
    given += [f"data.val={tiny}/test.beton", "data.test=null"]
    run("teacher", config, "run=a", *given, "save.keep_best=val", cwd=tmp_path)
    checkpoints = tmp_path / "runs/a/checkpoints"
    scores = {line["step"]: line["val"]["top1"] for line in lines_of(tmp_path / "runs/a") if "val" in line}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (checkpoints / "best").read_text() == f"step_{best:08d}" and (checkpoints / f"step_{best:08d}").is_dir()
    longer = [word.replace("epochs=6", "epochs=7") for word in given if "save" not in word]
    run("teacher", config, "run=b", *longer, "save.keep_best=val", "resume=a", cwd=tmp_path)
    there = tmp_path / "runs/b/checkpoints"
    assert (there / (there / "best").read_text()).is_dir()
    # On another split: the previous best score no longer applies.
    for name in ("result.json", "model.json"):
        (tmp_path / "runs/a" / name).unlink()
    state = load_latest(tmp_path / "runs/a")
    assert state is not None and state.state["best"][2] == "val"
    shutil.rmtree(checkpoints / "step_00000042")
    (checkpoints / "latest").write_text(f"step_{best:08d}")
    given += ["data.val=null", f"data.test={tiny}/test.beton"]
    run("teacher", config, "run=a", *given, "save.keep_best=test_split_knowingly", cwd=tmp_path)
    found = load_latest(tmp_path / "runs/a")
    assert found is not None and (found.state["best"] is None or found.state["best"][2] == "test_split_knowingly")


def ended_early(lines: list[dict], patience: int) -> int:
    """The step at which early stopping ends a training with these evaluations: by its definition, from the file."""
    best, since = -1.0, 0
    for line in (line for line in lines if "val" in line):
        best, since = max(best, line["val"]["top1"]), since + 1 if line["val"]["top1"] <= best else 0
        if since == patience:
            return line["step"]
    raise AssertionError("it trains to its end")


def test_early_stopping_ends_at_the_same_step_however_it_was_interrupted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after the evaluations that count, and when all steps were done: the same weights, figures and end."""
    config = tiny_config(tmp_path, tiny)
    given = [f"data.val={tiny}/test.beton", "data.test=null", "eval.every_epochs=1", "save.keep_best=val"]
    given += ["schedule.epochs=40", "schedule.kind=constant", "eval.patience=2", "save.every_epochs=2"]
    done = run("teacher", config, "run=calm", *given, cwd=tmp_path)
    calm = lines_of(tmp_path / "runs/calm")
    end = ended_early(calm, 2)
    assert f"ended after step {end} of 280 (eval.patience=2): none of the last 2 evaluations was better" in done.stdout
    result = json.loads((tmp_path / "runs/calm/result.json").read_text())
    best = max((line for line in calm if "val" in line), key=lambda line: (line["val"]["top1"], -line["step"]))
    assert (result["steps"], result["epochs"]) == (end, end / 7) and end == best["step"] + 14
    assert result["stopped_early"] == {"best_step": best["step"], "best_top1": best["val"]["top1"]}
    assert result["val"]["top1"] == calm[-1]["val"]["top1"] and calm[-1]["step"] == end
    kept = {path.name for path in (tmp_path / "runs/calm/checkpoints").glob("step_*")}
    assert {f"step_{best['step']:08d}", f"step_{end:08d}"} <= kept

    class Killed(BaseException):
        pass

    def killed_at(step: int | None) -> None:
        def add(meters, number, *rest):
            if number == step:
                raise Killed
            return real(meters, number, *rest)

        def end_of_run(*_):
            raise Killed

        real = loop.Meters.add
        with monkeypatch.context() as patched:
            patched.setattr(loop.Meters, "add", add)
            if step is None:
                patched.setattr("train.experiment.Experiment._end", end_of_run)
            with pytest.raises(Killed):
                run("teacher", config, "run=r", *given, cwd=tmp_path)

    for step in (end - 13, end - 2, None):
        killed_at(step)
    again = run("teacher", config, "run=r", *given, cwd=tmp_path)
    assert f"resumed after step {end} " in again.stdout and f"ended after step {end} of 280" in again.stdout
    figures = [
        [(line["step"], line.get("loss"), line.get("val")) for line in lines_of(tmp_path / f"runs/{name}")]
        for name in ("calm", "r")
    ]
    assert figures[0] == figures[1]
    for name in ("model.safetensors", "checkpoints/latest", "checkpoints/best"):
        assert (tmp_path / "runs/calm" / name).read_bytes() == (tmp_path / "runs/r" / name).read_bytes()
    other = run("teacher", config, "run=r", *given, "eval.patience=3", cwd=tmp_path, check=False)
    assert other.returncode == 2 and "eval.patience: 2 -> 3" in other.stderr
    longer = run("teacher", config, "run=s", "resume=r", *given, "eval.patience=3", "schedule.epochs=20", cwd=tmp_path)
    assert f"resumed after step {end} " in longer.stdout
    assert len(lines_of(tmp_path / "runs/s")) > 2  # it trains on: the evaluations of another run do not count


def test_early_stopping_needs_images_to_select_by(tiny: Path, tmp_path: Path) -> None:
    config, val = tiny_config(tmp_path, tiny), f"data.val={tiny}/test.beton"
    bare = refused(tmp_path, "teacher", config, "eval.patience=2", "eval.every_epochs=1")
    assert "type save.keep_best=val" in bare and "save.keep_best=test_split_knowingly" in bare
    given = ("eval.patience=2", "save.keep_best=val")
    assert "needs data.val" in refused(tmp_path, "teacher", config, *given, "eval.every_epochs=1")
    assert "eval.every_epochs" in refused(
        tmp_path, "teacher", config, *given, val, "data.test=null", "eval.every_epochs=0"
    )
    assert "select on the test split" in refused(tmp_path, "teacher", config, *given, val, "eval.every_epochs=1")
    assert "eval.patience=0" in refused(tmp_path, "teacher", config, "eval.patience=0")
    dry = (*given, val, "data.test=null", "--dry-run")
    useless = run("teacher", config, *dry, "eval.every_epochs=1", cwd=tmp_path).stdout
    assert "eval.patience=2 cannot end this training, which has 3 evaluations; type a smaller one" in useless
    assert "cannot end" not in run("teacher", config, *dry, "eval.every_steps=5", cwd=tmp_path).stdout


def test_waiting_for_the_last_steps_is_training_and_not_evaluation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may be many steps behind; left out of the training's time, they would raise its images per second."""
    inside, seen = [False], []
    evaluating, require_finite = loop.Tracker.evaluating, loop.Meters.require_finite

    @contextlib.contextmanager
    def flagged(self):
        with evaluating(self):
            inside[0] = True
            yield
            inside[0] = False

    def noted(self, accelerator):
        seen.append(inside[0])
        require_finite(self, accelerator)

    monkeypatch.setattr(loop.Tracker, "evaluating", flagged)
    monkeypatch.setattr(loop.Meters, "require_finite", noted)
    run("teacher", tiny_config(tmp_path, tiny), "run=r", "schedule.epochs=1", "eval.every_steps=3", cwd=tmp_path)
    assert len(seen) > 2 and not any(seen)
