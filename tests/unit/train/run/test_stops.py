"""The stop file; signals and ranks are tested with whole commands in tests/runs/test_stops.py."""

from pathlib import Path

import pytest

from train.run.stops import Stops


@pytest.mark.parametrize("place", ["folder", "file", "nothing"])
def test_only_a_file_asks_for_a_stop(tmp_path: Path, place: str) -> None:
    if place == "folder":
        (tmp_path / "stop").mkdir()
    elif place == "file":
        (tmp_path / "stop").touch()
    with Stops(tmp_path, 1) as stops:
        assert stops.agreed() == ("the stop file" if place == "file" else None)
        stops.obeyed()
    assert (tmp_path / "stop").exists() == (place == "folder")
