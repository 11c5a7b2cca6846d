"""How OpenMP's threads wait for each other: spinning, which is fast on a free machine, or asleep, which is fast on a shared one.

GCC's OpenMP (libgomp), which torch's wheels bring along, reads its variables once, when it is loaded: this must be called before
torch is imported, and imports nothing that does. Invariant: what the user has set stays, and the number of threads, on which the
last bits of a result depend, is never touched.

By default a thread spins some 300,000 rounds before it sleeps. On two cores, with a small network, images/s alone, and beside two
busy loops: default 1,519 and 45, GOMP_SPINCOUNT=1000 1,461 and 180, OMP_WAIT_POLICY=PASSIVE 1,060 and 385
(docs/results/step_overhead.md).
"""

import os
from collections.abc import MutableMapping

import psutil

_SHORT = "1000"  # rounds
_BUSY = 0.5  # cores that others use


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep at once where others use the cores now, and else spin for a short while, in case they come later."""
    if environment.get("OMP_NUM_THREADS") == "1" or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        return
    if cores_in_use() >= _BUSY:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = _SHORT


def cores_in_use(seconds: float = 0.1) -> float:
    """How many cores other processes use, while this one sleeps; those of lower priority do not count, as they give way."""
    percent = psutil.cpu_times_percent(interval=seconds)
    used = percent.user + percent.system
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        used += getattr(percent, "nice", 0.0)
    return used / 100 * (psutil.cpu_count() or 1)
