"""What of an error is shown."""

from pathlib import Path

import pytest

from pipelines.errors import first_line, where_to_look


@pytest.mark.parametrize(
    ("said", "shown"), [("one\ntwo", "one"), ("\n  one \n two", "one "), ("", "RuntimeError"), (" \n", "RuntimeError")]
)
def test_the_first_line_or_the_kind_of_an_error(said: str, shown: str) -> None:
    assert first_line(RuntimeError(said)) == shown


def test_where_a_path_that_is_not_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.beton").touch()
    assert where_to_look(tmp_path / "tran.beton") == [f"nearest: {tmp_path}/train.beton"]
    assert where_to_look(Path("tran.beton")) == ["nearest: train.beton"]
    assert where_to_look(Path("tran.beton"), lambda name: name.endswith(".yaml")) == [f"looked for from {tmp_path}"]
    assert where_to_look(Path("none/tran.beton")) == [f"looked for from {tmp_path}"]
    assert where_to_look(tmp_path / "none/tran.beton") == []
