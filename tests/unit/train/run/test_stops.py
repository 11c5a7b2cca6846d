"""The stop file, and exit codes; signals, ranks and launchers are tested with whole commands in tests/runs."""

from pathlib import Path

import pytest

from train.run.stops import EXIT_CODE, Stops


@pytest.mark.parametrize("place", ["folder", "file", "nothing"])
def test_only_a_file_asks_for_a_stop(tmp_path: Path, place: str) -> None:
    if place == "folder":
        (tmp_path / "stop").mkdir()
    elif place == "file":
        (tmp_path / "stop").touch()
    with Stops(tmp_path, 1) as stops:
        assert stops.agreed() == ("the stop file" if place == "file" else None)
        stops.obeyed("the stop file", "")
    assert (tmp_path / "stop").exists() == (place == "folder")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("the stop file", 0),
        ("SIGINT", 0),
        ("SIGUSR1", 0),
        # A launcher sends it to start all ranks again, or is gone itself: then others must go on.
        ("SIGTERM", EXIT_CODE),
        ("the end of its launcher", EXIT_CODE),
    ],
)
def test_a_launcher_that_restarts_is_told_when_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, code: int
) -> None:
    stops = Stops(tmp_path, 1)
    for restarts, expected in (("0", EXIT_CODE), ("3", code)):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        stopped = stops.obeyed(reason, "after step 7 of 21, saved")
        assert stopped.code == expected and str(stopped) == f"stopped by {reason} after step 7 of 21, saved"
