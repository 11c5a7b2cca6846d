"""A matplotlib figure as a part of an HTML page: SVG that takes font and colours from the page, or a PNG in a data URI.

Owns the translation. In the page's style sheet --ink is the colour of text, --paper that of the background and --series-N the
colours of style.COLOURS; each has one value for light and one for dark pages. Invariant: the result names no other file, and no
id of it occurs in another figure of the page.
"""

import base64
import html
import io
import re
import warnings

import matplotlib
from matplotlib.figure import Figure

from pipelines.errors import printable
from tools.reporting.style import COLOURS, DPI

_NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}
_FIXED = {"#000000": "var(--ink)", "#ffffff": "var(--paper)"}
_COLOURS = _FIXED | {
    colour.lower(): f"var(--series-{number})" for number, colour in enumerate(COLOURS) if colour.lower() not in _FIXED
}

_HEX = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(figure: Figure, alt: str, name: str) -> str:
    """An <svg> element with text as text; alt: its description; name: unique in the page, begins its ids."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text, not DejaVu
        figure.savefig(buffer, format="svg", metadata=_NOTHING, transparent=True)
    text = buffer.getvalue().decode()
    opening, _, inner = text[text.index("<svg") :].partition(">")
    (box,) = re.findall(r'viewBox="([^"]+)"', opening)
    inner = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", inner, flags=re.DOTALL
    )
    inner = re.sub(r"<[^>]*>", lambda tag: _HEX.sub(lambda found: _COLOURS.get(found[0], found[0]), tag[0]), inner)
    inner = inner.replace("xlink:href", "href")
    inner = _own_ids(inner, name)
    inner = re.sub(r"\n\s*", "\n", inner)
    return f'<svg viewBox="{box}" role="img" aria-label="{_attribute(alt)}">{inner}'


def _own_ids(text: str, name: str) -> str:
    """Ids that something refers to begin with `name`; the others are dropped."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)


def inline_png(figure: Figure, alt: str) -> str:
    """An <img> element, for figures with so many points that their SVG would be large; on white, with dark text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_attribute(alt)}" src="data:image/png;base64,{data}">'


def _attribute(text: str) -> str:
    return html.escape(printable(text))
