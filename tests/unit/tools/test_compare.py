"""tools/compare.py on real runs of seconds."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from helpers.launch import run, tiny_config

from tools.compare import main
from train.evaluation.predictions import read


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Runs below runs/: a teacher with two seeds, and a student of the first."""
    folder = tmp_path_factory.mktemp("compare")
    bsce, dive = tiny_config(folder, tiny), tiny_config(folder, tiny, "dive", "  tau: 3\n  p: 0.5\n")
    for seed in (0, 1):
        run("teacher", bsce, f"run=bsce-s{seed}", f"seed={seed}", "schedule.epochs=1", cwd=folder)
    run("distill", dive, "distill.teacher=bsce-s0", "run=dive", "schedule.epochs=1", cwd=folder)
    return folder


def test_runs_side_by_side(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(work)
    assert main(["bsce-s0", "bsce-s1", "dive", "--out", "out", "--classes", "class_1"]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (work / "out").iterdir()) == [
        f"compare.{end}" for end in ("json", "md", "png", "svg", "tex")
    ]
    first, student = json.loads((work / "out/compare.json").read_text())["lines"]
    assert first["runs"] == ["bsce-s0", "bsce-s1"] and first["figures"]["top1"]["n"] == 2
    found = [
        json.loads((work / "runs" / name / "result.json").read_text())["test"]["top1"] for name in ("dive", "bsce-s0")
    ]
    assert student["gain_points"]["top1"]["mean"] == pytest.approx(100 * (found[0] - found[1]))
    assert "| bsce-s* | 0, 1 |" in said and "Gain over the teacher" in said and "| class_1 | 30 |" in said


def test_an_ensemble_beside_its_networks(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    assert main(["bsce-s0", "bsce-s1", "dive", "--ensemble", "--out", "together"]) == 0
    assert "| all 3, mean of logits |" in capsys.readouterr().out
    lines = json.loads((work / "together/compare.json").read_text())["lines"]
    assert [line["run"] for line in lines[2:]] == ["all 3, mean of logits", "all 3, mean of probabilities"]
    logits = [read(work / "runs" / name / "predictions_test.npz").logits for name in ("bsce-s0", "bsce-s1", "dive")]
    labels = read(work / "runs/dive/predictions_test.npz").labels
    right = (sum(logits).argmax(axis=1) == labels).mean()
    assert lines[2]["figures"]["top1"]["mean"] == pytest.approx(right)


def test_runs_of_two_precisions(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is evaluated in its own, whichever comes first."""
    monkeypatch.chdir(work)
    AcceleratorState._reset_state(True)
    run("teacher", work / "bsce.yaml", "run=half", "precision=bf16", "schedule.epochs=1", cwd=work)
    for given in (["bsce-s0", "half"], ["half", "bsce-s0"]):
        for name in given:
            (work / "runs" / name / "predictions_test.npz").unlink(missing_ok=True)
        assert main([*given, "--out", "precisions"]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.count("evaluating") == 2


def test_refusals(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(work)
    for words, message in (
        (["nobody", "--out", "none"], "no run 'nobody'"),
        (["dive", "dive", "--out", "none"], "dive is given twice"),
        (["dive", "--out", "bsce.yaml"], "--out bsce.yaml"),
        (["dive", "--ensemble", "--out", "none"], "--ensemble needs two runs or more, and dive is the only one"),
        (["dive"], "the following arguments are required: --out"),
        (["dive", "--outt", "none"], "unknown option --outt; nearest: --out; --help explains"),
        # Before the first one is evaluated, which may take long.
        (["dive", "nobody", "--out", "none", "--split", "val"], "no run 'nobody'"),
        (["dive", "nobody.npz", "--out", "none", "--split", "val"], "nobody.npz: no such file of predictions"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and not (work / "none").exists()
