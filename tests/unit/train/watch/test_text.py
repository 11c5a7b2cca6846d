"""The texts of figures and lists, worked out by hand."""

import pytest

from train.watch.text import clock, counted, markdown_table, megabytes, percent, short_clock, short_list


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (5.4, "0:00:05", "0:05"),
        (3599.6, "1:00:00", "1:00:00"),
        (754, "0:12:34", "12:34"),
        (90061, "25:01:01", "25:01:01"),
    ],
)
def test_durations(seconds: float, long: str, short: str) -> None:
    assert (clock(seconds), short_clock(seconds)) == (long, short)


def test_sizes_and_shares() -> None:
    assert megabytes(2_345_678) == "2.3 MB" and (percent(0.1234), percent(0.126, 0), percent(None)) == (
        "12.34%",
        "13%",
        "-",
    )


def test_lists() -> None:
    assert short_list(list("abc")) == "a, b, c" and short_list(list("abcde")) == "a, b, c and 2 more"
    assert counted(1, "block") == "1 block" and counted(1200, "block") == "1,200 blocks"


def test_a_markdown_table() -> None:
    text = markdown_table(("what", "n"), [("a|b", 1), (None, 2)], right=("n",))
    assert text == "| what | n |\n| --- | ---: |\n| a\\|b | 1 |\n| - | 2 |"
