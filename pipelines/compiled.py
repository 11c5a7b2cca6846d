"""How our numba functions are compiled: exact arithmetic, no GIL, machine code kept on disk.

fastmath=False is stated explicitly because numba otherwise lets a function inherit the option from its first caller, and
stores the result for all callers: called from FFCV, which compiles with fastmath, boxes came out a pixel off.
The folder of the stored code is named by a hash over every file with compiled functions, because numba itself notices
only a change in the function's own file: code inlined from another one would go stale; and over the kind of CPU, as machines
that share the folder would give the same file name to code of their own.
"""

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba import config, njit
from numba.core.caching import IndexDataCacheFile

from pipelines.files import alone_in


def _source_hash() -> str:
    digest = hashlib.blake2b(binding.get_host_cpu_name().encode(), digest_size=6)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        text = path.read_bytes()
        if any(word in text for word in (b"@exact", b"njit", b"ExternalFunction")):
            digest.update(text)
    return digest.hexdigest()


def _code_folder() -> str:
    """The first writable place: NUMBA_CACHE_DIR, beside the sources, the user's cache, a temporary folder."""
    name = f"numba-{_source_hash()}"
    places = [
        config.CACHE_DIR,  # pyright: ignore[reportAttributeAccessIssue]
        Path(__file__).parent / "__pycache__",
    ]
    # Path.home() raises where there is no home, as in a container run under a user id without an account.
    users = {"XDG_CACHE_HOME": "dive-trainer", "HOME": ".cache/dive-trainer"}
    places += [Path(os.environ[name], part) for name, part in users.items() if os.environ.get(name)]
    for place in filter(None, places):
        folder = Path(place) / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return _temporary_folder(name)


def _temporary_folder(name: str) -> str:
    """One of this user's own, for all processes; a new one where somebody else has taken its name."""
    folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077:
            return str(folder)
    return tempfile.mkdtemp(prefix=name)


# Numba's own, also where this module is imported a second time: a lock within a lock would wait for ever.
_save = getattr(IndexDataCacheFile.save, "__wrapped__", IndexDataCacheFile.save)


@functools.wraps(_save)
def _save_alone(file: IndexDataCacheFile, key: Any, data: Any) -> None:
    """Numba reads its index, takes the next free name and writes both without a lock.

    Of two processes that compile a function for different types at the same time, the later index would name the other's code.
    """
    with alone_in(Path(file._cache_path)):
        _save(file, key, data)


IndexDataCacheFile.save = _save_alone  # pyright: ignore[reportAttributeAccessIssue]
config.CACHE_DIR = _code_folder()  # pyright: ignore[reportAttributeAccessIssue]
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": False}
exact = njit(**_OPTIONS)
exact_parallel = njit(parallel=True, **_OPTIONS)
