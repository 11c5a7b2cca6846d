"""The layout of a record file (.beton) on disk: FFCV's container, version 2, as the stock Loader reads it.

    header | field descriptors | table of samples | pages of images | names | manifest | footer | allocations

Names, a JSON manifest and checksums lie before FFCV's allocation table. Owns the dtypes, the keys of samples and the digest of a
data set; opens no file.
"""

import hashlib
import zlib
from typing import Any

import numpy as np

FORMAT_NAME = "dive-records"
FORMAT_VERSION = 1
FFCV_VERSION = 2
PAGE_SIZE = 1 << 23  # bytes; no image crosses a page, and pages start at multiples of it in the file
FIELD_NAMES = ("image", "label", "key", "width", "height", "source", "crc")
FIELD_TYPES = (2, 1, 1, 1, 1, 1, 1)  # FFCV's type ids: 2 RGBImageField, 1 IntField
MODE_JPEG, MODE_RAW = 0, 1
# The dtypes of ffcv.types, spelled out so that no reader needs FFCV (a test compares them).
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
TABLE = np.dtype([("", IMAGE)] + [("", "<i8")] * 6, align=True)  # FFCV's column names: f0 (image) .. f6 (crc)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
TABLE_START = HEADER.itemsize + len(FIELD_NAMES) * FIELD.itemsize
# Ours. `head` is everything before the images: header, descriptors, table; `crc` covers the other bytes of the footer.
FOOTER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("head_crc", "<u4"),
        ("names_crc", "<u4"),
        ("manifest_crc", "<u4"),
        ("allocation_crc", "<u4"),
        ("names_offset", "<u8"),
        ("names_size", "<u8"),
        ("manifest_offset", "<u8"),
        ("manifest_size", "<u8"),
        ("crc", "<u4"),
    ]
)
FOOTER_MAGIC = b"DiVErec1"
# What a logit cache knows about a sample; width and height are those of the ORIGINAL image, in pixels.
ROW = np.dtype([("key", "<i8"), ("label", "<i8"), ("width", "<i4"), ("height", "<i4"), ("source", "<i8")])
LOW_63_BITS = (1 << 63) - 1


def hash63(data: Any) -> int:
    """Low 63 bits of blake2b over a buffer: the widest hash that FFCV's signed 64-bit IntField holds."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & LOW_63_BITS


def encode_name(name: str) -> bytes:
    """UTF-8; bytes of a file name that are not UTF-8 survive the round trip."""
    return name.encode("utf-8", "surrogateescape")


def sample_key(name: str) -> int:
    """The 63-bit identity of a sample in views, caches and predictions: it depends on its name alone."""
    return hash63(encode_name(name))


def rows_digest(rows: np.ndarray) -> str:
    """Identity of a data set: 32 hex digits over its ROW rows sorted by key; class names are left out."""
    ordered = rows[np.argsort(rows["key"], kind="stable")]
    return hashlib.blake2b(ordered.astype(ROW, copy=False).tobytes(), digest_size=16).hexdigest()


def field_descriptors() -> np.ndarray:
    """FFCV's description of our fields, FIELD[7]."""
    descriptors = np.zeros(len(FIELD_NAMES), FIELD)
    descriptors["type_id"] = FIELD_TYPES
    for descriptor, name in zip(descriptors, FIELD_NAMES, strict=True):
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return descriptors


def footer_crc(footer: np.ndarray) -> int:
    """CRC-32 of a footer (FOOTER[1]) without its last field."""
    return zlib.crc32(footer.tobytes()[: FOOTER.fields["crc"][1]])  # type: ignore[index]
