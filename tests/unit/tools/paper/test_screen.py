"""What is printed when the reader of stdout has gone."""

import contextlib
import os
import sys

import pytest

from tools.paper.screen import say


def test_a_closed_screen_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = os.pipe()
    os.close(source)
    with open(os.dup(target), "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        for _ in range(2):
            say("x")
        assert sys.stdout is not closed
        with contextlib.suppress(BrokenPipeError):
            closed.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
    os.close(target)
