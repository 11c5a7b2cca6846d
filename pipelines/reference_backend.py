"""The reference backend: PIL decodes, numpy holds the pixels, one sample after the other. Slow, obvious, the oracle."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pipelines.records import Records
from pipelines.resample import crop_resize_flip
from pipelines.views import ViewParams, boxes


class ReferenceBackend:
    """See loader.Backend. Threads decode the samples of a batch; PIL and the resampler release the GIL."""

    def __init__(self, records: Records, params: ViewParams, workers: int, verify: str):
        self._records = records
        self._params = params
        self._verify = verify
        self._checked = np.zeros(len(records), np.bool_)
        self._pool = ThreadPoolExecutor(workers)

    def load(self, positions: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
        r = self._records
        batch_boxes = boxes(
            self._params,
            r.keys[positions],
            views,
            r.widths[positions],
            r.heights[positions],
            r.stored_widths[positions],
            r.stored_heights[positions],
        )

        def one(i: int) -> None:
            x, y, w, h, flip = (int(value) for value in batch_boxes[i])
            crop_resize_flip(self._decode(int(positions[i])), x, y, w, h, flip, out[i])

        for _ in self._pool.map(one, range(len(positions))):
            pass

    def _decode(self, position: int) -> np.ndarray:
        """uint8 [H, W, 3] pixels of one record, after its CRC."""
        r = self._records
        if self._verify == "always" or (self._verify == "first" and not self._checked[position]):
            r.verify(position)
            self._checked[position] = True
        payload = r.payload(position)
        if r.raw[position]:
            return payload.reshape(r.stored_heights[position], r.stored_widths[position], 3)
        try:
            with Image.open(io.BytesIO(payload.tobytes())) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise r.damaged(position, f"does not decode ({error})") from error
