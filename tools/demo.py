"""The demo: every step of DiVE on generated images, run with the same commands a user types, and what came out.

Run it as `bash tools/demo.sh`. Owns the list of steps, the table and the picture; every figure is read from the files that
the steps wrote. Interrupted, it goes on where it stopped; --fresh starts over.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from train.run.endings import script

# run's name, its title, how it is started
RUNS = [
    ("ce", "cross-entropy", ["train/teacher.py", "configs/demo/ce.yaml"]),
    ("bsce", "balanced softmax (teacher)", ["train/teacher.py", "configs/demo/bsce.yaml"]),
    ("dive", "DiVE", ["train/distill.py", "configs/demo/dive.yaml"]),
    ("dive_matched", "DiVE, matched temperatures", ["train/distill.py", "configs/demo/dive_matched.yaml"]),
]
GROUPS = ("top1", "many", "medium", "few")


def step(console: Console, title: str, command: list[str]) -> None:
    """Say what is run, run it, stop the demo if it fails."""
    console.rule(f"[bold]{title}")
    console.print(f"python {shlex.join(command)}", style="dim", markup=False, highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"error: the demo stopped: `python {shlex.join(command)}` ended with {done.returncode}")


def seconds(run: Path) -> float:
    """Training time of a run over all its sessions, from its run.json."""
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    times = [(s["started"], s["ended"]) for s in sessions if s["ended"]]
    return sum((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in times)


def show_table(
    console: Console, results: dict[str, dict[str, Any]], spent: dict[str, float], cache_seconds: float
) -> None:
    """Accuracies in percent on the balanced test set, overall and by shot group."""
    table = Table(title="top-1 accuracy on the balanced test set, %")
    for column in ("run", "all", "many", "medium", "few", "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, title, _ in RUNS:
        figures = results[name]["test"]
        shown = ["-" if figures[g] is None else f"{100 * figures[g]:.1f}" for g in GROUPS]
        table.add_row(title, *shown, f"{spent[name]:.0f}")
    table.add_row("the cache, once for both", "", "", "", "", f"{cache_seconds:.0f}")
    console.print(table)


def draw(path: Path, results: dict[str, dict[str, Any]], counts: np.ndarray) -> None:
    """Per-class accuracy against class frequency, frequent classes on the left."""
    order = np.argsort(-counts, kind="stable")
    x = np.arange(len(counts))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.5), height_ratios=[3, 1], sharex=True, layout="constrained"
    )
    for name, title, _ in RUNS:
        accuracy = 100 * np.array(results[name]["test"]["classes"], float)[order]
        # A running mean over three classes: 50 test images a class leave single classes noisy.
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


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="delete the results of an earlier demo first")
    options = parser.parse_args(argv)
    folder = ROOT / "demo"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    console = Console()
    start = time.perf_counter()
    if not (folder / "data" / "test.beton").exists():
        step(console, "1. images", ["tools/convert.py", "demo", "--out", "demo/data", "--force"])
    for number, (name, title, command) in enumerate(RUNS[:2], 2):
        step(console, f"{number}. {title}", [*command, f"run=./demo/{name}"])
    # The configuration of one student serves: the other has the same recipe, data.seed and views.
    cache = ["train/cache_logits.py", "configs/demo/dive.yaml", "distill.teacher=./demo/bsce", "cache.dir=demo/caches"]
    step(console, "4. the teacher's logits, once", cache)
    for number, (name, title, command) in enumerate(RUNS[2:], 5):
        step(console, f"{number}. {title}", [*command, f"run=./demo/{name}", "cache.paths=[demo/caches]"])

    results = {name: json.loads((folder / name / "result.json").read_text()) for name, _, _ in RUNS}
    spent = {name: seconds(folder / name) for name, _, _ in RUNS}
    (made,) = (folder / "caches").glob("*/made.json")
    counts = np.array(json.loads((folder / "bsce" / "model.json").read_text())["train_counts"])
    console.rule("[bold]results")
    show_table(console, results, spent, sum(one["seconds"] for one in json.loads(made.read_text())["sessions"]))
    draw(folder / "accuracy.png", results, counts)
    console.print(f"picture: demo/accuracy.png; everything else is in demo/ ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    sys.exit(script(main))
