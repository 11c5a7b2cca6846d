"""What this process holds open below a folder: files of other tests, closed meanwhile by the garbage collector, do not count."""

import os
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def opened_below(folder: Path) -> int:
    """Number of this process's file descriptors that belong to files below `folder`."""
    found = 0
    for descriptor in os.listdir(_DESCRIPTORS):
        try:
            found += Path(os.readlink(_DESCRIPTORS / descriptor)).is_relative_to(folder)
        except FileNotFoundError:  # closed meanwhile; that of the listing itself always is
            continue
    return found
