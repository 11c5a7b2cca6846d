"""Accuracy of several runs side by side: a table by shot group, a picture of class accuracy against class frequency.

titles: the titles of the runs by name, in order; results: their result.json by name.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

GROUPS = ("top1", "many", "medium", "few")


def seconds(run: Path) -> float:
    """Training time of a run over all its sessions, from its run.json."""
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    times = [(s["started"], s["ended"]) for s in sessions if s["ended"]]
    return sum((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in times)


def show_table(
    console: Console,
    titles: dict[str, str],
    results: dict[str, dict[str, Any]],
    spent: dict[str, float],
    cache_seconds: float,
) -> None:
    """A table of accuracies in percent on the balanced test set, overall and by shot group."""
    table = Table(title="top-1 accuracy on the balanced test set, %")
    for column in ("run", "all", "many", "medium", "few", "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, title in titles.items():
        figures = results[name]["test"]
        shown = ["-" if figures[g] is None else f"{100 * figures[g]:.1f}" for g in GROUPS]
        table.add_row(title, *shown, f"{spent[name]:.0f}")
    table.add_row("the cache, once for both", "", "", "", "", f"{cache_seconds:.0f}")
    console.print(table)


def draw(path: Path, titles: dict[str, str], results: dict[str, dict[str, Any]], counts: np.ndarray) -> None:
    """Draw per-class accuracy against class frequency, frequent classes on the left."""
    order = np.argsort(-counts, kind="stable")
    x = np.arange(len(counts))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.5), height_ratios=[3, 1], sharex=True, layout="constrained"
    )
    for name, title in titles.items():
        accuracy = 100 * np.array(results[name]["test"]["classes"], float)[order]
        # A running mean over three classes: with 50 test images per class, single classes are noisy.
        smooth = np.convolve(np.pad(accuracy, 1, mode="edge"), np.ones(3) / 3, mode="valid")
        (line,) = top.plot(x, smooth, label=f"{title}: {100 * results[name]['test']['top1']:.1f} %", linewidth=2)
        top.scatter(x, accuracy, s=14, color=line.get_color(), alpha=0.45, linewidths=0)
    top.set_ylabel("test accuracy, % (points: classes,\nlines: mean of three neighbours)")
    top.legend(title="all classes", fontsize=9, loc="lower left")
    top.grid(alpha=0.3)
    bottom.bar(x, counts[order], color="0.6")
    bottom.set_yscale("log")
    bottom.set_ylabel("training images")
    bottom.set_xlabel("classes, from frequent to rare")
    bottom.set_xticks([])
    figure.savefig(path, dpi=130)
    plt.close(figure)
