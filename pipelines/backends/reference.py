"""The reference backend: PIL decodes, numpy holds the pixels, one sample at a time. Slow and obvious: the others' oracle."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pipelines.augment import geometry
from pipelines.records.reader import Records
from pipelines.records.verify import Verifier


class ReferenceBackend:
    """Fills host buffers, see contract.OnHost. Threads decode the samples of a batch; PIL and the resampler release the GIL."""

    def __init__(self, records: Records, workers: int, verify: str):
        self._records = records
        self._verifier = Verifier(records, verify, workers)
        self._workers = workers

    def load(self, positions: np.ndarray, boxes: np.ndarray, out: np.ndarray) -> None:
        def one(i: int) -> None:
            geometry.apply(self.pixels(int(positions[i])), boxes[i], out[i])

        with ThreadPoolExecutor(self._workers) as pool:  # one for each batch: no thread outlives it
            for _ in pool.map(one, range(len(positions))):
                pass

    def pixels(self, position: int) -> np.ndarray:
        """uint8 [H, W, 3] pixels of one record, after its check."""
        r = self._records
        self._verifier.check_one(position)
        payload = r.payload(position)
        shape = (int(r.stored_heights[position]), int(r.stored_widths[position]), 3)
        if r.raw[position]:
            return payload.reshape(shape)
        try:
            with Image.open(io.BytesIO(payload.tobytes())) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            r.verify(position)  # names a record whose bytes changed; one that passes does not decode
            raise r.damaged(position, "does not decode") from error
        if pixels.shape != shape:  # the box is cut for `shape`: compiled code would read past the end of the pixels
            raise r.damaged(
                position, f"decodes to {pixels.shape[1]}x{pixels.shape[0]} pixels, not {shape[1]}x{shape[0]}"
            )
        return pixels
