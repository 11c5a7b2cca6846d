"""Table and picture of several runs: every figure is shown, an empty group is a dash, names keep their brackets."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from tools.reporting.accuracy import draw, seconds, show_table

TITLES = {"a": "first", "b": "second"}
RESULTS = {
    name: {"test": {"top1": top1, "many": 0.75, "medium": 0.5, "few": None, "classes": [0.9, 0.5, 0.1, 0.3]}}
    for name, top1 in (("a", 0.4321), ("b", 0.6))
}


def test_the_table_has_every_figure() -> None:
    screen = io.StringIO()
    show_table(Console(file=screen, width=120), TITLES, RESULTS, {"a": 61.2, "b": 5.0}, 3.0)
    lines = [line.replace("│", " ").split() for line in screen.getvalue().splitlines()]
    assert ["first", "43.2", "75.0", "50.0", "-", "61"] in lines and [
        "second",
        "60.0",
        "75.0",
        "50.0",
        "-",
        "5",
    ] in lines


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", TITLES, RESULTS, np.array([100, 50, 5, 1]))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 800 and len(set(image.convert("RGB").resize((64, 64)).getdata())) > 10


def test_the_time_of_a_run_is_that_of_all_its_sessions(tmp_path: Path) -> None:
    times = [("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00"), ("2026-01-02T00:00:00+00:00", None)]
    times.append(("2026-01-03T00:00:00+00:00", "2026-01-03T00:00:05+00:00"))
    sessions = [{"started": start, "ended": end} for start, end in times]
    (tmp_path / "run.json").write_text(json.dumps({"sessions": sessions}))
    assert seconds(tmp_path) == 65
