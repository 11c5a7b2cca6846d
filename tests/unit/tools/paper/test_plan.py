"""Tasks, their order and their schedules; which of them are missing."""

import re
from pathlib import Path

import pytest
from helpers.paper_runs import IF10, IF100, small_choice, write_run

from tools.paper.datasets import CIFAR100_LT, MORE
from tools.paper.plan import scaled_schedule, study_tasks, table_tasks, wanted
from train.config import Config
from train.settings import load

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


def test_the_plan_of_the_rows_with_experts() -> None:
    """A student brings the teacher of its row; a row that is another's with more experts; and the rows of Table 1 stay."""
    asked = ["ride_dive4", "ldam_drw", "ride_kd4", "dive"]
    tasks = {task.name: task for task in table_tasks(small_choice(settings=(), scale=0.2), (IF100,), (3,), asked)}
    chains = [("bsce", "dive"), ("ride6", "ride_kd4"), ("bsce6", "ride_dive4")]
    expected = [f"{one}_if100-e40-s3" for chain in chains for one in (chain[0], f"cache_{chain[0]}", chain[1])]
    expected = [name + ("-v40" if name.startswith("cache") else "") for name in expected]
    assert list(tasks) == ["data_if100", *expected, "ldam_drw_if100-e40-s3"]
    student = tasks["ride_dive4_if100-e40-s3"]
    assert student.teacher == "bsce6_if100-e40-s3" and student.needs == ("data_if100", "cache_bsce6_if100-e40-s3-v40")
    assert student.settings.cache.paths == ["caches/bsce6_if100-e40-s3-v40"]
    cache = tasks["cache_bsce6_if100-e40-s3-v40"]
    assert cache.settings.distill.teacher == student.teacher and cache.settings.data == student.settings.data
    works = {task.role: task.work for task in tasks.values() if task.is_run} | {"cache": cache.work}
    assert works == {
        **{"bsce": "teacher", "dive": "distill", "ldam_drw": "teacher", "cache": "cache, 6 experts"},
        **{"ride6": "teacher, 6 experts", "ride_kd4": "distill, 4 experts"},
        **{"bsce6": "teacher, 6 experts", "ride_dive4": "distill, 4 experts"},
    }
    ride = tasks["ride6_if100-e40-s3"].settings
    assert (ride.model.experts, ride.distill.method, ride.distill.drw_from) == (6, "ldam", 32)
    before = table_tasks(small_choice(settings=(), scale=0.2), (IF100,), (3,), ["dive"])
    assert [tasks[task.name] for task in before] == before


def test_rows_with_experts_at_another_imbalance_have_its_records() -> None:
    for method in MORE:
        *_, task = table_tasks(small_choice(settings=()), (IF10,), (0,), [method])
        config = task.settings
        place = "data/cifar100_lt_if10"
        assert task.name == f"{method}_if10-s0" and task.arguments[0].endswith("_if100.yaml")
        assert (config.data.train, config.data.test) == (f"{place}/train.beton", f"{place}/test.beton")
        experts = re.search(r"\d", method)
        assert config.model.experts == (int(experts[0]) if experts else None)


def test_routers_are_of_the_run_of_their_row() -> None:
    tasks = table_tasks(small_choice(settings=()), (IF100,), (2,), ["ride_dive4_router", "ride3_router"])
    names = [task.name for task in tasks if task.is_run]
    assert names == [f"{row}_if100-s2" for row in ("ride3", "ride3_router", "bsce6", "ride_dive4", "ride_dive4_router")]
    by_name = {task.name: task for task in tasks}
    for row, experts in (("ride3", 3), ("ride_dive4", 4)):
        task = by_name[f"{row}_router_if100-s2"]
        assert task.command[0].endswith("train/router.py") and task.needs == ("data_if100", f"{row}_if100-s2")
        assert task.settings.model.init == f"{row}_if100-s2" and task.settings.model.experts == task.experts == experts
        assert task.work == f"router, {experts} experts" and task.teacher is None
    short = {
        scale: table_tasks(small_choice(scale=scale), (IF100,), (2,), ["ride3_router"])[-1] for scale in (0.1, 0.2)
    }
    assert [task.name for task in short.values()] == [f"ride3_router_if100-e{length}-s2" for length in (20, 40)]
    assert {task.settings.schedule.epochs for task in short.values()} == {5}


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (1, []),
        (0.2, ["warmup_epochs=4", "milestones=[32,36]", "drw_from=32", "diversity_from=32"]),
        (0.02, ["warmup_epochs=0", "milestones=[3]", "drw_from=3", "diversity_from=3"]),
        (0.01, ["kind=constant", "warmup_epochs=0", "milestones=[]", "drw_from=null", "diversity_from=null"]),
    ],
)
def test_switches_are_scaled_with_the_schedule(scale: float, settings: list[str]) -> None:
    """One that would begin with the end or with the start falls away: beyond the end it is an error."""
    file = ROOT / "configs" / "cifar100_lt" / "ride_kd4_if100.yaml"
    found = [setting.partition(".")[2] for setting in scaled_schedule(file, scale)]
    assert [setting for setting in found if not setting.startswith("epochs=")] == settings
    config = load(Config, file, scaled_schedule(file, scale))
    assert all(
        epoch is None or epoch < (config.schedule.epochs or 0)
        for epoch in (config.distill.drw_from, config.distill.diversity_from)
    )


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
