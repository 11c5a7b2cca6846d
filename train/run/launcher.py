"""The launcher that started this process, accelerate's or torch's: does it live, does it restart what fails, what is it told.

Owns the meaning of the variables that it sets. Needs no torch. Invariant: without a launcher the parent may end at any time, as
the shell does after `nohup python ... &`.
"""

import contextlib
import functools
import json
import os
import time

import psutil

_SINGLE = "ACCELERATE_DYNAMO_MODE"  # accelerate sets it for its only process, too; a user has no reason to
_TORCH = "TORCHELASTIC_RUN_ID"  # torch's launcher, by which accelerate starts several processes
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


@functools.cache
def parent() -> int:
    """The process that started this one; to be called for the first time as early as possible."""
    return os.getppid()


def gone() -> bool:
    """Whether a launcher started this process and has ended before it: the system then gives it another parent."""
    return (_TORCH in os.environ or _SINGLE in os.environ) and os.getppid() != parent()


def restarts() -> bool:
    """Whether the launcher answers every exit code but 0 by starting all processes again (--max_restarts)."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def has_store() -> bool:
    """Whether something listens at MASTER_ADDR before the ranks have met: torch's launcher may leave that to rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "False"


def asked_for_several() -> bool:
    """Whether accelerate was asked for several processes, but has started this one alone.

    It then sets the address at which they would meet, and no number of processes. Only its own environment tells whether it has
    that address from elsewhere; where that cannot be read, the answer is no.
    """
    if _SINGLE not in os.environ or any(name in os.environ for name in _SIZES):
        return False
    try:
        given = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return False
    return any(os.environ.get(name) != given.get(name) for name in _MEETING)


def report(line: str) -> None:
    """Give torch's launcher the line that it repeats at the end of its own report, after this process has failed."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    more = {"py_callstack": line, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError), open(path, "w") as file:  # the line has been printed anyway
        json.dump({"message": {"message": line, "extraInfo": more}}, file)
