"""What is left of a task and what an image costs, by hand."""

import json
from pathlib import Path

import pytest
from helpers.paper_runs import IF100, small_choice, write_run

from tools.paper import timing as reproduce_timing
from tools.paper.plan import study_tasks, table_tasks
from tools.paper.studies import COMMANDS, TABLE
from tools.paper.timing import Cost, Costs, Rows, expected_seconds


def test_what_is_left_of_a_task(tmp_path: Path) -> None:
    """By hand, at 0.1 s an image of training, 0.02 from a cache, 0.01 forward: 10 steps an epoch, evaluation every 10."""
    costs = Costs({"teacher": Cost(100, 0.1), "cache": Cost(50, 0.01), "distill": Cost(10, 0.02)}, "slow")
    rows = Rows(1300, 1000)
    tasks = {task.role: task for task in study_tasks(small_choice(settings=()), [0], None)}
    batch = {role: 10 * 128 * 200 * image_s for role, image_s in (("bsce", 0.1), ("online", 0.03), ("cache", 0.02))}
    evaluations = 20 * 1000 * 0.01
    left = {role: expected_seconds(tasks[role], tmp_path, costs, rows) for role in ("bsce", "online")}
    assert left == {
        "bsce": pytest.approx(100 + batch["bsce"] + evaluations),
        "online": pytest.approx(10 + batch["online"] + evaluations),
    }
    folder = tmp_path / tasks["bsce"].folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 150.0}\n{"epoch": 150.7}\n{"epoch": 151')
    half = expected_seconds(tasks["bsce"], tmp_path, costs, rows)
    assert half == pytest.approx(100 + batch["bsce"] / 4 + 5 * 1000 * 0.01)
    cache = next(task for task in study_tasks(small_choice(settings=()), [0], None) if task.kind == "cache")
    assert expected_seconds(cache, tmp_path, costs, rows) == pytest.approx(50 + 200 * 1300 * 0.01)
    for view in range(200):  # blocks are written in any order: soon all views are begun
        block = tmp_path / cache.folder / "one" / f"v{view:03}" / "b00000.lc"
        block.parent.mkdir(parents=True)
        if view % 4:
            block.touch()
    assert expected_seconds(cache, tmp_path, costs, rows) == pytest.approx(50 + 50 * 1300 * 0.01)
    large = Rows(2 * 4096 + 1, 1000)  # three blocks a view
    assert expected_seconds(cache, tmp_path, costs, large) == pytest.approx(50 + 150 * large.train * 0.01)


def test_networks_with_experts_have_costs_of_their_own(tmp_path: Path) -> None:
    """Of each kind and number of experts; evaluating costs what caching costs, or a third of the training."""
    kinds = {"teacher, 6 experts": Cost(0, 0.6), "cache, 6 experts": Cost(0, 0.06), "distill, 4 experts": Cost(0, 0.3)}
    tasks = {task.role: task for task in table_tasks(small_choice(settings=()), (IF100,), (0,), ["ride_dive4"])}
    costs, rows = Costs(kinds, "slow"), Rows(1300, 1000)
    for role, image_s, evaluated in (("bsce6", 0.6, 0.06), ("ride_dive4", 0.3, 0.1)):
        expected = 10 * 128 * 200 * image_s + 20 * 1000 * evaluated
        assert expected_seconds(tasks[role], tmp_path, costs, rows) == pytest.approx(expected)
    (_, routers) = [
        task for task in table_tasks(small_choice(settings=()), (IF100,), (0,), ["ride3_router"]) if task.is_run
    ]
    costs_of_routers = Costs({"router, 3 experts": Cost(0, 0.2)}, "slow")
    expected = (2 * 512 * 5 + 1000) * 0.2  # evaluated once, at the end
    assert expected_seconds(routers, tmp_path, costs_of_routers, rows) == pytest.approx(expected)
    assert expected_seconds(tasks["cache"], tmp_path, costs, rows) == pytest.approx(200 * 1300 * 0.06)


def test_as_few_rows_are_measured_as_cover_what_is_missing() -> None:
    choice, chains = small_choice(settings=()), COMMANDS[TABLE].chains
    for asked, measured in (
        (["ce", "ldam_drw"], ["bsce", "dive"]),
        (["ride_dive4", "ride_kd4", "ride6", "ride3"], ["ride3", "ride6", "ride_kd4"]),
        (["ride3", "ride3_router"], ["ride3", "ride3_router"]),
        (["ride4", "dive"], ["bsce", "dive", "ride4"]),
    ):
        missing = [task for task in table_tasks(choice, (IF100,), (0,), asked) if task.kind != "data"]
        tasks = chains(choice, IF100, (0,), missing)
        assert [task.role for task in tasks if task.is_run] == measured
        assert {task.work for task in missing} <= {task.work for task in tasks}
    short = reproduce_timing._short_tasks(choice, missing, chains, 1, epochs=1)
    assert all(task.settings.distill.drw_from is None and task.settings.schedule.epochs == 1 for task in short)


def test_costs_are_means_over_those_that_ran_side_by_side(tmp_path: Path) -> None:
    """By hand: 100 steps of 128 at 500 and 1,000 images/s are 25.6 and 12.8 s of 40."""
    tasks = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0, 1), ["dive"]) if task.kind != "data"]
    for task in tasks:
        if task.is_run:
            write_run(tmp_path, task, 0.1, [], 500.0 * (1 + task.seed))
        else:
            made = {"sessions": [{"seconds": 10.0 * (1 + task.seed), "images": 1000}]}
            (tmp_path / task.folder / "one").mkdir(parents=True)
            (tmp_path / task.folder / "one" / "made.json").write_text(json.dumps(made))
    found = reproduce_timing._costs_of(tasks, tmp_path, dict.fromkeys((task.name for task in tasks), 40.0))
    assert (
        found["teacher"]
        == found["distill"]
        == [pytest.approx((14.4 + 27.2) / 2), pytest.approx((1 / 500 + 1 / 1000) / 2)]
    )
    assert found["cache"] == [pytest.approx((30 + 20) / 2), pytest.approx(0.015)]
