"""What the offline programs' command lines share; their commands have separate tests."""

import argparse

import pytest

from pipelines.errors import UserError
from tools.command_line import Parser, progress_bar, run_command, whole


def test_how_commands_end(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, error in {"good": None, "mistake": UserError("what to type"), "stopped": KeyboardInterrupt()}.items():

        def run(args: argparse.Namespace, error: BaseException | None = error) -> None:
            if error is not None:
                raise error

        commands.add_parser(name).set_defaults(run=run)
    ends = {name: run_command(parser, [name], "nothing was done") for name in ("good", "mistake", "stopped")}
    assert ends == {"good": 0, "mistake": 2, "stopped": 130}
    assert capsys.readouterr().err == "error: what to type\ninterrupted; nothing was done\n"


def test_mistakes_in_options_are_user_errors() -> None:
    parser = Parser()
    parser.add_argument("--jobs", type=whole(1, 9))
    assert parser.parse_args(["--jobs", "9"]).jobs == 9
    for given, words in (("0", "0 given, 1..9 allowed"), ("10", "10 given"), ("x", "invalid"), ("", "invalid")):
        with pytest.raises(UserError, match=f"argument --jobs: .*{words}.*; --help explains"):
            parser.parse_args(["--jobs", given])


def test_progress_without_a_terminal_is_a_line_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train.beton", 25) as step:
        for _ in range(25):
            step()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0] == "train.beton: 3/25" and lines[-1] == "train.beton: 25/25"
