"""Writes the checkpoints of a run while it trains on.

Owns the thread and the copies that it writes from; checkpoint.py owns their form on disk. Invariant: at most one checkpoint is
being written, and its files hold the tensors as they were when `save` was called. The host holds one copy of everything saved
(network, optimizer, average), for as long as writing takes.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from train.networks.tensor_files import Tensors
from train.run.checkpoint import Keep, save


class Saver:
    """Checkpoints of the run in `folder`. An error of the thread is raised by the next call of `save` or `wait`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None

    @torch.no_grad()
    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        state: dict[str, Any],
        keep: Keep,
        before_writing: Callable[[], None],
    ) -> None:
        """Begin to write the checkpoint of `step`, once the one before is written; arguments as of `checkpoint.save`.

        before_writing: is called in the thread.
        """
        self.wait()
        copies = {
            group: {name: one.to("cpu", copy=True) for name, one in own.items()} for group, own in tensors.items()
        }

        def write() -> None:
            before_writing()
            try:
                save(self._folder, step, copies, state, keep)
            except OSError as error:
                raise UserError(
                    f"cannot save a checkpoint in {self._folder}: {error.strerror}; the earlier ones are intact: "
                    "make room and run the same command again"
                ) from error

        self._running = self._thread.submit(write)

    def wait(self) -> None:
        """Return when every checkpoint is written; raises the error of one that was not."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, without raising anything: there may be an error on its way already. May be called twice."""
        self._thread.shutdown()
