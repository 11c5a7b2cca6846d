"""Decoding and cropping: four backends, one contract."""

from pipelines.backends.choice import available_backends, make_backend, pixel_source, refusal, resolve_backend
from pipelines.backends.contract import Backend, Crops, Drawn, to_device

__all__ = [
    "Backend",
    "Crops",
    "Drawn",
    "available_backends",
    "make_backend",
    "pixel_source",
    "refusal",
    "resolve_backend",
    "to_device",
]
