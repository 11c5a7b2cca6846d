"""Tasks, their order and their schedules; which of them are missing."""

from pathlib import Path

import pytest
from helpers.paper_runs import IF10, IF100, small_choice, write_run

from tools.paper.datasets import CIFAR100_LT
from tools.paper.plan import scaled_schedule, study_tasks, table_tasks, wanted

ROOT = Path(__file__).resolve().parents[4]


def test_the_plan_of_the_whole_table() -> None:
    tasks = table_tasks(small_choice(settings=("precision=bf16",)), (CIFAR100_LT[50], IF10), (1, 2))
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 2 + 4 * 4
    for i, task in enumerate(tasks):
        assert set(task.needs) <= set(names[:i]), "in an order in which they can run"
    by_name = {task.name: task for task in tasks}
    student = by_name["dive_if50-s2"]
    assert student.teacher == "bsce_if50-s2" and student.needs == ("data_if50", "cache_bsce_if50-s2-v200")
    assert student.settings.cache.paths == ["caches/bsce_if50-s2-v200"] and student.settings.seed == 2
    cache = by_name["cache_bsce_if50-s2-v200"]
    assert cache.needs == ("data_if50", "bsce_if50-s2") and cache.settings.distill.teacher == "bsce_if50-s2"
    assert all(task.settings.precision == "bf16" for task in tasks if task.kind != "data")
    assert by_name["ce_if10-s1"].settings.schedule.milestones == [120, 160]


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (1, []),
        (0.2, ["epochs=40", "warmup_epochs=1", "milestones=[24,32]"]),
        (0.01, ["epochs=2", "warmup_epochs=0", "milestones=[1]"]),
        (0.005, ["kind=constant", "epochs=1", "warmup_epochs=0", "milestones=[]"]),
        (2, ["epochs=400", "warmup_epochs=10", "milestones=[240,320]"]),
    ],
)
def test_schedules_are_scaled_with_all_their_boundaries(scale: float, settings: list[str]) -> None:
    file = ROOT / "configs" / "cifar100_lt" / "ce_if100.yaml"
    assert scaled_schedule(file, scale) == [f"schedule.{setting}" for setting in settings]


def test_the_plan_of_the_studies() -> None:
    tasks = {task.role: task for task in study_tasks(small_choice(scale=0.2), [0], None) if task.is_run}
    found = {
        role: (bool(t.settings.cache.paths), t.settings.data.views, t.settings.distill.tau, t.settings.distill.p)
        for role, t in tasks.items()
        if role != "bsce"
    }
    assert found == {
        "online": (False, None, 3, 0.5),
        "cache": (True, None, 3, 0.5),
        "tenth": (True, 4, 3, 0.5),
        "rule": (True, None, None, 0.5),
        "matched": (True, None, 6, 1),
    }
    assert {task.settings.schedule.epochs for task in tasks.values()} == {40}
    assert tasks["online"].needs == ("data_if100", "bsce_if100-e40-s0")
    given = study_tasks(small_choice(scale=0.2), [0, 1], Path("elsewhere") / "mine-s0")
    assert not [task for task in given if task.role == "bsce"]
    assert [task.folder for task in given if task.kind == "cache"] == ["caches/mine-s0-v40", "caches/mine-s0-v4"]


def test_wanted_follows_what_is_missing(tmp_path: Path) -> None:
    tasks = table_tasks(small_choice(settings=()), (IF100,), (0,))
    assert wanted(tasks, tmp_path) == tasks
    for name in ("dive_if100-s0", "ce_if100-s0"):
        write_run(tmp_path, next(task for task in tasks if task.name == name), 0.4, [])
    assert [task.name for task in wanted(tasks, tmp_path)] == ["data_if100", "bsce_if100-s0"], (
        "no student needs the cache"
    )
    assert wanted(tasks, tmp_path) == wanted(table_tasks(small_choice(settings=()), (IF100,), (0,), ["dive"]), tmp_path)
