"""The progress bar of programs that run once."""

import pytest

from train.watch.progress import progress_bar


def test_progress_without_a_terminal_is_a_line_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train.beton", 25) as step:
        for _ in range(25):
            step()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0] == "train.beton: 3/25" and lines[-1] == "train.beton: 25/25"


def test_several_at_a_time_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("predicting", 100) as step:
        for images in (64, 0, 36):
            step(images)
    assert capsys.readouterr().err == "predicting: 64/100\npredicting: 100/100\n"
