"""The golden run: the committed losses of 20 steps of a DiVE student, which every later version of the code must reproduce.

Both networks go through the real entry scripts: records, views, loader, teacher, objective, schedule, optimizer. A change
that is meant to alter results (`[numbers]` in CHANGELOG.md) rewrites the list in the same commit:

    python tests/runs/golden_run.py             compare with the committed list
    python tests/runs/golden_run.py --write     write tests/fixtures/golden_run.json

Owns the setting and the file; tests/runs/test_golden_run.py says how closely it must be met.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from helpers.launch import run

from models import Outputs
from pipelines.files import write_json_atomic
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train import assembly
from train.objectives.methods import Given
from train.objectives.objective import Objective

FIXTURE = ROOT / "tests" / "fixtures" / "golden_run.json"
TOLERANCE = 1e-4  # relative; between kinds of CPU, and versions of torch
COUNTS = (40, 24, 16, 10, 6, 4)  # images per class

# Training amplifies rounding errors, more so at higher rates: at 0.02 other vector instructions changed a loss by 8 %, at this
# rate by at most 6e-6. The weight decay is strong enough to have an effect at such a rate.
CONFIG = """
data:
  train: train.beton
  backend: reference
  recipe: {crop: random_resized_crop, size: 16, flip: true, jitter: [0.4, 0.4, 0.4]}
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
model:
  name: resnet20
optim:
  batch: 32
  lr: 1e-4
  nesterov: true
  weight_decay: 0.5
  no_decay: [bn]
schedule:
  kind: cosine
  epochs: null
  steps: 20
  warmup_steps: 3
  per: step
distill:
  method: dive
  tau: 3
  p: 0.5
"""


def write_images(path: Path) -> None:
    """Records of 100 noisy pictures, 40 x 32 pixels, raw: no decoder influences the numbers."""
    rng = np.random.RandomState(0)
    names = [f"class_{c}" for c in range(len(COUNTS))]
    looks = rng.randint(0, 256, (len(COUNTS), 32, 40, 3))
    samples = [
        Sample(f"{names[c]}/{i}", c, (looks[c] * 0.5 + rng.randint(0, 128, (32, 40, 3))).astype(np.uint8))
        for c, count in enumerate(COUNTS)
        for i in range(count)
    ]
    write_records(path, samples, names, kind="golden run")


def prepare(folder: Path) -> None:
    """Make records, settings and a finished teacher in an empty folder."""
    write_images(folder / "train.beton")
    (folder / "golden.yaml").write_text(CONFIG)
    run("teacher", folder / "golden.yaml", "run=teacher", "distill.method=bsce", "data.seed=1", cwd=folder)


def losses(folder: Path, name: str = "student", *overrides: str) -> list[float]:
    """The loss of each step of a student in a prepared folder; overrides: settings other than the golden run's."""
    found: list[float] = []

    class Recording(Objective):
        def loss(self, outputs: Outputs, given: Given) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss, parts = super().loss(outputs, given)
            found.append(float(loss.detach()))
            return loss, parts

    with mock.patch.object(assembly, "Objective", Recording):
        run("distill", folder / "golden.yaml", f"run={name}", "distill.teacher=teacher", *overrides, cwd=folder)
    return found


def machine() -> dict[str, Any]:
    """What the last bits of a loss depend on."""
    wanted = ("model name", "cpu family", "model", "stepping")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if sys.platform == "linux" else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": ", ".join([*(f"{name}: {facts[name]}" for name in wanted if name in facts), instructions]),
        "torch": torch.__version__,
        "threads": 1,  # tests/helpers/launch.py
    }


def compare(golden: dict[str, Any], found: list[float]) -> str | None:
    """What is wrong with the losses found here; None when they match the list.

    They must be equal on the CPU, torch version and thread count that wrote the list, and within TOLERANCE elsewhere.
    """
    expected, exact = golden["losses"], golden["machine"] == machine()
    if len(found) != len(expected):
        return f"{len(found)} losses, not {len(expected)}"
    for step, (here, there) in enumerate(zip(found, expected, strict=True)):
        apart = abs(here / there - 1)
        if not apart <= (0 if exact else TOLERANCE):  # not >, which NaN would pass
            where = "to the last bit on this machine" if exact else f"to {TOLERANCE:g}"
            return f"the loss of step {step} is {here!r}, not {there!r}: {apart:.1e} apart, wanted {where}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the list anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = losses(Path(folder))
    if options.write:
        how = "python tests/runs/golden_run.py --write"
        write_json_atomic(FIXTURE, {"written by": how, "machine": machine(), "losses": found})
        return
    if wrong := compare(json.loads(FIXTURE.read_text()), found):
        raise SystemExit(
            f"error: {wrong}; if intended: python tests/runs/golden_run.py --write, and [numbers] in CHANGELOG.md"
        )
    print("the golden run is as it was")


if __name__ == "__main__":
    main()
