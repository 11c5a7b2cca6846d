"""Record files (.beton): images with keys, labels, names and checksums; written once, read by every backend."""

from pipelines.records.encoding import AS_THEY_ARE, Encoding, Lazy
from pipelines.records.layout import ROW, hash63, rows_digest, sample_key
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import UnreadableImages, check_output, copy_records, write_records

__all__ = [
    "AS_THEY_ARE",
    "ROW",
    "Encoding",
    "Lazy",
    "Records",
    "Sample",
    "UnreadableImages",
    "check_output",
    "copy_records",
    "hash63",
    "rows_digest",
    "sample_key",
    "write_records",
]
