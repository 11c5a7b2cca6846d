"""Decoding and cropping: four backends, one contract."""

from pipelines.backends.choice import available_backends, make_backend, refusal, resolve_backend
from pipelines.backends.contract import Backend, Crops, Drawn
from pipelines.backends.pixels import PixelSource, pixel_source

__all__ = [
    "Backend",
    "Crops",
    "Drawn",
    "available_backends",
    "make_backend",
    "PixelSource",
    "pixel_source",
    "refusal",
    "resolve_backend",
]
