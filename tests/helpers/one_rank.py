"""A group of one process, for what torch does only among several."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_kept = []  # never freed: a network that is let go last would join gloo's threads, which may need the interpreter's lock it holds


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """torch.distributed is initialised within the block."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    _kept.append(torch.distributed.group.WORLD)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
