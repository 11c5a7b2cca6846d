"""FFCV's JPEG decoder, without importing FFCV: where its native library lies, and every way in which we call it.

`import ffcv` compiles numba code (3.7 CPU seconds measured), loads OpenCV's Python module and sets torch to one thread;
the decoder in its native library needs none of that. Finding the library does not import numba either.

int imdecode(source, bytes, height, width, destination, crop height, crop width, x, y, scale numerator, denominator, bool crop,
bool flip); 0 = decoded without even a warning.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np


@functools.cache
def library_path() -> Path | None:
    """The shared library that holds FFCV's JPEG decoder; None when FFCV is not installed (it is an extra)."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("_libffcv*.so")) if folders else []
    return found[0] if found else None


@functools.cache
def decoder() -> Any:
    """The decoder as a C function for Python, None where it is not installed or does not load."""
    path = library_path()
    if path is None:
        return None
    try:
        decode = ctypes.CDLL(str(path)).imdecode
    except OSError:  # OpenCV or turbojpeg was removed after the installation
        return None
    decode.restype = ctypes.c_int
    decode.argtypes = (
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
        + [ctypes.c_uint32] * 6
        + [ctypes.c_bool] * 2
    )
    return decode


def pixels(data: bytes | np.ndarray, width: int, height: int) -> np.ndarray | None:
    """uint8[height, width, 3] of JPEG bytes; None if decoding fails or warns. Only where there is a `decoder`."""
    out = np.empty((height, width, 3), np.uint8)
    source = np.frombuffer(data, np.uint8)
    crop = (height, width, 0, 0, 1, 1, False, False)  # the whole image, at full scale, not flipped
    status = decoder()(source.ctypes.data, source.size, height, width, out.ctypes.data, *crop)
    return out if status == 0 else None


def compiled_decoder() -> Any:
    """The decoder as a function for compiled code, which calls it without the GIL once `load_for_compiled_code` has run.

    Found by name: code that holds an address, as ctypes functions do, cannot be cached on disk.
    """
    from numba import types

    u4, i4 = types.uint32, types.int32
    arguments = [types.uintp, types.uint64, u4, u4, types.uintp, u4, u4, u4, u4, u4, u4, i4, i4]
    return types.ExternalFunction("imdecode", i4(*arguments))


def load_for_compiled_code() -> None:
    """Make the library's names known to compiled code; RuntimeError where it is not installed or does not load."""
    import llvmlite.binding

    llvmlite.binding.load_library_permanently(str(library_path()))
