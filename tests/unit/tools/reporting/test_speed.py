"""Speed and time, from the files of a run."""

import json
from pathlib import Path

import pytest
from helpers.report_runs import made_run, material

from pipelines.errors import UserError
from tools.reporting.speed import section


def test_finished_and_unfinished_runs(tmp_path: Path) -> None:
    """Of the one from result.json, of the other from its last logging step; a session that has not ended takes no time."""
    environment = {"device": "cuda: H", "world_size": 2}
    first = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:02:03+00:00", "environment": environment}
    record = {"run.json": {"sessions": [first, first | {"ended": None}]}}
    speed = {"images_per_s": 1234.4, "data_wait": 0.0123, "of_ceiling": 0.876, "peak_memory_gb": 1.5}
    done = made_run("done", tmp_path / "done", files=record | {"result.json": {"speed": speed}})
    half = made_run("half", tmp_path / "half", files=record)
    lines = [{"epoch": 1, "images_per_s": 10.0}, {"epoch": 2, "images_per_s": 20.0, "of_ceiling": None}]
    (tmp_path / "half" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = section(material(done, half, made_run("file", config=None)))
    assert made.tables[0].rows == [
        ["done", "1,234", "1.2%", "88%", "1.50 GB", "1:02:03", "2", "2", "cuda: H"],
        ["half", "20", "–", "–", "–", "1:02:03", "2", "2", "cuda: H"],
    ]
    assert "file" in made.notes[0] and "15 in the median" in made.figures[0].alt


def test_files_alone_have_none() -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        section(material(made_run("file", config=None)))
