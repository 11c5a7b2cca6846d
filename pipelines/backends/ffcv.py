"""The ffcv backend: FFCV's file format and its JPEG decoder in one compiled, parallel pass over a batch.

It is FFCV's own scheme (numba loops that call its decoder without the GIL), compiled by us so that the machine code is kept on
disk and start-up takes no compilation. The parts of the stock Loader that break the contract of loader.py do not exist
here: its epoch thread, a Python object per sample, decode scratch per sample and slot (here: per thread), ignored decode
errors, the inexact DCT (libffcv.py).
"""

import threading

import numba
import numpy as np
from numba import prange

from pipelines import libffcv
from pipelines.augment.geometry import apply
from pipelines.batch import Boxes
from pipelines.compiled import exact_parallel
from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.restarts import part
from pipelines.records.verify import Verifier, is_whole

_GOOD, _BAD_CRC, _BAD_IMAGE = 0, 1, 2
# Numba's fallback threading layer aborts the process when two threads enter parallel code at once.
_one_at_a_time = threading.Lock()

_decompress = libffcv.compiled_decoder()
_RGB, _EXACT = libffcv.RGB, libffcv.EXACT


@exact_parallel
def _load_batch(columns, due, positions, boxes, out, decoders, scratch, parts, status):
    """Fill uint8 out[B, S, S, 3] with the Boxes of the records at int64[B]; status[i]: the outcome of row i.

    decoders: uintp[threads]; scratch: uint8[threads, bytes of the largest image]; parts: uint8[threads, bytes of the largest
    JPEG], or none, where every image is to be decoded as a whole.
    """
    for i in prange(len(positions)):
        k = positions[i]
        if not is_whole(columns, due, k):
            status[i] = _BAD_CRC
            continue
        height, width = np.int64(columns.stored_heights[k]), np.int64(columns.stored_widths[k])
        payload = columns.data[columns.offsets[k] : columns.offsets[k] + columns.sizes[k]]
        window, left, top = boxes.windows[i], np.int64(0), np.int64(0)
        if columns.raw[k]:
            image = payload.reshape((height, width, 3))
        else:
            thread = numba.get_thread_id()
            size, left, top, width, height = part(payload, width, height, window, parts[thread])
            source, size = (parts[thread].ctypes.data, size) if size else (payload.ctypes.data, len(payload))
            image = scratch[thread][: height * width * 3].reshape((height, width, 3))
            to = image.ctypes.data
            result = _decompress(decoders[thread], source, size, to, width, 0, height, _RGB, _EXACT)
            if result != 0:  # the stock Loader ignores this, and returns the image decoded before
                status[i] = _BAD_IMAGE
                continue
        apply(image, left, top, window, boxes.insides[i], boxes.flips[i], out[i])
        status[i] = _GOOD


class FFCVBackend:
    """Fills host buffers, see contract.OnHost.

    workers: threads that load one batch together. parts: decode only the part of an image that its box shows, where the record
    allows it.
    """

    def __init__(self, records: Records, workers: int, verify: str, parts: bool = True):
        try:
            libffcv.load_for_compiled_code()
        except RuntimeError as error:  # not installed, or OpenCV or turbojpeg was removed afterwards
            raise UserError(
                f"data.backend=ffcv: FFCV's library does not load ({error}); run `bash tools/setup.sh`, "
                "or use data.backend=reference"
            ) from error
        self._records = records
        self._workers = min(workers, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportAttributeAccessIssue]
        # Starts numba's threads here, in the main thread as a rule: with one core, TBB waits for ever at exit for a task that
        # another thread, such as the loader's, has given to it (numba#10556, oneTBB#2056).
        numba.set_num_threads(self._workers)
        self._columns, self._verifier = records.columns(), Verifier(records, verify, self._workers)
        self._status = np.zeros(0, np.uint8)
        self._decoders = libffcv.Handles(self._workers)
        self._scratch = np.zeros((self._workers, 0), np.uint8)
        self._parts, self._whole = np.zeros((self._workers, 0), np.uint8), not parts

    def load(self, positions: np.ndarray, boxes: Boxes, out: np.ndarray) -> None:
        with _one_at_a_time:
            self._records.require_whole()
            self._grow(positions)
            numba.set_num_threads(self._workers)
            _load_batch(
                self._columns,
                self._verifier.due,
                positions,
                boxes,
                out,
                self._decoders.addresses,
                self._scratch,
                self._parts,
                self._status,
            )
            bad = np.flatnonzero(self._status[: len(positions)])
        if len(bad):
            r, position = self._records, int(positions[bad[0]])
            r.verify(position)  # names a record whose bytes changed; one that passes does not decode
            raise r.damaged(position, "does not decode")

    def _grow(self, positions: np.ndarray) -> None:
        """Scratch for the largest image and JPEG of the batch, so that a giant image costs memory only when it comes up."""
        r = self._records
        pixels = r.stored_widths[positions].astype(np.int64) * r.stored_heights[positions]
        largest = int(np.where(r.raw[positions], 0, 3 * pixels).max(initial=0))
        if largest > self._scratch.shape[1]:
            self._scratch = np.empty((self._workers, largest), np.uint8)
        largest = 0 if self._whole else int(r.sizes[positions].max(initial=0))
        if largest > self._parts.shape[1]:
            self._parts = np.empty((self._workers, largest), np.uint8)
        if len(positions) > len(self._status):
            self._status = np.empty(len(positions), np.uint8)
