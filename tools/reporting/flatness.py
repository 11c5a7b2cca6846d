"""The figure of the flatness study: accuracy of head and tail against the ratio of virtual examples, a panel for each pair."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from tools.reporting.style import COLOURS, LINES, MARKERS, save


class Panel(NamedTuple):
    """ratios: R of each point, in rising order; epsilons: of the same; lines: {name: (mean, standard deviation) of each point}.

    A mean that is None leaves a gap, a standard deviation that is None has no band.
    """

    title: str
    ratios: Sequence[float]
    epsilons: Sequence[float]
    lines: Mapping[str, Sequence[tuple[float | None, float | None]]]


def draw(stem: Path, panels: Sequence[Panel]) -> list[Path]:
    """Write STEM.svg and STEM.png: lines of the means, with a band of one standard deviation to each side."""
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 4 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        for number, (name, values) in enumerate(panel.lines.items()):
            mean, std = (np.array([value[i] for value in values], float) for i in (0, 1))
            look = {"marker": MARKERS[number], "linestyle": LINES[number], "color": COLOURS[number]}
            axis.plot(panel.ratios, mean, label=name, **look)
            band = np.nan_to_num(std)
            axis.fill_between(panel.ratios, mean - band, mean + band, color=COLOURS[number], alpha=0.2, linewidth=0)
        ticks = [f"{ratio:.3f}\n{eps:g}" for ratio, eps in zip(panel.ratios, panel.epsilons, strict=True)]
        axis.set_xticks(panel.ratios, ticks, fontsize=8)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel("R, and eps below it")
    axes[0][0].set_ylabel("test accuracy, %\n(mean over seeds, band: standard deviation)")
    axes[0][0].legend()
    return save(figure, stem)
