"""The page of figures before any run is finished; tests/unit/tools/test_reproduce.py makes it of real ones."""

from pathlib import Path

import pytest
from helpers.paper_runs import IF100, small_choice
from helpers.report_runs import made_run, random_predictions

from pipelines.errors import UserError
from tools.paper import figures
from tools.paper.jobs import Ending
from tools.paper.plan import table_tasks
from tools.paper.report import to_markdown
from tools.paper.studies import COMMANDS, FIGURES


def test_runs_that_are_not_finished_are_named(tmp_path: Path) -> None:
    """In the order of the paper's rows; there is no picture of nothing."""
    tasks = table_tasks(small_choice(settings=()), (IF100,), (0,))
    report = figures.report(tasks, tmp_path, {"bsce_if100-s0": Ending(2, 5.0, "error: no room")}, {}, ["A note."])
    page = to_markdown(report, "cifar100_lt_figures")
    assert report.figures == [] and "![" not in page and "shifted" not in report.data and "rows" not in report.data
    assert (
        "* Not shown, because not finished: ce_if100-s0 (not run), bsce_if100-s0 (failed: error: no room), "
        "dive_if100-s0 (not run).\n"
    ) in page
    assert "* A note.\n" in page and [run["role"] for run in report.data["runs"]] == ["ce", "bsce", "dive"]


def test_pictures_of_two_runs_are_not_made_of_one(tmp_path: Path) -> None:
    """A study that was stopped after its first training still has a page."""
    run = made_run("CE", predictions=random_predictions())
    with pytest.raises(UserError, match="of one finished run of the lowest seed, CE, there is nothing to compare"):
        figures.FIGURES["samples"].make([run])


def test_each_figure_has_its_files() -> None:
    files = COMMANDS[FIGURES].files
    assert files[:4] == (".md", ".json", "_shifted.svg", "_shifted.png") and "_samples.png" in files
    assert len(files) == len(set(files)) == 2 + 2 * len(figures.FIGURES)
