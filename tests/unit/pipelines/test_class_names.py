"""Class lists: what is written is read again, by the one rule that all readers share."""

import pytest

from pipelines import class_names
from pipelines.errors import UserError


@pytest.mark.parametrize(
    "names",
    [
        ["ant", "bee"],
        [" ant", "bee ", "\tcat"],
        ["\ufeffant", "\ufeff"],
        ["caf\udce9", "\udcff"],
        ["crane", "crane"],
        ["dünn", "蟻", "a,b", "\x85x\x1c"],
    ],
)
def test_round_trip(names: list[str]) -> None:
    assert class_names.parse(class_names.text(names), "list") == names
    windows = b"\xef\xbb\xbf" + class_names.text(names).replace(b"\n", b"\r\n") + b"\r\n \n"
    if not names[0].startswith("\ufeff"):
        assert class_names.parse(windows, "list") == names


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"ant\n\ncat\n", "list, line 2: a class name expected, an empty line found"),
        (b"ant\nb\0e\n", "list, line 2: a class name expected, a NUL byte found"),
        (b"\n \n", "list: class names expected, one per line"),
        (b"\xef\xbb\xbf", "list: class names expected, one per line"),
    ],
)
def test_mistakes_name_the_line(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        class_names.parse(data, "list")
