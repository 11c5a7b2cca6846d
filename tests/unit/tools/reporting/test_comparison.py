"""Runs side by side: seeds, gains over the very teachers, named classes."""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from helpers.report_runs import NAMES, made_run, random_predictions

from pipelines.errors import UserError
from tools.reporting.comparison import as_json, as_latex, draw, measure, notes, page, tables
from tools.reporting.runs import Run
from tools.reporting.scores import class_accuracies, scores


def some_runs(folder: Path) -> list[Run]:
    """Two teachers and their students, with seeds 0 and 1, and a student of a teacher that is not there."""
    runs = []
    for seed in (0, 1):
        for kind, skill in (("bsce", 1.0), ("dive", 2.0)):
            name = f"{kind}-s{seed}"
            teachers = [{"source": f"bsce-s{seed}", "weights": f"w-bsce-s{seed}"}] if kind == "dive" else []
            files: dict[str, Any] = {"model.json": {"teachers": teachers}}
            given = replace(random_predictions(seed, skill=skill), weights=f"w-{name}")
            runs.append(made_run(name, folder / name, seed, files, predictions=given))
    files = {"model.json": {"teachers": [{"source": "x", "weights": "gone"}]}}
    other = replace(random_predictions(5), weights="w-other")
    return [*runs, made_run("other", folder / "other", 7, files, predictions=other)]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Seeds are told apart by the method, as made-up settings are otherwise the same."""
    made = some_runs(tmp_path)
    for i, run in enumerate(made):
        assert run.config is not None
        method = run.title.partition("-")[0]
        distill = replace(
            run.config.distill, method="dive" if method == "dive" else "ce" if method == "other" else "bsce"
        )
        made[i] = replace(run, config=replace(run.config, distill=distill))
    return made


def top1(run: Run) -> float:
    value = scores(run.predictions)["top1"]
    assert value is not None
    return 100 * value


def test_seeds_are_one_line_and_gains_are_of_pairs(runs: list[Run]) -> None:
    compared = measure(runs, "test")
    by_name = {run.title: run for run in runs}
    assert [entry.title for entry in compared.entries] == ["bsce-s*", "dive-s*", "other"]
    gain = compared.gains["dive-s*"]
    expected = [top1(by_name[f"dive-s{seed}"]) - top1(by_name[f"bsce-s{seed}"]) for seed in (0, 1)]
    assert gain is not None and gain.teachers == ["bsce-s0", "bsce-s1"]
    assert (gain.spreads["top1"].mean, gain.spreads["top1"].std) == pytest.approx((mean(expected), stdev(expected)))
    assert compared.gains["bsce-s*"] is None and compared.gains["other"] is None and compared.unknown == ["other"]
    results, gains = tables(compared)
    assert [row[:2] for row in results.rows] == [["bsce-s*", "0, 1"], ["dive-s*", "0, 1"], ["other", "7"]]
    (row,) = gains.rows
    assert row[:3] == ["dive-s*", "bsce-s0, bsce-s1", f"+{mean(expected):.2f} ± {stdev(expected):.2f}"]
    assert any("The teacher of other is not among these runs" in note for note in notes(compared))


def test_a_teacher_on_other_records_and_an_unfinished_run_are_told(runs: list[Run]) -> None:
    """No gain is the difference of two test sets."""
    changed = [
        replace(run, predictions=replace(run.predictions, records="others")) if run.title == "bsce-s0" else run
        for run in runs
    ]
    compared = measure([*changed[:-1], replace(changed[-1], step=500)], "test")
    gain = next(gain for title, gain in compared.gains.items() if title.startswith("dive"))
    assert compared.elsewhere == ["dive-s0"] and gain is not None and gain.teachers == ["bsce-s1"]
    said = " ".join(notes(compared))
    assert (
        "The teacher of dive-s0 was evaluated on other records" in said and "not evaluated on the same records" in said
    )
    assert "other is unfinished: its figures are those of its newest checkpoint, after step 500." in said


def test_named_classes(runs: list[Run]) -> None:
    compared = measure(runs, "test", ["fox", "1"])
    table = tables(compared)[-1]
    assert [row[:2] for row in table.rows] == [["fox", "4"], ["bee", "120"]]
    (other,) = [run for run in runs if run.title == "other"]
    assert table.rows[1][-1] == f"{100 * class_accuracies(other.predictions)[1]:.1f}"
    with pytest.raises(UserError, match="no such class; give names .nearest: fox"):
        measure(runs, "test", ["foxx"])


def test_what_is_written(runs: list[Run]) -> None:
    compared = measure(runs, "test", ["ant"])
    text, data = page(compared), as_json(compared)
    assert all(f"## {table.title}" in text for table in tables(compared)) and "compare.svg" in text
    assert as_latex(compared).count(r"\begin{tabular}") == 3 and r"$\pm$" in as_latex(compared)
    assert [line["seeds"] for line in data["lines"]] == [[0, 1], [0, 1], [7]]
    assert data["lines"][1]["figures"]["top1"]["n"] == 2 and data["lines"][1]["classes"][0]["class"] == "ant"
    (axes,) = draw(compared).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["bsce-s*", "dive-s*", "other"]


def test_names_that_are_not_utf8_are_written_escaped(tmp_path: Path) -> None:
    """Of classes, runs and teachers."""
    named = random_predictions(names=("caf\udce9", *NAMES[1:]))
    teacher = replace(made_run("t\udce9", predictions=replace(named, weights="w-t")), config=None)
    files: dict[str, Any] = {"model.json": {"teachers": [{"weights": "w-t"}]}}
    student = replace(made_run("s\udce9", tmp_path, 1, files, predictions=replace(named, weights="w-s")), config=None)
    compared = measure([teacher, replace(student, step=5)], "test", ["0"])
    text = page(compared)
    assert text.encode() and as_latex(compared).encode()
    assert all(name in text for name in ("| caf\\udce9 |", "| s\\udce9 | t\\udce9 |", "s\\udce9 is unfinished"))
