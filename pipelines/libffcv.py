"""Where FFCV's native library lies, without importing FFCV.

`import ffcv` compiles numba code (3.7 CPU seconds measured), loads OpenCV's Python module and sets torch to one thread;
the decoder in its native library needs none of that.
"""

import functools
import importlib.util
from pathlib import Path


@functools.cache
def library_path() -> Path | None:
    """The shared library that holds FFCV's JPEG decoder; None when FFCV is not installed (it is an extra)."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("_libffcv*.so")) if folders else []
    return found[0] if found else None
