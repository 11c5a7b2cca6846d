"""A stand-in for the wandb package and its server; accelerate's own tracker runs on top of it."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

STAND_IN = """
class Error(Exception): ...
class Run:
    def __init__(self, starting_step):
        self.starting_step, self.logged, self.ended = starting_step, [], None
    def log(self, values, step):
        self.logged.append((step, values))
    def finish(self, exit_code):
        self.ended = exit_code
class config:
    update = staticmethod(lambda values, allow_val_change: sent.append(values))
starting_step, failure, runs, given, sent = 0, None, [], [], []
def init(**settings):
    if failure:
        raise Error(failure)
    given.append(settings)
    runs.append(Run(starting_step))
    return runs[-1]
"""


@contextmanager
def stand_in(folder: Path) -> Iterator[ModuleType]:
    """Within the block, `import wandb` gives the stand-in, which is written into `folder`."""
    (folder / "wandb.py").write_text(STAND_IN)
    real = sys.modules.pop("wandb", None)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("wandb")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("wandb", None)
        if real is not None:
            sys.modules["wandb"] = real
