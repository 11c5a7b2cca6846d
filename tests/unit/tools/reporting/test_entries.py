"""Which runs are one entry of the report: those of which nothing differs but the seed and what is named after it."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.report_runs import config, made_run, random_predictions

from tools.reporting.entries import entries_of, follow
from train.config import Config


def titles(*runs: Any) -> list[str]:
    return [entry.title for entry in entries_of(runs)]


def student(seed: int, teacher: int | None = None, **changed: Any) -> Any:
    of = seed if teacher is None else teacher
    settings = config(seed, f"dive-s{seed}", method="dive", tau=3.0, teacher=f"bsce-s{of}")
    settings = replace(settings, cache=replace(settings.cache, paths=[f"caches/bsce-s{of}-v40"]))
    return made_run(f"dive-s{seed}", seed=seed, config=replace(settings, **changed))


def test_seeds_are_one_entry_that_says_what_varies() -> None:
    (entry,) = entries_of([student(0), student(1), student(2)])
    assert entry.title == "dive-s*" and entry.seeds == [0, 1, 2]
    assert set(entry.varies) == {"seed", "run", "distill.teacher", "cache.paths"}
    shown = entry.spread(lambda run: float(run.config.seed if run.config else 0))
    assert (shown.mean, shown.std, shown.n) == (1.0, 1.0, 3)


def test_one_teacher_for_all_seeds_is_one_entry_too() -> None:
    (entry,) = entries_of([student(0, teacher=0), student(1, teacher=0)])
    assert set(entry.varies) == {"seed", "run"}


def test_initial_networks_that_follow_the_seed() -> None:
    """As routers have them, trained last in the finished networks of their seeds."""
    routers = []
    for seed in (0, 1):
        settings = config(seed, f"router-s{seed}")
        settings = replace(settings, model=replace(settings.model, init=f"ride-s{seed}"))
        routers.append(made_run(f"router-s{seed}", seed=seed, config=settings))
    (entry,) = entries_of(routers)
    assert entry.title == "router-s*" and set(entry.varies) == {"seed", "run", "model.init"}


@pytest.mark.parametrize(
    "other",
    [
        student(1, precision="bf16"),
        student(1, teacher=7),
        student(0, run="again"),
        replace(student(1), step=40),
        replace(student(1), config=None),
        replace(student(1), predictions=random_predictions(records="others")),
    ],
    ids=["a setting", "another seed's teacher", "the same seed", "unfinished", "no settings", "other records"],
)
def test_anything_else_keeps_runs_apart(other: Any) -> None:
    assert len(entries_of([student(0), other])) == 2


def test_facts_count_too(tmp_path: Any) -> None:
    """The same path may hold other images."""
    runs = [
        made_run(f"a-s{seed}", tmp_path / str(seed), seed, {"run.json": {"facts": {"train": digest}}})
        for seed, digest in enumerate("xyx")
    ]
    assert titles(*runs) == ["a-s*", "a-s1"]


def test_the_shared_title() -> None:
    assert titles(made_run("x40-s4", seed=4), made_run("x40-s5", seed=5)) == ["x40-s*"]
    fast = [made_run(f"x-s{n}", seed=n, config=replace(config(n, "x"), precision="bf16")) for n in (4, 5)]
    two = titles(made_run("x-s0"), made_run("x-s1", seed=1), *fast)
    assert two == ["x-s*, first x-s0", "x-s*, first x-s4"]
    assert titles(made_run("first", seed=4), made_run("second", seed=5)) == ["first and 1 more"]


def test_whole_numbers_follow_the_seed() -> None:
    assert follow("e10-s1-v10", "e10-s2-v10", 1, 2)
    assert not follow("e10-s1", "e20-s2", 1, 2) and not follow("s1", "s12", 1, 2) and not follow("s1", "t1", 1, 1)


def test_entries_look_different() -> None:
    runs = [made_run(f"run {n}", config=Config(run=f"run {n}", precision="fp32"), seed=0) for n in range(12)]
    assert len({(entry.colour, entry.line) for entry in entries_of(runs)}) == 12
