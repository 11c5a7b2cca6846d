"""How all figures look: colours that colour-blind readers tell apart, and two files for each figure, vector and pixels.

Owns palette, sizes, how names appear in pictures, and saving. Invariant: the same data give the same bytes of SVG (fixed hash
salt, no date).
"""

import functools
import io
from pathlib import Path

from pipelines.errors import UserError, printable
from pipelines.files import write_bytes_atomic

try:
    import matplotlib
except ImportError as error:
    raise UserError("pictures need matplotlib; type: pip install matplotlib") from error

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# Okabe and Ito's colours for the colour-blind (jfly.uni-koeln.de/color), without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GROUP_COLOURS = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}
GROUP_LETTERS = {"many": "M", "medium": "D", "few": "F"}  # beside the colours, for readers who see none
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
DPI = 130
_LONGEST_LINE = 300  # characters

plt.rcParams.update(
    {
        "svg.hashsalt": "dive",
        "svg.fonttype": "path",
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.fontsize": 9,
    }
)


@functools.cache
def _font(size: float) -> FT2Font:
    font = FT2Font(findfont("DejaVu Sans"))  # which comes with matplotlib
    font.set_size(size, 72)
    return font


def shown(text: str) -> str:
    """A name from outside as one line for a picture: what cannot be printed, or what the font lacks, is escaped."""
    known = _font(10).get_charmap()
    return "".join(char if ord(char) in known else ascii(char)[1:-1] for char in printable(text))


def fitting(text: str, width: float, size: float) -> str:
    """As much of a text of `size` points as fits into `width` points, with an ellipsis where it was cut."""
    if _width(text[:_LONGEST_LINE], size) <= width and len(text) <= _LONGEST_LINE:
        return text
    cut = text[:_LONGEST_LINE]
    while cut and _width(f"{cut}…", size) > width:
        cut = cut[:-1]
    return f"{cut.rstrip()}…"


def _width(text: str, size: float) -> float:
    font = _font(size)
    font.set_text(text, 0.0)
    return font.get_width_height()[0] / 64


def verbatim(figure: Figure) -> None:
    """Show every text as it is written: `$x$` in the name of a class is no formula. Logarithmic axes need formulas."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)


def svg(figure: Figure) -> bytes:
    """The figure as SVG text, without the date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.svg and STEM.png, close the figure, and give the paths back."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=DPI)
    paths = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    for path, data in zip(paths, (svg(figure), pixels.getvalue()), strict=True):
        write_bytes_atomic(path, data)
    plt.close(figure)
    return paths
