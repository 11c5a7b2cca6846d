"""The demo: runs every step of DiVE on generated images, with the same commands a user types, and shows the results.

Run it as `bash tools/demo.sh`. Owns the list of steps; every figure is read from the files that the steps wrote. After an
interruption it continues where it stopped; --fresh starts over.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from rich.console import Console

from tools.reporting.accuracy import draw, seconds, show_table
from train.run.endings import exit_code, script

# the run's name, its title, the command that starts it
RUNS = [
    ("ce", "cross-entropy", ["train/teacher.py", "configs/demo/ce.yaml"]),
    ("bsce", "balanced softmax (teacher)", ["train/teacher.py", "configs/demo/bsce.yaml"]),
    ("dive", "DiVE", ["train/distill.py", "configs/demo/dive.yaml"]),
    ("dive_matched", "DiVE, matched temperatures", ["train/distill.py", "configs/demo/dive_matched.yaml"]),
]


def step(console: Console, title: str, command: list[str]) -> None:
    """Print a command, run it, and stop the demo if it fails."""
    console.rule(f"[bold]{title}")
    console.print(f"python {shlex.join(command)}", style="dim", markup=False, highlight=False, soft_wrap=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    asked = False
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the step, too, which saves before it ends
            asked = True
    if asked:
        raise KeyboardInterrupt
    if process.returncode:
        raise SystemExit(f"error: the demo stopped: `python {shlex.join(command)}` ended with {process.returncode}")


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
    # One student's configuration is enough: the other has the same recipe, data.seed and views.
    cache = ["train/cache_logits.py", "configs/demo/dive.yaml", "distill.teacher=./demo/bsce", "cache.dir=demo/caches"]
    step(console, "4. the teacher's logits, once", cache)
    for number, (name, title, command) in enumerate(RUNS[2:], 5):
        step(console, f"{number}. {title}", [*command, f"run=./demo/{name}", "cache.paths=[demo/caches]"])

    titles = {name: title for name, title, _ in RUNS}
    results = {name: json.loads((folder / name / "result.json").read_text()) for name, _, _ in RUNS}
    spent = {name: seconds(folder / name) for name, _, _ in RUNS}
    (made,) = (folder / "caches").glob("*/made.json")
    counts = np.array(json.loads((folder / "bsce" / "model.json").read_text())["train_counts"])
    console.rule("[bold]results")
    show_table(console, titles, results, spent, sum(one["seconds"] for one in json.loads(made.read_text())["sessions"]))
    draw(folder / "accuracy.png", titles, results, counts)
    console.print(f"picture: demo/accuracy.png; everything else is in demo/ ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    interrupted = "interrupted; `bash tools/demo.sh` goes on"
    sys.exit(script(lambda argv: exit_code(lambda: main(argv), interrupted)))
