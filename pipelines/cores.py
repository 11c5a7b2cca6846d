"""How many cores this process may use: those of its affinity mask, but no more than its cgroup has time for.

A container with `--cpus=4` on a machine of 64 cores may run on all of them, for a sixteenth of the time: 64 threads use up the
time in the first milliseconds of each period, and then all stand still until the next.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. mounted: where cgroups are mounted, of version 1 or 2; own: the file that names those of this process."""
    cores = len(os.sched_getaffinity(0))
    for folder in _cpu_cgroups(mounted, own):
        if (quota := _quota(folder)) is not None:
            cores = min(cores, max(1, math.ceil(quota)))
    return cores


def _cpu_cgroups(mounted: Path, own: Path) -> Iterator[Path]:
    """The folders of the cgroups that limit this process's time: its own, and those above it.

    In a container the names may be those of the host, where only the topmost folder is there, which is the container's own.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux with cgroups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = mounted / controllers
            folder = root / path.lstrip("/")
            yield folder
            yield from (parent for parent in folder.parents if parent.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Cores' worth of time of a cgroup; None where it is not limited, or not there."""
    try:
        if (folder / "cpu.max").exists():
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if time in ("max", "-1") else float(time) / float(period)
    except (OSError, ValueError):
        return None
