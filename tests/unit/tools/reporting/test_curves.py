"""metrics.jsonl as curves: parts of losses, long files, a cut last line, damage."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.report_runs import made_run, material

from pipelines.errors import UserError
from tools.reporting.curves import POINTS, curve, lines_of, section


def write(folder: Path, lines: list[dict], rest: str = "") -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return folder


def logged(steps: int) -> list[dict]:
    return [{"step": n, "epoch": n / 10, "lr": 0.1, "loss": 3 - n / steps, "kl": 0.5} for n in range(1, steps + 1)]


def test_a_section_of_two_methods(tmp_path: Path) -> None:
    evaluated = [{"step": 5, "epoch": 0.5, "test": {"top1": 0.25}, "test_ema": {"top1": 0.3}}]  # as with ema.decay
    one = made_run(
        "a", write(tmp_path / "a", logged(10) + evaluated), files={"result.json": {"epochs": 1, "test": {"top1": 0.5}}}
    )
    plain = [{name: value for name, value in line.items() if name != "kl"} for line in logged(10)]
    made = section(material(one, made_run("b", write(tmp_path / "b", plain))))
    assert [picture.caption for picture in made.figures][:3] == [
        "Training loss",
        "Part of the loss: kl",
        "Learning rate",
    ]
    last, evaluations = made.tables
    assert last.rows == [["a", "1", "2", "0.5", "0.1"], ["b", "1", "2", "–", "0.1"]]
    assert evaluations.rows == [["0.5", "25.00"], ["1", "50.00"]]


def test_one_logged_point_is_seen(tmp_path: Path) -> None:
    made = section(material(made_run("a", write(tmp_path / "a", logged(1)))))
    for picture in made.figures:
        (line,) = picture.figure.axes[0].lines
        assert line.get_marker() == "o" and len(line.get_xdata()) == 1
    long = section(material(made_run("b", write(tmp_path / "b", logged(9)))))
    assert {picture.figure.axes[0].lines[0].get_marker() for picture in long.figures} == {""}


def test_the_last_evaluation_is_there_once(tmp_path: Path) -> None:
    """metrics.jsonl has its epoch in four digits, result.json in all."""
    evaluated = [{"step": 5, "epoch": 0.5, "val": {"top1": 0.25}}, {"step": 16, "epoch": 2.2857, "val": {"top1": 0.5}}]
    found = {"result.json": {"epochs": 16 / 7, "val": {"top1": 0.5}}}
    made = section(material(made_run("a", write(tmp_path / "a", logged(10) + evaluated), files=found)))
    assert made.tables[1].rows == [["0.5", "25.00"], ["2.2857", "50.00"]]


def test_a_long_curve_is_shown_by_means() -> None:
    found = curve(logged(10 * POINTS), "loss")
    assert found is not None and len(found.epochs) == POINTS and (np.diff(found.values) < 0).all()
    assert found.values.mean() == pytest.approx(3 - (1 + 1 / (10 * POINTS)) / 2)
    assert curve(logged(3), "accuracy") is None


def test_a_line_that_a_kill_cut_off_is_left_out_and_damage_is_not(tmp_path: Path) -> None:
    assert len(lines_of(made_run("a", write(tmp_path / "a", logged(3), '{"step": 4, "ep')))) == 3
    with pytest.raises(UserError, match="line 4 is not JSON"):
        lines_of(made_run("b", write(tmp_path / "b", logged(3), 'x\n{"step": 5}\n')))


def test_no_run_with_figures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run has a metrics\.jsonl"):
        section(material(made_run("a", tmp_path), made_run("b")))
