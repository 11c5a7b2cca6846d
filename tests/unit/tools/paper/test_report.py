"""The arithmetic of the table, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paper_runs import IF100, small_choice, write_run

from tools.paper.datasets import METHODS
from tools.paper.jobs import Ending
from tools.paper.plan import study_tasks, table_tasks
from tools.paper.report import studies_report, table_report, to_markdown


def test_the_arithmetic_of_the_table(tmp_path: Path) -> None:
    tasks = table_tasks(small_choice(settings=()), (IF100,), (0, 1, 2))
    by_name = {task.name: task for task in tasks}
    accuracies = {"bsce": [0.40, 0.42, 0.41], "dive": [0.44, 0.45], "ce": [0.38]}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            times: list[tuple[str, str | None]] = [("10:00:00", "11:00:00"), ("12:00:00", "12:30:00")]
            write_run(tmp_path, by_name[f"{method}_if100-s{seed}"], value, times, 100.0 * (seed + 1))
    failed = by_name["dive_if100-s2"].name
    report = table_report(tasks, tmp_path, {failed: Ending(2, 5.0, "error: no room")}, {}, [])
    rows = {(row["method"], row["imbalance"]): row for row in report.data["rows"]}
    bsce, dive, ce = (rows[method, 100] for method in ("bsce", "dive", "ce"))
    assert (bsce["top1"]["mean"], bsce["top1"]["std"], bsce["top1"]["n"]) == (pytest.approx(41), pytest.approx(1), 3)
    assert bsce["difference"] == pytest.approx(41 - 42.39) and bsce["few"]["mean"] is None
    assert bsce["many"]["mean"] == pytest.approx(51) and bsce["wall_s"]["mean"] == pytest.approx(5400)
    assert dive["gain"] == {"mean": pytest.approx(3.5), "std": pytest.approx(0.5**0.5), "n": 2}, (
        "paired by seed: 4 and 3"
    )
    assert dive["paper_gain"] == pytest.approx(2.96) and dive["state"] == "2 of 3 seeds"
    assert dive["images_per_s"]["mean"] == pytest.approx(150) and ce["top1"]["std"] is None
    page = to_markdown(report)
    assert "| 100 | BSCE | 42.39 | 41.00 ± 1.00 | -1.39 | 51.00 ± 1.00 | 41.00 ± 1.00 | - |  |  | 3 | 1:30:00 |" in page
    assert (
        "| 100 | DiVE | 45.35 | 44.50 ± 0.71 | -0.85 |" in page and "| +2.96 | 3.50 ± 0.71 | 2 (2 of 3 seeds) |" in page
    )
    assert f"| `{failed}` | 2 | failed: error: no room |" in page and "`ce_if100-s1`" not in page
    assert "in the paper's order" not in page, "not before all have the same seeds"
    assert "at most 6 at a time" in page and "computed in: bf16, backend ffcv" in page
    report = table_report([task for task in tasks if task.seed == 0 or task.kind == "data"], tmp_path, {}, {}, [])
    assert "CE 38.00, BSCE 40.00, DiVE 44.00: in the paper's order" in to_markdown(report)
    assert "device: slow box" in page and "code: abc with changes" in page


def test_rows_beside_those_of_table_1(tmp_path: Path) -> None:
    """RIDE's figures are its paper's; where there is none, nothing is compared with it."""
    tasks = table_tasks(small_choice(settings=()), (IF100,), (0,), ["ce", "ride3", "ride_dive4"])
    for name, top1 in (("ride3", 0.47), ("bsce6", 0.48), ("ride_dive4", 0.5)):
        task = next(task for task in tasks if task.role == name)
        write_run(tmp_path, task, top1, [("10:00:00", "11:00:00")])
    report = table_report(tasks, tmp_path, {}, {}, [])
    rows = {row["method"]: row for row in report.data["rows"]}
    assert list(rows) == ["ce", "bsce", "dive", "ride3", "bsce6", "ride_dive4"], (
        "Table 1 whole, others if they are asked for"
    )
    assert (rows["ride3"]["paper"], rows["ride3"]["difference"]) == (48.6, pytest.approx(-1.6))
    student = rows["ride_dive4"]
    assert student["paper"] is student["difference"] is student["paper_gain"] is None
    assert student["gain"]["mean"] == pytest.approx(2)
    page = to_markdown(report)
    assert "| 100 | RIDE, 3 experts | 48.60 | 47.00 | -1.60 | 57.00 |" in page and "Paper of RIDE: " in page
    assert "| 100 | RIDE-DiVE, 4 experts | - | 50.00 | - | 60.00 | 50.00 | - | - | 2.00 | 1 |" in page
    assert "experts used" not in page, "runs of earlier revisions do not tell it"
    for name, told in (
        ("ride3", {"flops": 2e8}),
        ("ride_dive4", {"flops": 3e8, "flops_routed": 1.5e8, "experts_used": 1.8}),
    ):
        path = tmp_path / "runs" / f"{name}_if100-s0" / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"test": result["test"] | told}))
    report = table_report(tasks, tmp_path, {}, {}, [])
    rows, page = {row["method"]: row for row in report.data["rows"]}, to_markdown(report)
    assert rows["ride_dive4"]["experts_used"]["mean"] == 1.8 and rows["ride3"]["experts_used"]["mean"] == 3
    assert rows["ride_dive4"]["flops"]["mean"] == 1.5e8 and "flops" not in rows["bsce6"]
    assert "| experts used | MFLOPs for an image |" in page and "| 500 | 1.80 | 150.0 |" in page
    assert "| 500 | 3.00 | 200.0 |" in page and "| 500 |  | - |" in page and "multiply-add counting as two" in page
    plain = table_report([task for task in tasks if task.role in ("ce", "data")], tmp_path, {}, {}, [])
    assert "RIDE" not in to_markdown(plain)


def test_data_sets_are_told_apart_by_name(tmp_path: Path) -> None:
    """One more row: nothing but names and tags keeps its tasks and figures from those of the other."""
    other = replace(
        IF100, name="other_lt", tag="other", column="data set", value="Other-LT", paper=dict.fromkeys(METHODS, 50.0)
    )
    tasks = table_tasks(small_choice(settings=()), (IF100, other), (0,))
    assert len({task.name for task in tasks}) == len({task.folder for task in tasks}) == len(tasks)
    for task in tasks:
        if task.role == "ce":
            write_run(tmp_path, task, 0.6 if task.dataset is other else 0.4, [("10:00:00", "11:00:00")])
    rows = table_report(tasks, tmp_path, {}, {}, []).data["rows"]
    ce = [row for row in rows if row["method"] == "ce"]
    assert [(row["paper"], row["top1"]["mean"]) for row in ce] == [(38.35, pytest.approx(40)), (50, pytest.approx(60))]
    assert ce[0]["imbalance"] == 100 and ce[1]["data set"] == "Other-LT"


def test_a_given_teacher_that_has_no_test_split(tmp_path: Path) -> None:
    folder = tmp_path / "mine-s0"
    folder.mkdir()
    tasks = study_tasks(small_choice(settings=()), (0,), folder)
    for figures, told in (({"test": {"top1": 0.5}}, "top-1 50.00"), ({}, "not tested")):
        (folder / "result.json").write_text(json.dumps({"epochs": 200} | figures))
        page = to_markdown(studies_report(tasks, tmp_path, {}, {}, [], folder))
        assert f"teacher: mine-s0, given: 200 epochs, {told}\n" in page
