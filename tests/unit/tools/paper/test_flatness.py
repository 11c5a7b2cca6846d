"""The flatness study by hand: ratios, tasks, the verdict and its rule, the page."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from helpers.paper_runs import small_choice, write_run

from pipelines.errors import UserError
from tools.paper import flatness
from tools.paper.flatness import COUNTS, EPSILONS, Pair, spearman
from tools.paper.jobs import Ending
from tools.paper.plan import Task
from tools.paper.report import Report, to_markdown
from tools.paper.studies import COMMANDS, FLATNESS, require

LARGE = Pair("airplane", "dog", 5000, 500)
SESSIONS: list[tuple[str, str | None]] = [("10:00:00", "11:00:00")]


def test_the_ratios_of_virtual_examples() -> None:
    ratios = {counts: [Pair("a", "b", *counts).ratio(eps) for eps in EPSILONS] for counts in COUNTS}
    few = [0.010, 0.122, 0.263, 0.443, 0.683]
    expected = {(5000, 500): [0.100, 0.222, 0.375, 0.571, 0.833], (5000, 50): few}
    expected[500, 50] = expected[5000, 500]
    assert ratios == {counts: pytest.approx(values, abs=0.0006) for counts, values in expected.items()}


def test_a_ratio_is_that_of_sums_of_targets() -> None:
    """Virtual examples of a class are the sum of its column over the targets of all training images."""
    eps, targets = 0.3, np.repeat(np.eye(2), (500, 50), axis=0)
    targets[:500] = [1 - eps, eps]
    head, tail = targets.sum(axis=0)
    assert Pair("a", "b", 500, 50).ratio(eps) == pytest.approx(tail / head)


@pytest.mark.parametrize(
    ("counts", "config"),
    [
        *((counts, counts) for counts in COUNTS),
        ((4000, 400), (5000, 500)),
        ((4000, 60), (5000, 50)),
        ((700, 700), (500, 50)),
        ((1, 1), (500, 50)),
    ],
)
def test_each_pair_has_the_configuration_nearest_to_its_size(counts: tuple[int, int], config: tuple[int, int]) -> None:
    path = Pair("cat", "ship", *counts).config
    assert path.stem == f"ce_{config[0]}_{config[1]}" and path.is_file()


def test_the_plan() -> None:
    pairs = [LARGE, Pair("cat", "ship", 500, 50)]
    tasks = flatness.tasks(small_choice(scale=0.1, settings=("precision=bf16",)), pairs, [0.0, 0.25], [3, 4])
    assert len({task.name for task in tasks}) == len({task.folder for task in tasks}) == len(tasks) == 2 + 2 * 2 * 2
    convert = next(task for task in tasks if task.name == "data_cat_ship_500_50")
    assert convert.command[1:7] == ["cifar10-pair", "--head", "cat", "--tail", "ship", "--counts"]
    by_name = {task.name: task for task in tasks}
    task = by_name["ce_cat_ship_500_50_eps0.25-e10-s4"]
    settings, own = task.settings, "data/cifar10_cat_ship_500_50"
    assert task.needs == (convert.name,) and convert.folder == own and task.role == "eps 0.25"
    assert (settings.data.train, settings.data.test) == (f"{own}/train.beton", f"{own}/test.beton")
    assert (settings.distill.head_smoothing, settings.seed, settings.schedule.milestones) == (0.25, 4, [6, 8])
    assert by_name["ce_airplane_dog_5000_500_eps0-e20-s3"].settings.distill.head_smoothing == 0
    seeds = [task.seed for task in tasks if task.is_run]
    assert seeds == sorted(seeds), "every point has a run early"
    measuring = COMMANDS[FLATNESS].chains(small_choice(), LARGE.dataset, [0, 1], tasks)
    assert [task.kind for task in measuring] == ["teacher", "teacher"], "a study without caches measures none"


def test_the_rank_correlation() -> None:
    rising = [(0.0, 1.0), (0.1, 5.0), (0.2, 6.0), (0.3, 90.0)]
    assert spearman(rising) == pytest.approx(1) and spearman([(x, -y) for x, y in rising]) == pytest.approx(-1)
    # Ranks 1.5 1.5 3.5 3.5 and 1 3 2 4: covariance 0.5, variances 1 and 1.25.
    assert spearman([(0, 1), (0, 3), (1, 2), (1, 4)]) == pytest.approx(0.5 / (1 * 1.25) ** 0.5)
    assert spearman([(0, 7), (1, 7)]) == 0


def study(
    out: Path, accuracies: dict[float, list[tuple[float, float]]], endings: dict[str, Ending] | None = None
) -> tuple[list[Task], Report]:
    """The page on three seeds of LARGE. accuracies: of head and tail, {eps: one pair for each seed that is finished}."""
    tasks = flatness.tasks(small_choice(settings=()), [LARGE], list(accuracies), [0, 1, 2])
    for task in tasks:
        values = accuracies[task.settings.distill.head_smoothing] if task.is_run else []
        if task.seed < len(values):
            write_run(out, task, sum(values[task.seed]) / 2, SESSIONS, classes=values[task.seed])
    return tasks, flatness.report(tasks, out, endings or {}, {"by": "hand"}, [], [LARGE])


def test_the_arithmetic_of_the_page(tmp_path: Path) -> None:
    tasks, report = study(
        tmp_path,
        {0.4: [(0.96, 0.80), (0.97, 0.84), (0.98, 0.85)], 0.0: [(0.97, 0.70), (0.97, 0.72), (0.97, 0.74)]},
    )
    first, last = report.data["rows"]
    assert (first["eps"], last["eps"], last["counts"]) == (0, 0.4, "5000:500") and last["R"] == pytest.approx(5 / 6)
    assert last["head"] == {"mean": pytest.approx(97), "std": pytest.approx(1), "n": 3}
    assert first["tail"] == {"mean": pytest.approx(72), "std": pytest.approx(2), "n": 3}
    assert last["mean"]["mean"] == pytest.approx(90) and (last["head_class"], last["n_tail"]) == ("airplane", 500)
    (verdict,) = report.data["verdicts"]
    # Each of three is above each of the others: ranks 2 2 2 5 5 5 against 1 to 6, covariance 2.25, variances 2.25 and 35/12.
    assert verdict["spearman"] == pytest.approx(2.25 / (2.25 * 35 / 12) ** 0.5)
    assert (
        verdict["holds"] and verdict["head_change"] == pytest.approx(0) and verdict["tail_change"] == pytest.approx(11)
    )
    page = to_markdown(report, "flat")
    assert "| 5000:500 | 0.4 | 0.833 | 97.00 ± 1.00 | 83.00 ± 2.65 | 90.00 ± 1.80 | 3 |" in page
    assert "![Accuracy of airplane (head) and dog (tail) against R](flat.svg)" in page and "* by: hand" in page
    assert "the claim holds: from eps 0 to 0.4 the head changes by +0.00 points, the tail by +11.00 (seeds: 3)" in page
    assert "| `ce_airplane_dog_5000_500_eps0.4-s1` | 1 | 97.00 | 84.00 | 90.50 | 1:00:00 |" in page
    assert {run["role"] for run in report.data["runs"]} == {"eps 0", "eps 0.4"} and "many" not in report.data["runs"][0]
    (figure,) = report.figures
    figure.draw(tmp_path / "flat")
    assert (tmp_path / "flat.png").stat().st_size > 1000 and "<svg" in (tmp_path / "flat.svg").read_text()


@pytest.mark.parametrize(
    ("head", "tail", "words", "holds"),
    [
        ((97, 96.1), (70, 71.1), "the claim holds: ", True),
        ((97.8, 96.8), (70, 71), "the claim holds: ", True),  # 96.8 - 97.8 is a little less than -1
        ((97, 95.9), (70, 75), "holds in part, as the head is not steady", False),
        ((97, 98.1), (70, 75), "holds in part, as the head is not steady", False),
        ((97, 97), (70, 70.9), "holds in part, as the tail does not rise", False),
        ((97, 90), (70, 60), "the claim does not hold", False),
    ],
)
def test_the_rule_of_the_verdict(
    tmp_path: Path, head: tuple[float, float], tail: tuple[float, float], words: str, holds: bool
) -> None:
    values = [(h / 100, t / 100) for h, t in zip(head, tail, strict=True)]
    _, report = study(tmp_path, {0.0: [values[0]] * 3, 0.4: [values[1]] * 3})
    (verdict,) = report.data["verdicts"]
    assert words in verdict["sentence"] and verdict["holds"] is holds and verdict["sentence"] in report.notes


def test_one_seed_that_rises_much_is_no_rise(tmp_path: Path) -> None:
    values = {0.0: [(0.97, 0.70), (0.97, 0.71), (0.97, 0.72)], 0.4: [(0.97, 0.69), (0.97, 0.70), (0.97, 0.90)]}
    (verdict,) = study(tmp_path, values)[1].data["verdicts"]
    assert verdict["tail_change"] > 1 and verdict["spearman"] < 0.5 and verdict["holds"] is False


def test_there_is_no_verdict_before_all_runs_are_there(tmp_path: Path) -> None:
    values = {0.0: [(0.97, 0.70)] * 3, 0.4: [(0.97, 0.80)]}
    failed = "ce_airplane_dog_5000_500_eps0.4-s1"
    _, report = study(tmp_path, values, {failed: Ending(2, 1.0, "error: no room")})
    page = to_markdown(report)
    assert "not known whether the claim holds: 4 of 6 runs are finished" in page and "| 1 (1 of 3 seeds) |" in page
    assert f"| `{failed}` | 1 | failed: error: no room |" in page and report.data["verdicts"][0]["holds"] is None
    _, report = study(tmp_path / "none", {0.0: [], 0.4: []})
    assert "| 5000:500 | 0.4 | 0.833 | not run |" in to_markdown(report)
    report.figures[0].draw(tmp_path / "empty")
    _, report = study(tmp_path / "one", {0.1: [(0.9, 0.5)] * 3})
    assert "not known whether the claim holds: it takes two values of eps" in to_markdown(report)


def test_without_the_package_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"matplotlib, .* type pip install -e '.\[report\]'"):
        require("matplotlib")
