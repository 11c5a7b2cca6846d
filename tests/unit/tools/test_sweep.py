"""tools/sweep.py: real runs in processes of their own; the same command again leaves what is finished."""

import json
import sys
from pathlib import Path

import pytest
from helpers import warm
from helpers.launch import tiny_config

from pipelines.errors import UserError
from tools.sweep import main


@pytest.fixture
def place(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_config(tmp_path, tiny)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", warm.python())
    return tmp_path


def test_a_sweep_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bsce.yaml", "schedule.epochs=1", "distill.method=bsce,ce", "--name", "s", "--jobs", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert (
        "all 2 runs are finished; to compare them: python tools/compare.py s/method-bsce s/method-ce --out DIR" in said
    )
    results = [place / "runs/s" / name / "result.json" for name in ("method-bsce", "method-ce")]
    before = [path.stat().st_mtime_ns for path in results]
    assert [json.loads(path.read_text())["epochs"] for path in results] == [1, 1]
    assert main([*words, "distill.tau=null"]) == 0  # the same settings
    assert [path.stat().st_mtime_ns for path in results] == before
    assert main([*words, "optim.lr=0.5"]) == 1
    assert "failed: method-bsce" in capsys.readouterr().out and (place / "runs/s/logs/method-bsce.log").exists()


def test_a_plan_starts_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bsce.yaml", "seed=0,1", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["run=bsce/seed-0", "run=bsce/seed-1"]
    assert not (place / "runs").exists()
    (place / "runs").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write in runs/bsce: .*; give another --name"):
        main(["bsce.yaml", "seed=0,1"])
    with pytest.raises(UserError, match=r"--name a/b: letters, digits"):
        main(["bsce.yaml", "seed=0,1", "--name", "a/b"])
