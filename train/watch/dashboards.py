"""TensorBoard and Weights & Biases, through accelerate's trackers: copies of the figures in metrics.jsonl.

    RUN/tensorboard/   event files, one per session
    RUN/wandb/         W&B's own files, one folder per session
    RUN/wandb.json     the run's id at W&B

Owns these, and how a resumed run continues in them; tracking.py decides which figures there are. Invariant: no dashboard shows
a step twice, whatever was logged after the checkpoint that a run was resumed from.
"""

import importlib.util
import secrets
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.tracking import TensorBoardTracker, WandBTracker

from pipelines.errors import UserError
from pipelines.files import read_json, write_json_atomic

Figures = dict[str, float]


def require_packages(names: list[str]) -> None:
    """UserError for a dashboard whose package (of the same name) is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"track.trackers={names}: the package {name} is not installed; type pip install {name} "
                "(or pip install -e '.[track]' for both), or leave it out"
            )


class Dashboards:
    """The dashboards in `names`, for the run in `folder`; none on a rank other than the main one.

    project: that of W&B. settings: those of the run, by dotted key. Used as a context manager, so that a failed run is shown
    as such.
    """

    def __init__(self, names: list[str], project: str, folder: Path, settings: dict[str, Any], is_main: bool):
        self._names = names if is_main else []
        self._project, self._folder, self._settings = project, folder, settings
        self._tensorboard: TensorBoardTracker | None = None
        self._wandb: WandBTracker | None = None
        self._plotted: dict[str, int] = {}  # the last step of each figure

    def start(self, resumed_at: int | None, history: Iterable[tuple[int, Figures]]) -> None:
        """Open them after step `resumed_at` (None: at the beginning); history: what was logged up to that step."""
        if "tensorboard" in self._names:
            self._start_tensorboard(resumed_at)
        if "wandb" in self._names:
            self._start_wandb(resumed_at)
            # Log again what a kill took from W&B's buffers; offline this is everything, so that the newest files are complete.
            for step, figures in history:
                self._to_wandb(step, figures)

    def _start_tensorboard(self, resumed_at: int | None) -> None:
        # TensorBoard drops what it has for steps from purge_step on.
        purge_step = 0 if resumed_at is None else resumed_at + 1
        board = TensorBoardTracker("tensorboard", self._folder, purge_step=purge_step)
        board.start()
        self._tensorboard = board
        lines = "".join(f"    {key}: {value}\n" for key, value in self._settings.items())  # indented: code, in Markdown
        board.log({"settings": lines}, step=resumed_at or 0)

    def _start_wandb(self, resumed_at: int | None) -> None:
        import wandb

        path = self._folder / "wandb.json"
        if resumed_at is None or not path.exists():
            # W&B cannot go back to an earlier step: figures from before the first checkpoint stay there as a separate run.
            write_json_atomic(path, {"id": secrets.token_hex(8)})
        run_id, name = read_json(path)["id"], self._folder.name
        board = WandBTracker(self._project, id=run_id, resume="allow", name=name, dir=str(self._folder))
        try:
            board.start()
        except wandb.Error as error:
            words = " ".join(str(error).split())
            raise UserError(
                f"track.trackers: wandb does not start: {words}; type wandb login, or WANDB_MODE=offline before the command"
            ) from error
        self._wandb = board
        board.store_init_configuration(self._settings)

    def _to_wandb(self, step: int, figures: Figures) -> None:
        assert self._wandb is not None
        if step >= self._wandb.tracker.starting_step:  # it has the earlier ones from the session that was killed
            self._wandb.log(figures, step=step)

    def log(self, step: int, figures: Figures) -> None:
        """Log figures after step `step`, which never decreases; the names are those of metrics.jsonl.

        A dashboard that fails is told of once and left out from then on: the training, and metrics.jsonl, go on.
        """
        if self._tensorboard is not None:
            try:
                self._to_tensorboard(step, figures)
            except Exception as error:
                self._tensorboard = None
                _warn("tensorboard", error)
        if self._wandb is not None:
            try:
                self._to_wandb(step, figures)
            except Exception as error:
                self._wandb = None
                _warn("wandb", error)

    def _to_tensorboard(self, step: int, figures: Figures) -> None:
        assert self._tensorboard is not None
        # Where two lines of one step have the same figure, such as the epoch, TensorBoard would plot it twice.
        new = {name: value for name, value in figures.items() if self._plotted.get(name) != step}
        self._tensorboard.log(new, step=step)  # and flush
        self._plotted |= dict.fromkeys(new, step)

    def __enter__(self) -> "Dashboards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        boards: dict[str, Callable[[], Any]] = {}
        if self._tensorboard is not None:
            boards["tensorboard"] = self._tensorboard.finish
        if self._wandb is not None:
            boards["wandb"] = partial(self._wandb.tracker.finish, exit_code=1 if error else 0)
        self._tensorboard = self._wandb = None
        for name, finish in boards.items():
            try:
                finish()
            except Exception as failure:
                _warn(name, failure)


def _warn(name: str, error: Exception) -> None:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    line = f"warning: {name} failed and is left out from here on: {words}; metrics.jsonl has everything"
    print(line, file=sys.stderr, flush=True)
