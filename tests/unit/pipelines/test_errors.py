"""What of an error is shown."""

import pytest

from pipelines.errors import first_line


@pytest.mark.parametrize(
    ("said", "shown"), [("one\ntwo", "one"), ("\n  one \n two", "one "), ("", "RuntimeError"), (" \n", "RuntimeError")]
)
def test_the_first_line_or_the_kind_of_an_error(said: str, shown: str) -> None:
    assert first_line(RuntimeError(said)) == shown
