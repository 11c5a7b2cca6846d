"""Evaluation from outside: final weights and checkpoints, by train/evaluate.py and eval_only=true; nothing else is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launch import refused, run, tiny_config
from torch import nn

from models.features import last_layer
from models.registry import MODELS, Architecture
from pipelines.errors import UserError
from train.evaluation import subject
from train.evaluation.predictions import read
from train.evaluation.subject import newest_weights
from train.networks.weights import read_run

SETTINGS = ["run=t", "schedule.epochs=2", "eval.every_epochs=1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory with the finished run `t`, and `half`, as if it had been killed in its second epoch."""
    folder = tmp_path_factory.mktemp("work")
    run("teacher", tiny_config(folder, tiny), *SETTINGS, cwd=folder)
    half = folder / "runs/half"
    shutil.copytree(folder / "runs/t", half)
    for name in ("result.json", "model.json", "model.safetensors"):
        (half / name).unlink()
    shutil.rmtree(half / "checkpoints/step_00000014")
    record = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    (half / "config.yaml").write_text((half / "config.yaml").read_text().replace("run: t\n", "run: half\n"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def figures_of(folder: Path) -> dict:
    """As in result.json: without the table of classes, which only the file has."""
    found = json.loads((folder / "evaluation_test.json").read_text())
    assert [row["accuracy"] for row in found.pop("by_class")] == found["classes"]
    return found


def after_one_epoch(work: Path) -> dict:
    """What the run itself measured at the step where `half` stands."""
    lines = map(json.loads, (work / "runs/t/metrics.jsonl").read_text().splitlines())
    (found,) = [line["test"] for line in lines if "test" in line]
    return found


def evaluate_only(work: Path, *changes: str, check: bool = True):
    return run("teacher", work / "bsce.yaml", *SETTINGS, "eval_only=true", *changes, cwd=work, check=check)


def test_eval_only_of_a_finished_run_gives_its_result(work: Path) -> None:
    before = contents(work / "runs/t")
    assert "test.top1: " in evaluate_only(work).stdout
    result = json.loads((work / "runs/t/result.json").read_text())
    assert figures_of(work / "runs/t") == result["test"]
    after = contents(work / "runs/t")
    assert after.pop("evaluation_test.json") and after == before
    evaluate_only(work, "data.workers=1", "eval.batch=5")  # these settings may change, as in a resumed run
    again = figures_of(work / "runs/t")
    for name in ("nll", "ece"):  # of logits that may differ in their last digits with the shape of a batch
        assert again.pop(name) == pytest.approx(result["test"].pop(name), rel=1e-4)
    assert again == result["test"]


def test_classes_by_name(work: Path) -> None:
    run("evaluate", "t", cwd=work)
    found = json.loads((work / "runs/t/evaluation_test.json").read_text())
    assert [row["class"] for row in found["by_class"]] == [f"class_{c}" for c in range(5)]
    assert [row["train_images"] for row in found["by_class"]] == [60, 30, 16, 8, 4]
    assert [row["test_images"] for row in found["by_class"]] == [8, 8, 7, 7, 7]
    assert [row["accuracy"] for row in found["by_class"]] == found["classes"]
    result = json.loads((work / "runs/t/result.json").read_text())["test"]
    assert "by_class" not in result and {"top5", "balanced_accuracy", "nll", "ece"} <= result.keys()


class TwoHeads(nn.Module):
    """A network whose answer is the mean of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images).mean((2, 3))
        return (self.one(features) + self.other(features)) / 2


def test_features_and_predictions_are_of_one_evaluation(work: Path) -> None:
    run("evaluate", "t", "features=f.npz", "predictions=p.npz", cwd=work)
    whole, plain = read(work / "f.npz"), read(work / "p.npz")
    assert plain.features is None and np.array_equal(plain.logits, whole.logits)
    assert whole.features is not None and whole.features.shape == (37, 64) and whole.features.dtype == np.float32
    network = read_run(str(work / "runs/t")).network.eval()
    with torch.no_grad():
        logits = last_layer(network)(torch.from_numpy(whole.features)).numpy()
    assert np.abs(logits - whole.logits).max() < 0.01 and whole.names[whole.by_list][0] == "test/class_0/0"
    line = refused(work, "evaluate", "t", "features=./same.npz", "predictions=same.npz")
    assert "features name one file; the file of features holds both" in line


def test_features_of_a_network_whose_last_layer_is_not_known(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before the evaluation, and evaluated as always without them."""
    monkeypatch.setitem(MODELS, "two_heads", Architecture(lambda classes: TwoHeads()))
    run("teacher", work / "bsce.yaml", "run=heads", "model.name=two_heads", "schedule.epochs=1", cwd=work)
    run("evaluate", "heads", "predictions=h.npz", cwd=work)
    with monkeypatch.context() as no_work:
        no_work.setattr(subject, "evaluate", lambda *a, **k: pytest.fail("evaluated"))
        line = refused(work, "evaluate", "heads", "features=g.npz")
    assert "run runs/heads: the features of TwoHeads are not known: it has no single last layer" in line
    assert not (work / "g.npz").exists()


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint(work: Path) -> None:
    """Both commands do so and say so; what was measured during training is measured again."""
    before = contents(work / "runs/half")
    done = evaluate_only(work, "run=half")
    assert "run runs/half is unfinished: these are the weights of its newest checkpoint, after step 7" in done.stdout
    figures = figures_of(work / "runs/half")
    assert figures["step"] == 7 and figures["samples"] == 37
    expected = after_one_epoch(work)
    assert {name: figures[name] for name in expected} == expected
    after = contents(work / "runs/half")
    assert after.pop("evaluation_test.json") and after == before
    (work / "runs/half/evaluation_test.json").unlink()
    assert "after step 7" in run("evaluate", "half", cwd=work).stdout
    assert figures_of(work / "runs/half") == figures


def test_processes_evaluate_the_same_weights(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run trains on, one may have read a checkpoint that was not there yet when another one looked."""
    monkeypatch.setattr("train.evaluation.subject.gather_object", lambda own: [*own, "step 14"])
    said = refused(work, "evaluate", "half")
    assert "run runs/half trains on: its processes have read the weights after step 14, step 7; run the same" in said
    assert "have read the weights after step 14, the end; run" in refused(work, "evaluate", "t")


def test_a_run_without_any_weights_is_told_apart(work: Path) -> None:
    bare = work / "runs/bare"
    shutil.copytree(work / "runs/half", bare)
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(
        UserError, match="is unfinished .it is stopped. and has no final weights yet; to go on with it type"
    ):
        newest_weights(bare)
    with pytest.raises(UserError, match="no run 'nobody': there is no folder"):
        newest_weights(work / "runs/nobody")


def test_a_damaged_checkpoint_is_passed_over_and_said(work: Path) -> None:
    copy = work / "runs/damaged"
    shutil.copytree(work / "runs/t", copy)
    (copy / "model.json").unlink()
    weights = copy / "checkpoints/step_00000014/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    found = newest_weights(copy)
    assert found.step == 7 and found.info is None
    assert "damaged" in found.notes[0] and "after step 7" in found.notes[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["optim.lr=1.0"],
            "was started with other settings (stored -> given): optim.lr: 0.05 -> 1.0. Give the stored ones;",
        ),
        (["data.test=other.beton"], "to evaluate it on other records or by other settings, type: python"),
        (["data.mean=[0,0,0]"], "type: python train/evaluate.py runs/t KEY=VALUE"),
        (["run=nobody"], "no run 'nobody'"),
        (["--dry-run"], "leave one of them out"),
    ],
)
def test_refusals_of_eval_only(work: Path, changes: list[str], words: str) -> None:
    before = contents(work / "runs")
    done = evaluate_only(work, *changes, check=False)
    assert done.returncode == 2 and words in done.stderr
    assert contents(work / "runs") == before


def test_nothing_to_evaluate(work: Path, tiny: Path) -> None:
    run("teacher", work / "bsce.yaml", "run=blind", "schedule.epochs=1", "data.test=null", cwd=work)
    settings = ["run=blind", "schedule.epochs=1", "data.test=null", "eval_only=true"]
    done = run("teacher", work / "bsce.yaml", *settings, cwd=work, check=False)
    assert done.returncode == 2 and "neither data.val nor data.test is set" in done.stderr
    done = run("evaluate", "blind", cwd=work, check=False)
    assert done.returncode == 2 and "run runs/blind has no data.test; type data.test=FILE.beton\n" in done.stderr
    done = run("evaluate", "blind", f"data.val={tiny}/test.beton", cwd=work, check=False)
    assert "type data.test=FILE.beton, or split=val (in tools/: --split val)\n" in done.stderr
    run("evaluate", "blind", f"data.test={tiny}/test.beton", cwd=work)
    assert figures_of(work / "runs/blind")["samples"] == 37


def test_a_student_is_evaluated_without_its_cache_or_teacher(work: Path, tiny: Path) -> None:
    student = ["distill.teacher=t", "run=s", "schedule.epochs=1"]
    kd = tiny_config(work, tiny, "kd", "  tau: 4\n")
    run("distill", kd, *student, cwd=work)
    (work / "runs/t").rename(work / "away")
    try:
        run("distill", kd, *student, "eval_only=true", cwd=work)
    finally:
        (work / "away").rename(work / "runs/t")
    assert figures_of(work / "runs/s") == json.loads((work / "runs/s/result.json").read_text())["test"]
