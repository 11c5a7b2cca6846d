"""An entry script, several of whose processes differ: tests/runs/test_unlike_ranks.py launches it.

    python -m torch.distributed.run --nproc_per_node 2 tests/helpers/unlike_ranks.py HOW SCRIPT ARGUMENT [ARGUMENT ...]

HOW: more=KEY=VALUE  rank 1 is given one more argument
     there=FOLDER    rank 1 works in this folder
     slow_disk=S     every fsync of rank 0 takes S seconds more
     slow=S          rank 1 takes S seconds more for each batch of a teacher; collectives give up after 4 s
     late=FILE=COPY  an image file is copied when rank 0 has listed the folder, before rank 1 does
"""

import importlib
import os
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch
from torch import distributed

from pipelines import folders
from train.objectives.targets import Teacher
from train.run.exits import guard


def slow_disk(seconds: float) -> None:
    real = os.fsync

    def fsync(file: Any) -> None:
        time.sleep(seconds)
        real(file)

    os.fsync = fsync


def impatient() -> None:
    """As torch's limits of 10 and 30 minutes, which have no setting here."""
    real = distributed.init_process_group

    def init_process_group(*given: Any, **named: Any) -> None:
        real(*given, **named | {"timeout": timedelta(seconds=4)})

    distributed.init_process_group = init_process_group


def slow_teacher(seconds: float) -> None:
    real = Teacher.__call__

    def call(self: Teacher, *given: Any) -> torch.Tensor:
        time.sleep(seconds)
        return real(self, *given)

    Teacher.__call__ = call  # type: ignore[method-assign]


def late(image: str, copy: str) -> None:
    """Rank 0 lists the folder as it is, rank 1 with one more file."""
    from train.evaluation import unlabelled

    def files(*given: Any) -> Any:
        while os.environ["RANK"] == "1" and not Path(copy).exists():
            time.sleep(0.05)
        found = list(folders.folder_files(*given))
        shutil.copy(image, copy)
        return found

    unlabelled.folder_files = files


def main(argv: list[str]) -> int | None:
    how, script, *arguments = argv
    kind, _, value = how.partition("=")
    second = os.environ["RANK"] == "1"
    if kind == "more":
        arguments += [value] * second
    elif kind == "there" and second:
        os.chdir(value)
    elif kind == "slow_disk" and not second:
        slow_disk(float(value))
    elif kind == "slow":
        impatient()
        if second:
            slow_teacher(float(value))
    elif kind == "late":
        late(*value.split("="))
    sys.argv = [str(ROOT / "train" / f"{script}.py"), *arguments]
    return importlib.import_module(f"train.{script}").main(arguments)


if __name__ == "__main__":
    sys.exit(guard(main))
