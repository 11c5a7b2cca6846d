"""The first section: means over seeds, what is the same in all runs, and what a reader must know."""

from pathlib import Path

import numpy as np
from helpers.report_runs import made_run, material, random_predictions

from tools.reporting.overview import section
from tools.reporting.scores import scores


def test_seeds_have_mean_and_standard_deviation() -> None:
    runs = [made_run(f"a-s{seed}", seed=seed) for seed in range(3)]
    made = section(material(*runs, made_run("b", predictions=random_predictions(counts=None), config=None)))
    results, each, *_ = made.tables
    values = [100 * (scores(run.predictions)["top1"] or 0) for run in runs]
    assert results.rows[0][:3] == ["a-s*", "0, 1, 2", f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"]
    assert [row[1] for row in each.rows[:3]] == [f"{value:.2f}" for value in values]
    assert results.rows[1][:2] == ["b", "–"] and results.rows[1][3:6] == ["–", "–", "–"]
    assert "over the seeds 0, 1, 2. The settings that differ among them: run, seed." in made.notes[0]


def test_what_is_the_same_in_all_is_said_once() -> None:
    made = section(material(made_run("a"), made_run("b", predictions=random_predictions(method="ce"))))
    (table,) = made.tables[1:]
    assert table.columns == ["run", "method"] and table.rows == [["a", "–"], ["b", "ce"]]
    assert made.notes[0].startswith("The same in all: network resnet32;")


def test_what_a_reader_must_know(tmp_path: Path) -> None:
    ended = {"result.json": {"test": {"top1": 0.123}}}
    other = made_run("b", predictions=random_predictions(records="others"), step=7)
    told = " ".join(section(material(made_run("a", tmp_path / "a", files=ended), other)).notes)
    assert "b is unfinished" in told and "after step 7" in told
    assert "not evaluated on the same records" in told and "a 12.30" in told


def test_what_an_answer_costs(tmp_path: Path) -> None:
    """Where it was measured: results of earlier versions lack it, and only networks with routers skip experts."""
    plain = {"result.json": {"test": {"top1": 0.4, "flops": 138_000_000}}}
    used = {"experts_used": 1.6, "experts_used_many": 1.25, "experts_used_medium": 2.0, "experts_used_few": None}
    figures = {"flops": 414_000_000, "flops_routed": 250_000_000, "expert_shares": [1.0, 0.4, 0.2], **used}
    runs = [
        made_run("plain", tmp_path / "plain", files=plain),
        made_run("routed", tmp_path / "routed", files={"evaluation_test.json": figures}),
        made_run("early", tmp_path / "early", files={"result.json": {"test": {"top1": 0.4}}}),
    ]
    table = section(material(*runs)).tables[-1]
    assert table.columns[:3] == ["run", "operations per image", "experts used"]
    assert [row[1:3] for row in table.rows] == [
        ["0.138 GFLOP", "–"],
        ["0.25 GFLOP, 0.414 GFLOP where all experts answer", "1.60 of 3 (many 1.25, medium 2.00, few –)"],
        ["–", "–"],
    ]
