"""Who decodes and crops: four backends, one contract."""

from pipelines.backends.choice import available_backends, make_backend, pixel_source, refusal, resolve_backend
from pipelines.backends.contract import Backend, BatchPlan, Crops, boxes_of, to_device

__all__ = [
    "Backend",
    "BatchPlan",
    "Crops",
    "available_backends",
    "boxes_of",
    "make_backend",
    "pixel_source",
    "refusal",
    "resolve_backend",
    "to_device",
]
