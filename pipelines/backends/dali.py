"""The dali backend: NVIDIA DALI decodes only the box of each view, resizes and flips it; with a GPU, all on the GPU.

DALI is given encoded bytes, boxes and flips from our order and draws: its own readers, shuffling and random operators, whose
seeds follow the batch slot and not the sample, are not used. Bytes are checked before DALI sees them: a decoder that stops at the
box reads a truncated file without an error, and one that fails kills the process. Invariant: a batch depends only on its
positions and boxes, and, unless a GPU's hardware decoder shares it with the other one, a view on its own.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from pipelines.augment.recipe import PAD_CROP, ViewParams
from pipelines.backends.contract import Crops, Drawn
from pipelines.batch import Boxes
from pipelines.device import stream_of
from pipelines.errors import UserError
from pipelines.libffcv import library_path
from pipelines.records.reader import Records
from pipelines.records.restarts import cut
from pipelines.records.verify import Verifier

# Two pipelines take turns, so that one decodes while the other's batch is resized and copied. One pipeline with a queue of two
# would do the same, but its first run starts two batches at once, and there may be only one.
_AT_WORK = 2
_Work = tuple[Pipeline | None, Drawn, list[np.ndarray]]  # the pipeline (none: nothing to do), its batch, its bytes


class _Decodable:
    """Decodes each record once per process, on first touch, with a decoder that survives bad data (1.1 ms for 120 kB of JPEG).

    On an image that it cannot decode, DALI 2.4 dies of SIGSEGV about every second time (measured on the CPU; its other workers
    go on using freed buffers), so the error that it should raise cannot be relied upon.
    """

    def __init__(self, records: Records, workers: int):
        if library_path() is not None:
            from pipelines.backends.ffcv import FFCVBackend as Decoder
        else:
            from pipelines.backends.reference import ReferenceBackend as Decoder
        self._decoder = Decoder(records, workers, "off", parts=False)
        self._done = np.zeros(len(records), np.bool_)

    def check(self, positions: np.ndarray) -> None:
        """Raise UserError naming a record among `positions` that does not decode."""
        due = positions[~self._done[positions]]
        if len(due):
            self._decoder.load(due, _one_pixel(len(due)), np.empty((len(due), 1, 1, 3), np.uint8))
            self._done[due] = True


def _one_pixel(count: int) -> Boxes:
    """Boxes that need no resampling."""
    windows = np.tile(np.array([0, 0, 1, 1], np.int32), (count, 1))
    return Boxes(windows, windows.astype(np.float64), np.zeros(count, np.int32))


@contextmanager
def _told() -> Iterator[None]:
    """Around calls of DALI: a UserError for what fails there. The pipeline in use is dropped: it may be unusable."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # torch's own, at the copy
    except RuntimeError as error:
        raise UserError(
            f"data.backend=dali: DALI failed on images that decode elsewhere; try data.backend=ffcv: {error}"
        ) from error


