"""Stopping a run: signals, a stop file and the end of the launcher, agreed upon by all ranks.

Owns how a request is received and how all ranks agree on it; the loop acts on it (save, leave).
Invariant: every rank gets the same answer from its n-th call of `agreed`, and no call waits for the device.
"""

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from train.run import launcher

EXIT_CODE = 3
"exit code of a stopped run under plain python (a launcher replaces any code but 0 by its own); run.json says `stopped`"
FILE = "stop"
"touch RUN/stop"

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER_GONE, _FILE_ASKED = "the end of its launcher", "the stop file"
_REASONS = ("", *(one.name for one in _SIGNALS), _FILE_ASKED, LAUNCHER_GONE)
# What a person asks for: no launcher may start the run again after it. A launcher itself sends SIGTERM, to start all ranks anew
# when a machine joins; and when the launcher of one machine is gone, those of the others may go on without it.
_FINAL = (signal.SIGINT.name, signal.SIGUSR1.name, _FILE_ASKED)
_FILE_SECONDS = 1.0  # between two checks for the stop file, which may be on a network file system
_TWICE_SECONDS = 1.0  # a launcher repeats the Ctrl-C that its processes received themselves; a person is slower


class Stopped(Exception):
    """The run was asked to stop, and everything up to this moment is saved. code: what the process ends with."""

    code = EXIT_CODE


class Stops:
    """Requests to stop one run, received within the `with` block.

    They are SIGTERM, SIGINT and SIGUSR1 to any rank, a file named `stop` in the run's folder, or the end of a rank's launcher. A
    second SIGINT, at least a second after the first, is a KeyboardInterrupt as usual. processes: the number of ranks; all of them
    make the same calls in the same order.
    """

    def __init__(self, folder: Path, processes: int):
        self._file = folder / FILE
        self._heard = 0
        self._interrupted_at = 0.0
        self._looked_at = 0.0
        self._before: dict[int, Any] = {}
        # Gloo beside NCCL: its numbers are on the host, and reach all ranks without the device.
        self._group = distributed.new_group(backend="gloo") if processes > 1 else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            # Ignored signals stay ignored: a Ctrl-C is not meant for a run that a shell script has put in the background.
            heard = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
            self._before = {one: signal.signal(one, self._hear) for one in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at and now - self._interrupted_at > _TWICE_SECONDS:
                raise KeyboardInterrupt
            self._interrupted_at = self._interrupted_at or now
        self._heard = self._heard or _SIGNALS.index(signal.Signals(number)) + 1

    def _own(self) -> int:
        """The request that this rank has received, as an index into _REASONS."""
        now = time.monotonic()
        if not self._heard and now - self._looked_at >= _FILE_SECONDS:
            self._looked_at = now
            if self._file.is_file():
                self._heard = _REASONS.index(_FILE_ASKED)
        if not self._heard and launcher.gone():
            self._heard = _REASONS.index(LAUNCHER_GONE)
        return self._heard

    def agreed(self) -> str | None:
        """The reason to stop, the same on all ranks; None to go on.

        With several ranks, each call starts a reduction over all of them and returns the result of the previous call's: it is
        computed during the step, and no rank waits for it.
        """
        if self._group is None:
            return _REASONS[self._own()] or None
        answer = 0
        if self._asked is not None:
            work, word = self._asked
            work.wait()
            answer = int(word)
        word = torch.tensor(self._own())
        self._asked = distributed.all_reduce(word, distributed.ReduceOp.MAX, self._group, async_op=True), word
        return _REASONS[answer] or None

    def obeyed(self, reason: str, where: str) -> Stopped:
        """What to raise when all is saved; removes the stop file, so that the same command can go on.

        reason: as `agreed` gave it; where: completes the message ("stopped by ... ").
        """
        if self._file.is_file():  # a folder of that name asks for nothing
            self._file.unlink(missing_ok=True)
        stopped = Stopped(f"stopped by {reason} {where}")
        if reason in _FINAL and launcher.restarts():
            stopped.code = 0
        return stopped
