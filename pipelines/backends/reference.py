"""The reference backend: PIL decodes, numpy holds the pixels, one sample at a time. Slow and obvious: the others' oracle."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pipelines.augment import geometry
from pipelines.batch import Boxes
from pipelines.records.reader import Records
from pipelines.records.restarts import cut
from pipelines.records.verify import Verifier


class ReferenceBackend:
    """Fills host buffers, see contract.OnHost. Threads decode the samples of a batch; PIL and the resampler release the GIL.

    parts: decode only the part of an image that its box shows, where the record allows it.
    """

    def __init__(self, records: Records, workers: int, verify: str, parts: bool = True):
        self._records = records
        self._parts = parts
        self._verifier = Verifier(records, verify, workers)
        self._workers = workers

    def load(self, positions: np.ndarray, boxes: Boxes, out: np.ndarray) -> None:
        def one(i: int) -> None:
            window, inside, flip = (of_all[i] for of_all in boxes)
            pixels, left, top = self._around(int(positions[i]), window)
            geometry.apply(pixels, left, top, window, inside, flip, out[i])

        with ThreadPoolExecutor(self._workers) as pool:  # one for each batch: no thread outlives it
            for _ in pool.map(one, range(len(positions))):
                pass

    def _around(self, position: int, window: np.ndarray) -> tuple[np.ndarray, int, int]:
        """Pixels of one record that hold a window, after its check, and where their corner lies."""
        r = self._records
        if r.raw[position] or not self._parts:
            return self.pixels(position), 0, 0
        self._verifier.check_one(position)
        data, place = cut(r.payload(position), int(r.stored_widths[position]), int(r.stored_heights[position]), window)
        x, y, w, h = place.tolist()
        return self._decoded(position, data, (h, w, 3)), x, y

    def pixels(self, position: int) -> np.ndarray:
        """uint8 [H, W, 3] pixels of one record, after its check."""
        r = self._records
        self._verifier.check_one(position)
        payload = r.payload(position)
        shape = (int(r.stored_heights[position]), int(r.stored_widths[position]), 3)
        return payload.reshape(shape) if r.raw[position] else self._decoded(position, payload, shape)

    def _decoded(self, position: int, data: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The pixels of a JPEG, which is one record or a part of it, and must have this shape."""
        r = self._records
        try:
            with Image.open(io.BytesIO(data.tobytes())) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            r.verify(position)  # names a record whose bytes changed; one that passes does not decode
            raise r.damaged(position, "does not decode") from error
        if pixels.shape != shape:  # the box is cut for `shape`: compiled code would read past the end of the pixels
            raise r.damaged(
                position, f"decodes to {pixels.shape[1]}x{pixels.shape[0]} pixels, not {shape[1]}x{shape[0]}"
            )
        return pixels
