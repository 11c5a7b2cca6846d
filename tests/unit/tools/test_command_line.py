"""What the offline programs' command lines share; their commands have separate tests."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import UserError
from tools import compare, convert, find_lr, logits, reproduce
from tools.command_line import Parser, path, run_command, whole
from tools.conversion.options import imbalance
from tools.paper.options import class_name, resolved


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
    for given, words in (("0", "0 given, 1..9 allowed"), ("10", "10 given"), ("x", "x given, 1..9"), ("", "1..9")):
        with pytest.raises(UserError, match=f"argument --jobs: .*{words}.*; --help explains"):
            parser.parse_args(["--jobs", given])


def test_a_misspelt_option_is_named() -> None:
    """Where argparse would say that the option which was meant is missing."""
    parser = Parser()
    command = parser.add_subparsers().add_parser("make")
    command.add_argument("--imbalance", type=imbalance, required=True)
    command.add_argument("--force", action="store_true")
    assert parser.parse_args(["make", "--imb", "10", "--fo"]).force
    for words, said in (
        (["--imbalence", "10"], "unknown option --imbalence; nearest: --imbalance; --help explains"),
        (["--imbalance=10", "--forse"], "unknown option --forse; nearest: --force"),
        (["--imbalance=10", "--qqqq=3"], "unknown option --qqqq; --help explains"),
        (["--imbalance", "abc"], "argument --imbalance: abc given, at least 1 and at most a million allowed"),
        (["--force"], "the following arguments are required: --imbalance"),
    ):
        with pytest.raises(UserError, match=said):
            parser.parse_args(["make", *words])


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """(command, option) for all that take a value, those of sub-commands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ((name, option) for _, option in options_of(command))
        elif action.type is not None and not action.choices:
            yield "", action


PARSERS = {
    "compare": compare.build_parser,
    "convert": convert.build_parser,
    "find_lr": find_lr.build_parser,
    "logits": logits.build_parser,
    "reproduce": reproduce.build_parser,
}
OPTIONS = [
    pytest.param(option, id=f"{tool}-{command}-{option.dest}")
    for tool, build in PARSERS.items()
    for command, option in options_of(build())
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_refuses_what_no_program_can_use(option: argparse.Action, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path begins at the home folder and is possible; a number is finite and fits into 64 bits; a class is part of a path."""
    monkeypatch.setenv("HOME", "/users/me")
    parser = Parser()
    parser.add_argument("--given", type=option.type)
    is_path = isinstance(option.type("x"), Path) if option.type in (path, resolved) else False
    hopeless = ["nan", "inf", "-1", "1" * 5000, str(10**30), "1e400", "1e30"]
    if option.type is class_name:
        hopeless = ["", "-1", "a/b", "..", "a b", "x" * 5000]
    for text in ["", "~no_such_user/x", "x" * 256] if is_path else hopeless:
        with pytest.raises(UserError) as caught:
            parser.parse_args([f"--given={text}"])
        assert len(str(caught.value)) < 400 and "--help explains" in str(caught.value)
    if is_path:
        assert parser.parse_args(["--given=~/x"]).given == Path("/users/me/x")
