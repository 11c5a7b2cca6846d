"""Figures as parts of a page: their colours follow the page, their words stay as they are."""

from tools.reporting.inline import inline_svg
from tools.reporting.section import plot
from tools.reporting.style import COLOURS


def test_colours_are_the_pages_and_words_are_not_touched() -> None:
    figure, axes = plot()
    name = f"rare{COLOURS[0].lower()}"
    axes.plot([0, 1], [0, 1], color=COLOURS[0], label=name)
    axes.legend()
    made = inline_svg(figure, "a line", "one")
    assert f">{name}</text>" in made
    assert "var(--series-0)" in made and made.lower().count(COLOURS[0].lower()) == 1
