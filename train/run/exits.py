"""How a process ends: its exit code, one line of error for all ranks, and the reason of one rank's failure for the others.

Owns what is printed when a script ends before its work is done. Invariant: the exit code is 0 only if the work was done, or if a
launcher would begin it again that a person has stopped (stops.py).
"""

import atexit
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import torch
from torch.distributed import TCPStore

from pipelines.errors import UserError, first_line
from train.run import launcher
from train.run.endings import exit_code, script
from train.run.stops import Stopped

_HOST_IS_FULL = "can't allocate memory"  # torch's words
_PEER_DIED = re.compile(r"gloo/transport.*Connection (reset|closed) by peer", re.DOTALL)


def guard(main: Callable[[list[str]], int | None]) -> int:
    """Run an entry script's `main(argv)` and return its exit code: `sys.exit(guard(main))`."""
    launcher.parent()
    try:
        code = script(lambda argv: exit_code(lambda: _until_stopped(main, argv), say=_say_once))
    except Exception as fault:
        if not torch.distributed.is_initialized():
            raise
        # As the interpreter would at its end, which a rank must not wait for.
        sys.excepthook(type(fault), fault, fault.__traceback__)
        code = 1
    if torch.distributed.is_initialized():
        # Held to the very end: else a network that is let go later frees the group, and joins gloo's threads with the lock of the
        # interpreter, which they may need.
        group = torch.distributed.group.WORLD
        if code == 0:
            torch.distributed.destroy_process_group(group)
        _leave_at_once(code)
    return code


def _until_stopped(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    try:
        return main(argv)
    except Stopped as stop:
        _say_once(f"{stop}; the same command goes on")
        return stop.code
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"there is not enough memory on the device ({first_line(error)}): give a smaller optim.batch, or a larger "
            "optim.accumulate for the same batch in parts; if it happened in an evaluation or a cache, a smaller eval.batch or "
            "cache.batch"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _HOST_IS_FULL in str(error):
            raise UserError(
                f"there is not enough memory on the host ({first_line(error)}): give a smaller optim.batch, fewer data.workers, "
                "or raise the limit (ulimit -v, the job's or the container's)"
            ) from error
        if torch.distributed.is_initialized() and _PEER_DIED.search(str(error)):
            raise UserError(
                "another process of this group has ended before its work was done; its own lines or the launcher's say why, and "
                "the same command goes on"
            ) from error
        raise


def _say_once(line: str) -> None:
    if _first_to_say(line):
        print(line, file=sys.stderr, flush=True)
    launcher.report(line)


def _leave_at_once(code: int) -> NoReturn:
    """End this rank without shutting down the interpreter, during which torch 2.13 aborts one time in ten.

    Gloo's threads outlive their group and may still hold the last tensors. A thread that needs the interpreter while it
    shuts down is unwound by force, through C++ code that does not allow it. After a fault the shutdown would also wait for
    an operation that other ranks have not joined yet, and the launcher would learn of the fault only then.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _launchers_store() -> TCPStore | None:
    """The launcher's store, which outlives every rank, or else that of rank 0; None if there is none, or no answer."""
    if launcher.gone() or not (launcher.has_store() or torch.distributed.is_initialized()):
        return None
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
    except (KeyError, ValueError, RuntimeError):
        return None


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def share_failure(words: str) -> None:
    store = _launchers_store()
    if store is not None:
        store.set(f"failure/{_attempt()}", words)


def shared_failure() -> str | None:
    """Why another rank failed, if one has shared its failure."""
    store, name = _launchers_store(), f"failure/{_attempt()}"
    return store.get(name).decode() if store is not None and store.check([name]) else None


def _first_to_say(line: str) -> bool:
    """Whether this rank is the first with this line: an error of all ranks is printed once, and so is an error of rank 3 alone.

    The launcher's store counts, even before torch.distributed is initialised. The first rank must print: as soon as it
    has left, the launcher kills the others, perhaps rank 0 among them.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    store = _launchers_store()
    # Without a store a line may be printed twice, which is better than not at all.
    return store is None or store.add(f"said/{_attempt()}/{line}", 1) == 1
