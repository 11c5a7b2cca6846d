"""The JPEG decoder of FFCV's native library, without importing FFCV: where the library lies, and every way in which we call it.

`import ffcv` compiles numba code (3.7 CPU seconds measured), loads OpenCV's Python module and sets torch to one thread; the
decoder, libjpeg-turbo, needs none of that. Finding the library does not import numba either.

FFCV calls libjpeg-turbo with its fast inverse DCT, which is wrong where quantisation is fine or contrast extreme: a checkerboard
of 4-pixel squares is off by 135 grey levels on average at any quality, one of single pixels by 83 at quality 100. We call the
same library with the exact one. It costs 1 % (1.370 ms per ImageNet photo against 1.356), and gives Pillow's very pixels.

void *tjInitDecompress(); int tjDestroy(decoder); int tjDecompress2(decoder, source, bytes, destination, width, bytes per row,
height, pixel format, flags); 0 = decoded without even a warning. A decoder serves one thread at a time.
"""

import ctypes
import functools
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import numpy as np

RGB = 0  # TJPF_RGB
EXACT = 4096  # TJFLAG_ACCURATEDCT


@functools.cache
def library_path() -> Path | None:
    """The shared library that holds FFCV's JPEG decoder; None when FFCV is not installed (it is an extra)."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("_libffcv*.so")) if folders else []
    return found[0] if found else None


@functools.cache
def decoder() -> Any:
    """The library with its functions' types for Python, None where it is not installed or does not load."""
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        init, destroy, decode = library.tjInitDecompress, library.tjDestroy, library.tjDecompress2
    except (OSError, AttributeError):  # OpenCV or turbojpeg was removed after the installation
        return None
    init.restype = ctypes.c_void_p
    destroy.argtypes = [ctypes.c_void_p]
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p] + [ctypes.c_int] * 5
    return library


class Handles:
    """Decoders for `count` threads, freed with this object; `addresses`: uintp[count], for compiled code."""

    def __init__(self, count: int) -> None:
        library = decoder()
        self.addresses = np.array([library.tjInitDecompress() for _ in range(count)], np.uintp)
        if not self.addresses.all():
            raise MemoryError("no memory for a JPEG decoder")
        weakref.finalize(self, _destroy, library, self.addresses.tolist())


def _destroy(library: Any, addresses: list[int]) -> None:
    for address in addresses:
        library.tjDestroy(address)


def pixels(data: bytes | np.ndarray, width: int, height: int) -> np.ndarray | None:
    """uint8[height, width, 3] of JPEG bytes; None if decoding fails or warns. Only where there is a `decoder`."""
    out = np.empty((height, width, 3), np.uint8)
    source, handles = np.frombuffer(data, np.uint8), Handles(1)
    to = (out.ctypes.data, width, 0, height, RGB, EXACT)
    status = decoder().tjDecompress2(int(handles.addresses[0]), source.ctypes.data, source.size, *to)
    return out if status == 0 else None


def compiled_decoder() -> Any:
    """tjDecompress2 for compiled code, which calls it without the GIL once `load_for_compiled_code` has run.

    Found by name: code that holds an address, as ctypes functions do, cannot be cached on disk.
    """
    from numba import types

    pointer, i4 = types.uintp, types.int32
    return types.ExternalFunction("tjDecompress2", i4(pointer, pointer, types.uint64, pointer, i4, i4, i4, i4, i4))


def load_for_compiled_code() -> None:
    """Make the library's names known to compiled code; RuntimeError where it is not installed or does not load."""
    import llvmlite.binding

    if decoder() is None:
        raise RuntimeError("it is not installed, or a library that it needs is missing")
    llvmlite.binding.load_library_permanently(str(library_path()))
