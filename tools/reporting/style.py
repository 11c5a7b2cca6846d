"""How all figures look: colours that colour-blind readers tell apart, and two files for each figure, vector and pixels.

Owns palette, sizes and saving. Invariant: the same data give the same bytes of SVG (fixed hash salt, no date).
"""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pipelines.files import write_bytes_atomic

# Okabe and Ito's colours for the colour-blind (jfly.uni-koeln.de/color), without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GROUP_COLOURS = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
DPI = 130

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
