"""Where commands write: refused before the work where that is impossible, and a start that came to nothing blocks no other."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import refused, result, run, tiny_config

from train.evaluation import subject
from train.run.endings import script

SHORT = ("schedule.epochs=1", "eval.every_epochs=0")


@pytest.fixture(scope="module")
def work(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run t."""
    folder = tmp_path_factory.mktemp("work")
    run("teacher", tiny_config(folder, tiny), *SHORT, "run=t", cwd=folder)
    (folder / "file").touch()
    (folder / "runs.npz").mkdir()
    return folder


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that begins to evaluate."""
    monkeypatch.setattr(subject, "evaluate", lambda *a, **k: pytest.fail("evaluated"))


@pytest.mark.parametrize(
    "given",
    [
        *("predictions=nodir/p.npz", "predictions=runs.npz", "predictions=file/p.npz", "predictions=/proc/p.npz"),
        *(
            "predictions=p.csv",
            "features=p",
            f"predictions={'x' * 300}.npz",
            "export=file/e",
            f"export={'x' * 300}",
            "export=/proc/e",
        ),
        *("features=nodir/p.npz", "features=file/p.npz"),
    ],
)
def test_what_an_evaluation_writes_is_checked_first(work: Path, no_work: None, given: str) -> None:
    line = refused(work, "evaluate", "t", given)
    assert given[:20] in line or "File name too long" in line


def test_an_evaluation_whose_figures_cannot_be_kept(work: Path, no_work: None) -> None:
    blocked = work / "runs/t/evaluation_test.json"
    blocked.unlink(missing_ok=True)
    blocked.mkdir()
    try:
        assert "run runs/t: cannot write runs/t/evaluation_test.json" in refused(work, "evaluate", "t")
        assert "evaluation_test.json" in refused(work, "teacher", "bsce.yaml", *SHORT, "run=t", "eval_only=true")
    finally:
        blocked.rmdir()


def test_the_other_outputs_of_an_evaluation_are_written(work: Path) -> None:
    blocked = work / "runs/t/evaluation_test.json"
    blocked.unlink(missing_ok=True)
    blocked.mkdir()
    done = run("evaluate", "t", "predictions=p.npz", "export=exported", cwd=work)
    blocked.rmdir()
    assert "the figures are only printed" in done.stdout and "top1" in done.stdout
    assert len(np.load(work / "p.npz")["keys"]) == 37
    meta = json.loads((work / "exported/model.json").read_text())
    assert meta["evaluation"]["top1"] == result(work, "t")["test"]["top1"]


@pytest.mark.parametrize("name", ["x" * 300, "./file/a", "/proc/a", "./loop", "./dangling"])
def test_a_run_folder_that_cannot_be_made_is_refused_before_the_records_are_read(work: Path, name: str) -> None:
    for link, target in (("loop", "loop"), ("dangling", "nowhere")):
        if not (work / link).is_symlink():
            (work / link).symlink_to(target)
    line = refused(work, "teacher", "bsce.yaml", f"run={name}", "data.train=missing.beton")
    assert "missing.beton" not in line


def test_a_start_that_was_refused_late_does_not_block_the_right_command(work: Path) -> None:
    wrong = ["bsce.yaml", *SHORT, "model.name=resnet32", "run=late"]
    assert run("teacher", *wrong, "resume=t", cwd=work, check=False).returncode == 2
    assert (work / "runs/late/run.json").exists()
    done = run("teacher", "bsce.yaml", *SHORT, "run=late", cwd=work)
    assert "it begins anew" in done.stdout and result(work, "late")["steps"] == result(work, "t")["steps"]
    line = refused(work, "teacher", *wrong)
    assert "was started with other settings" in line


def test_a_loss_that_was_not_finite_does_not_block_the_right_command(work: Path) -> None:
    wrong = run("teacher", "bsce.yaml", *SHORT, "run=nan", "optim.lr=1e30", cwd=work, check=False)
    assert wrong.returncode == 2 and "not finite" in wrong.stderr
    assert "it begins anew" in run("teacher", "bsce.yaml", *SHORT, "run=nan", cwd=work).stdout


@pytest.mark.parametrize("text", ["", "{}"])
def test_settings_of_an_unfinished_run_that_were_lost(work: Path, text: str) -> None:
    shutil.copytree(work / "runs/t", work / "runs/lost")
    for name in ("model.json", "result.json"):
        (work / "runs/lost" / name).unlink()
    (work / "runs/lost/config.yaml").write_text(text)
    assert "config.yaml of the run is damaged" in refused(work, "evaluate", "lost")
    shutil.rmtree(work / "runs/lost")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_class_names_that_the_locale_lacks(work: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A print of them fails no program: script() makes its streams safe."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["x"])
    assert script(lambda argv: print("\u732b", file=getattr(sys, name))) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u732b\n"
