"""The report as one HTML page: it fetches nothing, has no scripts, and follows the reader's light or dark mode.

Owns the page's structure and style sheet; sections are given. Invariants: every text of a run is escaped here, and only here;
nothing is wider than the window, except inside of a box that scrolls.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, groupby

from pipelines.errors import printable
from tools.reporting.inline import inline_png, inline_svg
from tools.reporting.section import DASH, Key, Picture, Section
from tools.reporting.style import COLOURS
from tools.reporting.tables import Table

LONG = 12  # rows; longer tables are folded
LEAST, MOST = 72, 104  # pixels for each inch of a wide figure, whose letters are of 8 to 11 points
SHORT = 30  # characters of a cell that stays on one line
_NUMBER = re.compile(r"[-−+]?[\d.,:]+(e-?\d+)?( ?[%×]| GB)?( ± [\d.,]+)?|" + DASH)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_DASHES = {"--": "6 3", "-.": "6 2 1.5 2", ":": "1.5 2.5"}

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2126; --soft: #59616b; --rule: #dde1e6; --shade: #00000024; --link: #0a5c9e;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #c2629a; --series-4: #d18f00; --series-5: #3f9fd8;
  --series-6: var(--ink);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e3e6ea; --soft: #9ba4ae; --rule: #2d333a; --shade: #00000080; --link: #74b9f0;
    --series-0: #4aa3e0; --series-1: #f0813a; --series-2: #2dbd92; --series-3: #de94bf; --series-4: #edb13f; --series-5: #86cbf3;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
}
.page { max-width: 78rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 2.5rem) 4rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
h1, h2, h3, summary, figcaption { font-weight: 650; }
h1 { font-size: clamp(1.5rem, 1.2rem + 1.4vw, 2.1rem); line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.4rem; }
h2 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -0.01em; margin: 0 0 0.6rem; }
p { margin: 0 0 0.9rem; max-width: 44rem; }
header p { color: var(--soft); }
section { padding-top: 2.2rem; margin-top: 2.2rem; border-top: 1px solid var(--rule); }
nav { margin-top: 1.4rem; font-size: 0.95rem; }
nav ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.15rem 1.2rem; }
nav a { display: block; padding: 0.25rem 0; }
.tables { display: flex; flex-wrap: wrap; gap: 1.4rem 2.4rem; margin: 1.2rem 0; align-items: flex-start; }
.table { max-width: 100%; min-width: 0; }
.scroll {
  overflow-x: auto; max-width: 100%;
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 0.9rem 100% no-repeat scroll;
}
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
h3, summary, figcaption { font-size: 0.875rem; line-height: 1.4; margin: 0 0 0.35rem; }
summary { cursor: pointer; color: var(--link); padding: 0.2rem 0; }
details[open] > summary { margin-bottom: 0.35rem; }
th, td { padding: 0.32rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
@media (max-width: 32rem) { th, td { padding-left: 0.45rem; padding-right: 0.45rem; } }
thead th { font-weight: 500; color: var(--soft); vertical-align: bottom; border-bottom-color: var(--soft); }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
.short { white-space: nowrap; }
.long { min-width: 14rem; max-width: 28rem; white-space: normal; overflow-wrap: anywhere; }
th[scope="row"] { position: sticky; left: 0; background: var(--paper); }
.figures {
  display: grid; gap: 1.6rem 2rem; margin: 1.2rem 0; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
}
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end; }
figure.wide { grid-column: 1 / -1; }
figcaption .legend { margin: 0.2rem 0 0; font-weight: 400; }
figure svg { display: block; width: 100%; height: auto; fill: var(--ink); stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
.legend {
  list-style: none; margin: 1.2rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem; font-size: 0.875rem;
}
.legend li { display: flex; align-items: center; gap: 0.5rem; min-width: 0; overflow-wrap: anywhere; }
.legend svg { flex: none; width: 1.6rem; height: 0.7rem; }
.notes { margin: 1rem 0 0; padding: 0; list-style: none; font-size: 0.9rem; color: var(--soft); max-width: 44rem; }
.notes li { margin: 0.35rem 0; }
@media (min-width: 68rem) {
  .page { display: grid; grid-template-columns: 11rem minmax(0, 1fr); column-gap: 3.5rem; }
  header, main { grid-column: 2; }
  nav { grid-column: 1; grid-row: 1 / span 2; margin-top: 0.5rem; }
  nav ol { position: sticky; top: 2rem; display: block; }
  nav a { padding: 0.2rem 0; }
}
@media print {
  nav { display: none; }
  figure, tr { break-inside: avoid; }
}
"""


