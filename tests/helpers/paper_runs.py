"""What tests of tools/reproduce.py share: a small plan, and the files of runs that were never made."""

import json
from collections.abc import Sequence
from pathlib import Path

from tools.paper.datasets import CIFAR100_LT
from tools.paper.plan import Choice, Task

IF10, IF100 = CIFAR100_LT[10], CIFAR100_LT[100]
# Of crops of 8 pixels, as the network needs most of the time.
SMALL = ["model.name=resnet8", "optim.batch=32", "eval.batch=100", "data.recipe.crop=random_resized_crop"]
SMALL += ["data.recipe.size=8"]


def small_choice(
    archive: Path = Path("archive"), scale: float = 1.0, settings: tuple[str, ...] = tuple(SMALL)
) -> Choice:
    return Choice(archive, scale, settings, 1)


def write_run(
    out: Path,
    task: Task,
    top1: float,
    sessions: list[tuple[str, str | None]],
    speed: float | None = 500.0,
    classes: Sequence[float | None] = (),
) -> None:
    """The files of a finished run; sessions: times of 2026-11-01, the end None for a killed one."""
    folder = out / task.folder
    folder.mkdir(parents=True)
    test = {"top1": top1, "many": top1 + 0.1, "medium": top1, "few": None, "samples": 10000, "classes": [*classes]}
    result = {"method": task.role, "steps": 100, "test": test, "speed": {"images_per_s": speed, "peak_memory_gb": 1.5}}
    (folder / "result.json").write_text(json.dumps(result))
    stamp = "2026-11-01T{}+00:00"
    environment = {"device": "slow box", "torch": "2.13.0", "git_revision": "abc", "git_dirty": True}
    told = [
        {"started": stamp.format(a), "ended": b and stamp.format(b), "environment": environment} for a, b in sessions
    ]
    (folder / "run.json").write_text(
        json.dumps({"facts": {"train": "d", "backend": "ffcv", "precision": "bf16"}, "sessions": told})
    )