class DaliBackend:
    """See contract.Backend; for JPEG records.

    workers: threads of each of the two pipelines. hw_decoder_load: share of the images that the GPU's JPEG decoder takes, 0..1.
    """

    in_background = True

    def __init__(
        self,
        records: Records,
        params: ViewParams,
        workers: int,
        verify: str,
        device: torch.device,
        hw_decoder_load: float = 0.0,
    ):
        self._params = params
        self._workers = workers
        self._device = device
        self._verifier, self._decodable = Verifier(records, verify, workers), _Decodable(records, workers)
        self._records = records
        self._idle: list[Pipeline] = []
        self._on_gpu = device.type == "cuda"
        self._decoder: dict[str, Any] = {"device": "cpu"}
        if self._on_gpu:
            # Chroma is interpolated, as the CPU decoders do, not repeated: otherwise the GPU's colours are blockier.
            self._decoder = {"device": "mixed", "hw_decoder_load": hw_decoder_load, "jpeg_fancy_upsampling": True}
            self._stream = stream_of(device, "batches")

    def crops(self, batches: Iterable[Drawn]) -> Generator[Crops, None, None]:
        source, running = iter(batches), deque[_Work]()
        end: BaseException | None = None  # why no more batches are started; those in progress are delivered first
        while True:
            while end is None and len(running) < _AT_WORK:
                try:
                    running.append(self._start(next(source)))
                except BaseException as error:
                    end = error
            if not running:
                break
            yield self._finish(*running.popleft())
        if end is not None and not isinstance(end, StopIteration):
            raise end

    def _start(self, item: Drawn) -> _Work:
        """Hand one batch to a pipeline; the bytes must live until it is done."""
        plan, draws = item
        positions = plan.positions
        if not len(positions):  # a rank may have nothing to evaluate; DALI does not accept an empty batch
            return None, item, []
        self._verifier.check(positions)
        self._decodable.check(positions)
        with _told():
            pipe = self._take(len(positions))
            encoded = self._feed(pipe, positions, draws.boxes)
        return pipe, item, encoded

    def _feed(self, pipe: Pipeline, positions: np.ndarray, boxes: Boxes) -> list[np.ndarray]:
        r, windows, encoded = self._records, boxes.windows.copy(), []
        for position, window in zip(positions, windows, strict=True):
            width, height = int(r.stored_widths[position]), int(r.stored_heights[position])
            data, place = cut(r.payload(position), width, height, window)
            encoded.append(data)
            window[:2] -= place[:2]
        pipe.feed_input("encoded", encoded)
        x, y, w, h = windows.T
        pipe.feed_input("start", np.stack([y, x], axis=1))
        pipe.feed_input("shape", np.stack([h, w], axis=1))
        if self._params.kind != PAD_CROP:
            x, y, w, h = boxes.insides.T.astype(np.float32)
            pipe.feed_input("inside_start", np.stack([y, x], axis=1))
            pipe.feed_input("inside_end", np.stack([y + h, x + w], axis=1))
        pipe.feed_input("flip", boxes.flips)
        pipe.schedule_run()
        return encoded

    def _take(self, batch: int) -> Pipeline:
        """An idle pipeline that is large enough, or a new one."""
        while self._idle:
            pipe = self._idle.pop()
            if (pipe.max_batch_size or 0) >= batch:
                return pipe
        return self._build(batch)

    def _build(self, batch: int) -> Pipeline:
        """A pipeline for up to `batch` views: decode the box, resize, flip."""
        device_id = (self._device.index or 0) if self._on_gpu else None  # None also works on a machine without a driver
        pipe = Pipeline(batch, self._workers, device_id, exec_dynamic=True, prefetch_queue_depth=1)
        # EXIF orientation is ignored, as by every other backend and by torchvision's default loader.
        decoder: dict[str, Any] = {"output_type": DALIImageType.RGB, "adjust_orientation": False, **self._decoder}
        size = self._params.size
        with pipe:
            encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
            start = fn.external_source(name="start", dtype=DALIDataType.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=DALIDataType.INT32, ndim=1)
            flip = fn.external_source(name="flip", dtype=DALIDataType.INT32, ndim=0)
            box = {"start": start, "shape": shape, "axis_names": "HW"}
            images: Any
            if self._params.kind == PAD_CROP:  # the box may reach outside the image
                images = fn.decoders.image(encoded, **decoder)
                images = fn.slice(images, **box, out_of_bounds_policy="pad", fill_values=0)
            else:
                images = fn.decoders.image_slice(encoded, **box, **decoder)
                linear = DALIInterpType.INTERP_LINEAR
                inside: dict[str, Any] = {
                    f"roi_{end}": fn.external_source(name=f"inside_{end}", dtype=DALIDataType.FLOAT, ndim=1)
                    for end in ("start", "end")
                }
                images = fn.resize(images, size=[size, size], interp_type=linear, antialias=True, **inside)
            pipe.set_outputs(fn.flip(images, horizontal=flip))
        pipe.build()
        return pipe

    def _finish(self, pipe: Pipeline | None, item: Drawn, encoded: list[np.ndarray]) -> Crops:
        """The pixels of a batch, copied: the pipeline reuses DALI's memory for its next batch."""
        if pipe is None:
            return torch.empty((0, self._params.size, self._params.size, 3), dtype=torch.uint8), *item
        with _told():
            if self._on_gpu:
                with torch.cuda.stream(self._stream):
                    (images,) = pipe.outputs(cuda_stream=self._stream)
                    pixels = torch.from_dlpack(images.as_tensor()).clone()
                self._stream.synchronize()
            else:
                (images,) = pipe.outputs()
                pixels = torch.from_numpy(images.as_array().copy())
        del encoded
        self._idle.append(pipe)
        return pixels, *item
