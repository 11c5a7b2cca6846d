"""Tracking of a run while it trains: metrics.jsonl for programs, a progress bar or plain lines for people, dashboards if asked.

Owns the clock of the run: images/s and the share of time spent waiting for data, with the first step (compilation)
apart and evaluations left out. Never touches a device tensor: the loop passes plain numbers, at times when it has
them anyway. Invariant: metrics.jsonl of a run that was interrupted and resumed has the steps and keys of an
undisturbed one.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from pipelines.files import append, write_bytes_atomic
from train.watch.dashboards import Dashboards
from train.watch.progress import Bar
from train.watch.text import percent, short_clock

PLAIN_SECONDS = 10.0  # between two plain lines; the last line of an epoch may come after PLAIN_EPOCH_SECONDS
PLAIN_EPOCH_SECONDS = 1.0
_BAR_SECONDS = 0.2  # between two updates of the bar
_QUIET = (
    "top5",
    "balanced_accuracy",
    "nll",
    "ece",
)  # figures of an evaluation that its line leaves out, to stay one line
_LONG_LIST = 8  # figures per line of the final block; a longer list is only counted


@dataclass(kw_only=True)
class TrackConfig:
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """dashboards that also show the figures of metrics.jsonl: tensorboard (files in RUN/tensorboard), wandb (Weights & Biases;
    WANDB_MODE=offline in front of the command keeps its files in RUN/wandb)"""
    project: str = "dive-trainer"
    "the project that wandb files the run under"
    ceiling: Literal["auto", "on", "off"] = "auto"
    """at the start of a session, time the training step on one batch that stays on the device (30 steps, which are undone), and
    show the speed of the training as a share of that; auto = only on a GPU"""
    show_batch: bool = False
    "write RUN/first_batch.png at step 0: images as the network sees them, with class, key and view"

    def __post_init__(self) -> None:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"track.trackers={self.trackers}: each at most once")
        if not self.project.strip():
            raise ValueError("track.project: must not be empty")


class Tracker:
    """Figures of one training session; on a rank other than the main one every method does nothing.

    A step counts once it is done: `step(n)` and `log(n)` are called after n optimizer steps. resumed_at: the step
    of the checkpoint that the session resumes from, None when it starts from the beginning. Everything about
    step n must be logged before the checkpoint of step n is saved. device: its memory is reported. dashboards:
    started here, closed by the caller.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        is_main: bool,
        total_steps: int,
        steps_per_epoch: int,
        resumed_at: int | None = None,
        device: torch.device | None = None,
        dashboards: Dashboards | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._main = is_main
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._device = device or torch.device("cpu")
        self._console = console or Console()
        self._clock = clock
        self._dashboards = dashboards
        self._ceiling: float | None = None
        self._step = self._first = resumed_at or 0
        self._first_step_s: float | None = None
        self._session = _Interval(clock())
        self._since_log = _Interval(clock())
        self._evaluating = False
        self._printed_at, self._printed_epoch = -math.inf, 0
        self._bar_at = -math.inf
        self._file: FileIO | None = None
        self._bar: Bar | None = None
        if is_main:
            kept = _drop_after(run_dir / "metrics.jsonl", resumed_at)
            if dashboards is not None:
                dashboards.start(resumed_at, ((line["step"], numbers(line)) for line in map(json.loads, kept)))
            self._file = open(run_dir / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
            self._bar = Bar(total_steps, self._console, done=self._step, after="first step ...")

    # ---- the clock ----

    def data_wait(self, seconds: float) -> None:
        """Add the time that the loop waited because no batch was ready."""
        if not self._evaluating:
            for interval in (self._session, self._since_log):
                interval.waited += seconds

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context for evaluations and saves: their time counts neither as training nor as waiting."""
        start, self._evaluating = self._clock(), True
        try:
            yield
        finally:
            self._evaluating = False
            for interval in (self._session, self._since_log):
                interval.left_out += self._clock() - start

    def step(self, step: int, batch_size: int) -> None:
        """Count optimizer step number `step` (from 1) as done; batch_size: its images over all processes.

        The session's first step compiles and fills the pipeline: it is timed by itself, with the measurement of the ceiling that
        comes before it, and left out of all rates.
        """
        now = self._clock()
        self._step = step
        if self._first_step_s is None:
            self._first, self._first_step_s = step, self._session.busy(now) - self._session.waited
            self._session, self._since_log = _Interval(now), _Interval(now)
            if self._bar is not None:
                self._bar.update(step, f"first step {self._first_step_s:.1f} s")
        else:
            for interval in (self._session, self._since_log):
                interval.images += batch_size
        if self._bar is not None and now - self._bar_at >= _BAR_SECONDS:
            self._bar_at = now
            self._bar.update(step)

    def ceiling(self, images_per_s: float | None) -> None:
        """Set the speed that the training could reach (ceiling.py); None: it was not measured."""
        self._ceiling = images_per_s
        if images_per_s is not None:
            self.say(f"ceiling: {images_per_s:,.0f} images/s, the training step on one batch that stays on the device")

    def speed(self) -> dict[str, float | None]:
        """The session's rates, for the result; None where there was nothing to measure."""
        return self._rates(self._session)

    def _rates(self, interval: "_Interval") -> dict[str, float | None]:
        busy = interval.busy(self._clock())
        measured = interval.images > 0 and busy > 0
        images_per_s = interval.images / busy if measured else None
        return {
            "images_per_s": images_per_s,
            "ceiling_images_per_s": self._ceiling,
            "of_ceiling": images_per_s / self._ceiling if images_per_s and self._ceiling else None,
            "data_wait": interval.waited / busy if measured else None,
            "peak_memory_gb": peak_memory(self._device) / 1e9,
            "first_step_s": self._first_step_s,
        }

    def _seconds_left(self) -> float | None:
        """Estimate from the session's pace so far, evaluations included."""
        done = self._step - self._first
        if done == 0:
            return None
        return (self._clock() - self._session.start) / done * (self._total_steps - self._step)

    # ---- figures ----

    def log(self, step: int, **values: float | None) -> None:
        """Log figures of the training steps since the last `log` (loss, its parts, lr), with their speed."""
        if not self._main:
            return
        rates = self._rates(self._since_log)
        self._since_log = _Interval(self._clock())
        self._write(step, {**values, **rates})
        figures = f"{_figures(values)}  [{self._pace(rates)}]"
        if self._bar is not None and self._bar.shown:
            self._bar.update(step, figures)
        elif self._line_due(step):
            self.say(f"step {step}/{self._total_steps}  epoch {step / self._steps_per_epoch:.1f}  {figures}")

    def event(self, step: int, **values: Any) -> None:
        """Log figures that are not those of training steps, e.g. of an evaluation: written, and the main ones always shown."""
        if self._main:
            self._write(step, values)
            self.say(f"step {step}/{self._total_steps}  {_figures(_spoken(values))}")

    def _write(self, step: int, values: dict[str, Any]) -> None:
        assert self._file is not None
        line = _finite({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values})
        append(self._file, (json.dumps(line, allow_nan=False) + "\n").encode())
        if self._dashboards is not None:
            self._dashboards.log(step, numbers(line))

    def _pace(self, rates: dict[str, float | None]) -> str:
        left = self._seconds_left()
        shown = []
        if rates["images_per_s"] is not None and rates["data_wait"] is not None:
            of_ceiling = (
                f" ({percent(rates['of_ceiling'], 0)} of the ceiling)" if rates["of_ceiling"] is not None else ""
            )
            shown.append(f"{rates['images_per_s']:,.0f} images/s{of_ceiling}")
            shown.append(f"waiting {percent(rates['data_wait'], 0)}")
        elif self._first_step_s is not None:
            shown.append(f"first step {self._first_step_s:.1f} s")
        shown.append(f"{rates['peak_memory_gb']:.1f} GB")
        if left is not None:
            shown.append(f"{short_clock(left)} left")
        return ", ".join(shown)

    def _line_due(self, step: int) -> bool:
        now, epoch = self._clock(), step // self._steps_per_epoch
        since = now - self._printed_at
        new_epoch = epoch > self._printed_epoch and since >= PLAIN_EPOCH_SECONDS
        if since < PLAIN_SECONDS and not new_epoch and step < self._total_steps:
            return False
        self._printed_at, self._printed_epoch = now, epoch
        return True

    # ---- the screen ----

    def say(self, text: str) -> None:
        """Print a line for people (above the bar)."""
        if self._main:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def sync(self) -> None:
        """Flush the lines written so far to the disk, so that a checkpoint survives a power failure."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the bar and close the file; may be called twice."""
        if self._bar is not None:
            self._bar.update(self._step)
            self._bar.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Interval:
    """Time and images since `start`; seconds."""

    def __init__(self, start: float):
        self.start = start
        self.images = 0
        self.waited = 0.0
        self.left_out = 0.0

    def busy(self, now: float) -> float:
        """Seconds of training, waiting for data included, evaluations left out."""
        return now - self.start - self.left_out


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch had allocated on a GPU, or that this process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def show_result(figures: dict[str, Any], console: Console | None = None) -> None:
    """The final block: a table on a terminal, `name: value` lines elsewhere."""
    console = console or Console()
    rows = [(name, _value(name, value)) for name, value in _flat(figures)]
    if not console.is_terminal:
        for name, value in [("result", "")] + [(f"  {name}", value) for name, value in rows]:
            console.print(f"{name}: {value}".rstrip(), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title="result", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, markup=False)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The figures in a line of metrics.jsonl or a result that a dashboard can plot: {"test.top1": 0.4}; `step` is the axis."""
    flat = {name: value for name, value in _flat(values) if isinstance(value, (int, float)) and name != "step"}
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def _figures(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_value(name, value)}" for name, value in _flat(values))


def _spoken(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flat(values) if name.rpartition(".")[2] not in _QUIET}


def _value(name: str, value: Any) -> str:
    if isinstance(value, list) and len(value) > _LONG_LIST:
        return f"({len(value)} values)"
    if isinstance(value, float):
        return f"{value:,.0f}" if name.endswith("images_per_s") else f"{value:.4g}"
    return "-" if value is None else str(value)


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_after(path: Path, step: int | None) -> list[bytes]:
    """Remove lines of steps that will be repeated (all if `step` is None), and the partial line of a crash; return the others."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if step is not None and _step_of(line) <= step]
    if kept != lines:
        write_bytes_atomic(path, b"".join(kept))
    return kept


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for a partial or damaged one."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError, IndexError):
        return math.inf
    return step if isinstance(step, int) else math.inf
