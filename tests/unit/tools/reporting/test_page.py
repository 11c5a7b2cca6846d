"""The page as text: everything is escaped, nothing is fetched, ids are unique, numbers are aligned."""

import functools
import re
from html.parser import HTMLParser

from matplotlib.figure import Figure

from tools.reporting.page import LONG, page
from tools.reporting.section import Key, Picture, Section, plot
from tools.reporting.style import COLOURS
from tools.reporting.tables import Table

READABLE = "_hidden <b>&\"' </script><img src=x onerror=alert(1)> $\\frac{1}{2}$"
HOSTILE = f"{READABLE} a\x1b[31m\nb \udcff"


def figure() -> Figure:
    made, axes = plot((1.2, 0.9))
    axes.plot([0, 1], [0, 1], color=COLOURS[0], marker="o")
    axes.plot([0, 1], [1, 0], color="black")
    axes.set_xlim(0.2, 0.8)  # lines are clipped, so ids are referred to
    return made


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects attributes and text."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value or "" for _, found, value in self.attributes if found == name]


@functools.cache
def made(text: str = "a") -> str:
    tables = [Table(text, [text, text], [[text, text]]), Table(text, [text], [[text]] * (LONG + 1))]
    pictures = [Picture(figure(), text, text, legend=[Key(text, "#123456")]), Picture(figure(), text, text, wide=True)]
    pictures.append(Picture(figure(), text, text, pixels=True))
    sections = {
        "one": Section(text, text, tables, pictures, [text], [Key(text, COLOURS[0], "--")]),
        "two": Section(text),
    }
    return page(text, text, sections, {"three": text}).decode()


def test_what_runs_say_stays_text() -> None:
    """The same elements as of harmless text, and the words can be read."""
    quiet, loud = Reader(made()), Reader(made(HOSTILE))
    assert [(tag, name) for tag, name, _ in loud.attributes] == [(tag, name) for tag, name, _ in quiet.attributes]
    assert not loud.open and not re.search(r"[\x00-\x09\x0b-\x1f]", made(HOSTILE))
    for words in (loud.text, loud.values("aria-label")[-1], loud.values("alt")[0]):
        assert READABLE in words and "\\udcff" in words


def test_nothing_is_fetched_and_no_id_is_there_twice() -> None:
    text = made()
    read = Reader(text)
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text and "@import" not in text
    links = read.values("href") + re.findall(r"url\((.*?)\)", text)
    assert links and all(link.startswith("#") for link in links)
    assert all(source.startswith("data:image/png;base64,") for source in read.values("src"))
    ids = read.values("id")
    assert len(set(ids)) == len(ids) and {link.removeprefix("#") for link in links} <= set(ids)
    assert {"one", "two", "left-out"} <= set(ids)


def test_plots_take_their_colours_from_the_page() -> None:
    text = made()
    assert "var(--series-0)" in text and "stroke: var(--ink)" in text
    drawn = text[text.index("</style>") :]
    assert "#000000" not in drawn and COLOURS[0].lower() not in drawn


def test_tables_are_aligned_merged_and_folded() -> None:
    rows = [["a", "x", "1,234.5"], ["a", "y", "–"], ["b", "z" * 40, "3.2 ± 0.1"]]
    text = page("t", "", {"s": Section("s", tables=[Table("m", ["run", "what", "n"], rows)])}, {}).decode()
    assert '<th scope="row" class="short" rowspan="2">a</th>' in text and text.count(">a</th>") == 1
    assert '<td class="number">–</td>' in text and f'<td class="long">{"z" * 40}</td>' in text
    assert "<details>" not in text and made().count("<details>") == 1
