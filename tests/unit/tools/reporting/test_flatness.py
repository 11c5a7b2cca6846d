"""The figure of the flatness study: both files, the same for the same data, with gaps where nothing was run."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tools.reporting import flatness
from tools.reporting.flatness import Panel, draw

LINES = {"head": [(97.0, 0.5), (96.5, 0.4), (None, None)], "tail": [(70.0, 2.0), (75.0, None), (None, None)]}
PANEL = Panel("airplane 500, dog 50", [0.1, 0.222, 0.375], [0.0, 0.1, 0.2], LINES)


def test_the_same_data_give_the_same_drawing(tmp_path: Path) -> None:
    paths = draw(tmp_path / "a", [PANEL, PANEL._replace(title="other")])
    assert [path.name for path in paths] == ["a.svg", "a.png"]
    draw(tmp_path / "b", [PANEL, PANEL._replace(title="other")])
    assert paths[0].read_bytes() == (tmp_path / "b.svg").read_bytes() and not plt.get_fignums()
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    draw(tmp_path / "c", [PANEL])
    assert (tmp_path / "c.svg").read_bytes() != paths[0].read_bytes()


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means against R, and a band of one standard deviation around those that have one."""
    seen = []
    monkeypatch.setattr(flatness, "save", lambda figure, stem: seen.append(figure) or [])
    draw(tmp_path / "a", [PANEL])
    (axis,) = seen[0].axes
    lines = {line.get_label(): line.get_xydata() for line in axis.get_lines()}
    assert set(lines) == {"head", "tail"} and lines["head"][:2].tolist() == [[0.1, 97], [0.222, 96.5]]
    band = axis.collections[0].get_datalim(axis.transData)
    assert (band.y0, band.y1) == (pytest.approx(96.1), pytest.approx(97.5))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.100\n0", "0.222\n0.1", "0.375\n0.2"]
    plt.close(seen[0])
