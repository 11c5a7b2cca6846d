"""A trace of a few training steps, by torch.profiler, for ui.perfetto.dev or chrome://tracing.

Owns the beginning and end of recording, and RUN/trace_FIRST-LAST.json; the loop only takes its steps from `traced`. Invariant: a
visible trace is complete and holds the steps in its name, and a run without a trace has no cost.
"""

import errno
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import profile, record_function

from pipelines.files import temporary_path
from train.watch.tracking import Tracker

_MOST_STEPS = 1000  # some megabytes each


@dataclass(kw_only=True)
class ProfileConfig:
    start: int = 10
    "first step of the trace, counted from 0 over the whole run; the first step of a session compiles"
    steps: int = 0
    "steps to record, into RUN/trace_FIRST-LAST.json, on the main process; 0 = none"

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"profile.start={self.start}: must be at least 0")
        if not 0 <= self.steps <= _MOST_STEPS:
            raise ValueError(
                f"profile.steps={self.steps}: must be from 0 to {_MOST_STEPS}: a trace is kept in memory until it ends"
            )


def traced(
    steps: range, config: ProfileConfig, folder: Path, tracker: Tracker, is_main: bool
) -> Generator[int, None, None]:
    """Yield `steps` one by one, and record what the caller does in those that `config` names.

    Steps of `config` outside `steps` are not recorded: they are over, or do not come. Closing early drops the recording.
    """
    wanted = range(max(config.start, steps.start), min(config.start + config.steps, steps.stop))
    if config.steps and not wanted:
        tracker.say(
            f"warning: no trace: this session has the steps {steps.start} to {steps.stop - 1}, profile.start={config.start} "
            f"profile.steps={config.steps} ask for others"
        )
    if not wanted or not is_main:
        yield from steps
        return
    recorder, recording = profile(), False
    try:
        for step in steps:
            if step == max(wanted.start - 1, steps.start):
                recorder.prepare_trace()  # one step ahead if possible, because preparing is slow
            if step == wanted.start:
                recorder.start_trace()
                recording = True
            with record_function(f"step {step}"):
                yield step
            if step == wanted[-1]:
                recording = False
                with tracker.evaluating():
                    recorder.stop_trace()
                    _write(recorder, folder, wanted, tracker)
    finally:
        if recording:
            recorder.stop_trace()


def _write(recorder: profile, folder: Path, steps: range, tracker: Tracker) -> None:
    path = folder / f"trace_{steps[0]}-{steps[-1]}.json"
    written = temporary_path(path)
    try:
        recorder.export_chrome_trace(str(written))  # on a full disk it prints so, and leaves out the end or all
        if not written.read_bytes().rstrip().endswith(b"}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(written, path)
    except OSError as error:
        tracker.say(f"warning: no trace: {path} cannot be written ({error.strerror}); the training goes on")
        return
    finally:
        written.unlink(missing_ok=True)
    tracker.say(f"profile: the steps {steps[0]} to {steps[-1]} are in {path}; open it in ui.perfetto.dev")
