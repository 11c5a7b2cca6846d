"""Table and picture of several runs: every figure is shown, an empty group is a dash, names keep their brackets."""

import io
import json
from pathlib import Path

import numpy as np
from helpers.report_runs import NAMES, made_run, material, predictions
from PIL import Image
from rich.console import Console

from tools.reporting.accuracy import draw, neighbours, running_mean, seconds, section, show_table

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
        colours = image.convert("RGB").resize((64, 64)).getcolors(64 * 64)
        assert image.size[0] > 800 and colours is not None and len(colours) > 10


def test_the_time_of_a_run_is_that_of_all_its_sessions(tmp_path: Path) -> None:
    times = [("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00"), ("2026-01-02T00:00:00+00:00", None)]
    times.append(("2026-01-03T00:00:00+00:00", "2026-01-03T00:00:05+00:00"))
    sessions = [{"started": start, "ended": end} for start, end in times]
    (tmp_path / "run.json").write_text(json.dumps({"sessions": sessions}))
    assert seconds(tmp_path) == 65


def test_a_running_mean_leaves_out_what_is_not_known() -> None:
    values = np.array([1.0, np.nan, 3.0, 8.0, np.nan, np.nan, np.nan])
    assert np.array_equal(running_mean(values, 3), [1, 2, 5.5, 5.5, 8, np.nan, np.nan], equal_nan=True)
    assert running_mean(np.array([30.0, 30.0, 30.0, 0.0]), 3)[-1] == 15, "no class counts twice"
    assert [neighbours(classes) for classes in (5, 100, 1000)] == [3, 3, 31]


def test_the_section() -> None:
    """Three classes have images, of which the first is always answered; frequent classes come first."""
    labels = np.array([0, 0, 2, 5])
    made = section(material(made_run("a", predictions=predictions(np.eye(6)[[0, 0, 0, 1]], labels))))
    groups, classes = made.tables
    assert groups.rows == [
        ["a", "many", "2", "100.0", "100.0"],
        ["a", "medium", "2", "0.0", "0.0"],
        ["a", "few", "2", "0.0", "0.0"],
    ]
    assert [row[0] for row in classes.rows] == list(NAMES) and [row[2] for row in classes.rows] == [
        "100.0",
        "–",
        "0.0",
        "–",
        "–",
        "0.0",
    ]
