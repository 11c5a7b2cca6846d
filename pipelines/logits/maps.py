"""Block files in memory for as long as a training reads them.

Owns the memory maps of one cache, by cell: the number view * blocks + block. Invariant: an open block needs no file
descriptor and no object or allocation of its own, in Python, numpy, torch or malloc. Thousands of blocks are opened one after
another between the large, short-lived tensors of training steps. Each small allocation that stays would split a hole in the heap
into which such a tensor then no longer fits: with a torch tensor for each block, a CIFAR-100-LT run grew by 3 MB with each view.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from pipelines.errors import UserError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class BlockMaps:
    """At most `limit` block files, mapped for reading. addresses: int64, where the map of each cell begins; 0 = not open."""

    def __init__(self, cells: int, limit: int):
        self.addresses = np.zeros(cells, np.int64)
        self._sizes = np.zeros(cells, np.int64)
        self._turns = np.zeros(cells, np.int64)  # the order in which they were opened
        self._limit, self._open, self._turn = limit, 0, 0
        weakref.finalize(self, _unmap_all, self.addresses, self._sizes).atexit = False

    def __len__(self) -> int:
        return self._open

    def open(self, cell: int, path: Path, size: int) -> None:
        """Map a file of `size` bytes; UserError when it cannot be read or its size has changed."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check permissions and disk") from error
        try:
            if os.fstat(handle).st_size != size:
                raise UserError(f"{path} was changed while it was opened; run the same command again")
            address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        finally:
            os.close(handle)
        if address == _FAILED:
            why = os.strerror(ctypes.get_errno())
            raise UserError(f"{path}: cannot be mapped into memory ({why}); check the limits of this process")
        self._turn += 1
        self._open += 1
        self.addresses[cell], self._sizes[cell], self._turns[cell] = address, size, self._turn

    def require_whole(self, cell: int, path: Path) -> None:
        """UserError if the file of an open cell was cut short or replaced: touching its map would end the process (SIGBUS).

        A file that was deleted lives as long as its map.
        """
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{path}: can no longer be read ({error.strerror}); check the disk") from error
        if size != self._sizes[cell]:
            raise UserError(
                f"{path} has {size} bytes, and had {self._sizes[cell]} when it was opened: it was changed in use; delete it, "
                "run train/cache_logits.py again to rewrite it, and then the same command"
            )

    def close_oldest(self) -> None:
        """Close the blocks that were opened first, down to the limit."""
        excess = self._open - self._limit
        if excess > 0:
            cells = np.flatnonzero(self.addresses)
            oldest = cells[np.argsort(self._turns[cells])[:excess]]
            _unmap(self.addresses, self._sizes, oldest)
            self._open -= excess


def _unmap(addresses: np.ndarray, sizes: np.ndarray, cells: np.ndarray) -> None:
    for cell in cells.tolist():
        _libc.munmap(int(addresses[cell]), int(sizes[cell]))
        addresses[cell] = 0


def _unmap_all(addresses: np.ndarray, sizes: np.ndarray) -> None:
    _unmap(addresses, sizes, np.flatnonzero(addresses))