def page(title: str, about: str, sections: Mapping[str, Section], left_out: Mapping[str, str]) -> bytes:
    """The whole page, UTF-8. about: a line below the title; sections and what is left out, and why, by name."""
    names = {name: section.title for name, section in sections.items()} | ({"left-out": "Left out"} if left_out else {})
    contents = "".join(f'<li><a href="#{name}">{_text(words)}</a></li>' for name, words in names.items())
    numbers = count(1)
    body = [_section(name, section, numbers) for name, section in sections.items()]
    if left_out:
        lines = [f"{name}: {why}" for name, why in left_out.items()]
        body.append(f'<section id="left-out"><h2>Left out</h2>{_notes(lines)}</section>')
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><div class="page"><header><h1>{_text(title)}</h1><p>{_text(about)}</p></header>\n'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n'
        + "\n".join(body)
        + "\n</main></div></body></html>\n"
    )
    return text.encode()


def _text(value: str) -> str:
    """Any text, as HTML; what does not print is escaped as in error messages."""
    return html.escape(printable(value))


def _section(name: str, section: Section, numbers: Iterable[int]) -> str:
    parts = [f'<section id="{name}"><h2>{_text(section.title)}</h2>']
    if section.intro:
        parts.append(f"<p>{_text(section.intro)}</p>")
    folded = [table for table in section.tables if len(table.rows) > LONG]
    short = [table for table in section.tables if len(table.rows) <= LONG]
    parts.append(_legend(section.legend) if section.figures else "")
    figures = (_figure(picture, f"f{number}") for picture, number in zip(section.figures, numbers, strict=False))
    parts.append(_group("figures", figures))
    parts.append(_group("tables", map(_table, short)))
    parts += map(_folded, folded)
    parts.append(_notes(section.notes))
    return "\n".join(filter(None, parts)) + "</section>"


def _group(kind: str, parts: Iterable[str]) -> str:
    inner = "\n".join(parts)
    return f'<div class="{kind}">\n{inner}</div>' if inner else ""


def _table(table: Table) -> str:
    return f'<div class="table"><h3>{_text(table.title)}</h3>{_scroll(table)}</div>'


def _folded(table: Table) -> str:
    return f"<details><summary>{_text(table.title)} ({len(table.rows):,} rows)</summary>{_scroll(table)}</details>"


def _scroll(table: Table) -> str:
    """The table, in a box that scrolls; columns of numbers are aligned right, equal cells at the left of a block are one."""
    kinds = [_kind([row[place] for row in table.rows], first=place == 0) for place in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{kind if len(name) <= SHORT else f"{kind} long"}">{_text(name)}</th>'
        for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows = []
    for name, block in groupby(table.rows, key=lambda row: row[0]):
        lines = list(block)
        span = f' rowspan="{len(lines)}"' if len(lines) > 1 else ""
        rows.append(f'<tr><th scope="row" class="{kinds[0]}"{span}>{_text(name)}</th>')
        rows.append("</tr>\n<tr>".join(_cells(line[1:], kinds[1:]) for line in lines))
        rows.append("</tr>\n")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )


def _kind(cells: Sequence[str], first: bool) -> str:
    """The class of a column: numbers, short texts, which are not broken into lines, or long ones."""
    if not first and cells and all(map(_NUMBER.fullmatch, cells)):
        return "number"
    return "short" if all(len(cell) <= SHORT for cell in cells) else "long"


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(f'<td class="{kind}">{_text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))


def _figure(picture: Picture, name: str) -> str:
    drawn = inline_png(picture.figure, picture.alt) if picture.pixels else inline_svg(picture.figure, picture.alt, name)
    if picture.wide:
        inches = picture.figure.get_size_inches()[0]
        sized = f'<div style="min-width:{LEAST * inches:.0f}px;max-width:{MOST * inches:.0f}px">{drawn}</div>'
        drawn = f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(picture.caption)}">{sized}</div>'
    kind = ' class="wide"' if picture.wide else ""
    caption = f"<figcaption>{_text(picture.caption)}{_legend(picture.legend)}</figcaption>"
    return f"<figure{kind}>{caption}{drawn}</figure>"


def _legend(keys: Sequence[Key]) -> str:
    items = "".join(f"<li>{_swatch(key)}{_text(key.label)}</li>" for key in keys)
    return f'<ul class="legend">{items}</ul>' if items else ""


def _swatch(key: Key) -> str:
    known = [colour.lower() for colour in COLOURS]
    colour = f"var(--series-{known.index(key.colour.lower())})" if key.colour.lower() in known else key.colour
    if key.line:
        dashes = f";stroke-dasharray:{_DASHES[key.line]}" if key.line in _DASHES else ""
        shape = f'<path d="M0 3.5H16" style="stroke:{colour};stroke-width:2{dashes}"/>'
    else:
        shape = f'<rect width="16" height="7" rx="1" style="fill:{colour}"/>'
    return f'<svg viewBox="0 0 16 7" aria-hidden="true">{shape}</svg>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""
