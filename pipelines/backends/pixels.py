"""What decides the pixels of a view besides recipe and record, as a type: it is part of a cache's identity.

Invariant: `parse` of the text in an identity gives the source that wrote it, and two sources are equal only if their pixels are.
"""

from typing import NamedTuple

import torch

from pipelines.records.reader import Records


class PixelSource(NamedTuple):
    """decoder: the backend that decodes, or `raw`: nothing does, and all backends give equal pixels; variant: of that decoder."""

    decoder: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.decoder} {self.variant}".rstrip()

    @classmethod
    def parse(cls, text: str) -> "PixelSource":
        """From the text that `str` gives, as it stands in a cache's identity and in a run's facts."""
        return cls(*text.split(" ", 1))

    @property
    def backend(self) -> str | None:
        """The backend that gives these pixels; None where every backend does."""
        return None if self.decoder == RAW else self.decoder

    @property
    def hw_decoder_load(self) -> float:
        """The share of the images that a GPU's hardware JPEG decoder took."""
        return float(self.variant.partition(_HARDWARE)[2] or 0)


RAW = "raw"
_HARDWARE = " hardware "


def pixel_source(backend: str, records: Records, device: torch.device, hw_decoder_load: float = 0.0) -> PixelSource:
    """The source of the pixels of `records` under a backend on `device`; hw_decoder_load: data's, of dali on a GPU."""
    if records.raw.all():  # no decoder, and the same resampler in every backend that reads them
        return PixelSource(RAW)
    if backend == "dali":
        from nvidia.dali import __version__

        if device.type != "cuda":
            return PixelSource(backend, f"cpu {__version__}")
        hardware = f"{_HARDWARE}{hw_decoder_load:g}" if hw_decoder_load else ""
        return PixelSource(backend, f"mixed {__version__}{hardware}")
    if backend == "ffcv":
        return PixelSource(backend, "exact")  # the DCT; no word stood there when it was the fast one, of other pixels
    return PixelSource(backend)
