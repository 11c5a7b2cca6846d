"""Folders that nobody may enter, for tests that run as root too: root without its capability to pass over permissions."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522  # of the structures of capget and capset
_PASSES_OVER = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Within the block this thread, and threads that it starts, can neither list nor enter `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~_PASSES_OVER  # the effective ones; the permitted ones stay, to come back
    mode = folder.stat().st_mode
    folder.chmod(0)
    try:
        assert libc.capset(header, without) == 0
        try:
            yield
        finally:
            assert libc.capset(header, before) == 0
    finally:
        folder.chmod(mode)
