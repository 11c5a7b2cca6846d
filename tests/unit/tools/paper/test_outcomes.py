"""Spreads and times over runs, by hand."""

import json
from pathlib import Path

import pytest
from helpers.paper_runs import IF100, small_choice, write_run
from helpers.small_caches import FEW, make_cache

from pipelines.records.reader import Records
from tools.paper import outcomes as reproduce_outcomes
from tools.paper.outcomes import cache_facts, outcome, spread
from tools.paper.plan import study_tasks, table_tasks
from train.watch.text import clock


def test_when_something_was_at_work(tmp_path: Path) -> None:
    """Two that overlap and one later: 3,600 + 1,800 seconds, in which 3 x 12,800 images were trained."""
    tasks = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0, 1, 2), ["ce"]) if task.is_run]
    times = [("10:00:00", "10:40:00"), ("10:20:00", "11:00:00"), ("12:00:00", "12:30:00")]
    for task, session in zip(tasks, times, strict=True):
        write_run(tmp_path, task, 0.4, [("09:00:00", None), session])
    runs = [outcome(task, tmp_path) for task in tasks]
    assert reproduce_outcomes.at_work(runs) == (5400, 2)
    facts = reproduce_outcomes.environment_facts(runs)
    assert facts["images/s in total"].startswith(f"{3 * 100 * 128 / 5400:,.0f}, ")
    assert facts["trained"] == "2026-11-01, at most 2 at a time"


def test_a_session_within_one_second_ran_too(tmp_path: Path) -> None:
    (task,) = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0,), ["ce"]) if task.is_run]
    write_run(tmp_path, task, 0.4, [("10:00:00", "10:00:00")])
    runs = [outcome(task, tmp_path)]
    assert reproduce_outcomes.at_work([]) == (0, 0) and reproduce_outcomes.at_work(runs) == (0, 1)
    assert reproduce_outcomes.environment_facts(runs)["trained"] == "2026-11-01, at most 1 at a time"


def test_spreads_leave_out_what_is_not_there() -> None:
    assert spread([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5), 2) and spread([None]) == (None, None, 0)
    assert spread([1234.5]).text(0) == "1,234" and spread([]).text() == "-" and clock(3725.4) == "1:02:05"


def test_a_run_that_ended_without_a_word_is_told(tmp_path: Path) -> None:
    (task,) = [task for task in table_tasks(small_choice(settings=()), (IF100,), (0,), ["ce"]) if task.is_run]
    folder = tmp_path / task.folder
    folder.mkdir(parents=True)
    for status, words in (("running", ", ended without a word: it was killed or it crashed"), ("stopped", "")):
        (folder / "run.json").write_text(json.dumps({"status": status}))
        found = outcome(task, tmp_path)
        assert (found.state, found.words) == ("unfinished", f"epoch 0 of {task.settings.schedule.epochs}{words}")


@pytest.mark.parametrize(("images", "said"), [(200 * FEW, "0:00:20"), (200 * FEW - 1, "more than 0:00:20")])
def test_a_cache_tells_if_a_session_that_wrote_it_left_no_time(
    tmp_path: Path, few: Records, images: int, said: str
) -> None:
    """One that was stopped or killed."""
    task = next(task for task in study_tasks(small_choice(settings=()), [0], None) if task.kind == "cache")
    made = make_cache(tmp_path / task.folder, few, views=200)
    (made / "made.json").write_text(json.dumps({"sessions": [{"seconds": 20.0, "images": images}]}))
    found = cache_facts(task, tmp_path)
    assert found is not None and found.written_in == said
