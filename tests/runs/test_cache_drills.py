"""The short forms of the cache's drills: 10 kills over two writers, 54 damages. Long forms: tests/drills/long.py --full."""

from pathlib import Path

import pytest
from drills.cache_drills import HARMS, accepted_damage, kill_writers, reading, verify
from helpers.launch import run, tiny_config
from helpers.small_caches import make_cache, make_records, some_samples

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"


@pytest.mark.slow
def test_two_writers_killed_ten_times_leave_the_bytes_of_a_calm_one(tiny: Path, tmp_path: Path) -> None:
    run("teacher", tiny_config(tmp_path, tiny, "bsce"), "run=t", "data.seed=1", "schedule.epochs=1", cwd=tmp_path)
    seen = kill_writers(tmp_path, tiny_config(tmp_path, tiny, "dive", DIVE), views=120, kills=10, seed=0)
    assert 10 < seen.blocks < 120, "the reader had something to look at"


def test_every_damage_is_refused_and_named(tmp_path: Path) -> None:
    records = make_records(tmp_path / "r.beton", some_samples(60))
    cache = make_cache(tmp_path / "caches", records, views=3, codec="u8")
    assert verify(cache) is None and reading(cache) is None, "it is whole before"
    assert accepted_damage(cache, tmp_path, count=6 * len(HARMS), seed=0) == (54, [])
