"""A read-only view of a record file. Needs numpy only; decodes nothing.

Invariant: an opened file is whole. Everything but the images is checked on opening, the images by `verify`; whoever touches the
map later asks `require_whole` first, because a map of a file that was cut short ends the process (SIGBUS) without a word.
"""

import json
import mmap
import os
import shlex
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.errors import UserError, where_to_look
from pipelines.records.layout import (
    ALLOCATION,
    FFCV_VERSION,
    FIELD,
    FIELD_NAMES,
    FOOTER,
    FOOTER_MAGIC,
    FORMAT_NAME,
    FORMAT_VERSION,
    HEADER,
    MODE_RAW,
    PAGE_SIZE,
    ROW,
    TABLE,
    TABLE_START,
    field_descriptors,
    footer_crc,
    rows_digest,
)

AGAIN = "convert it again with tools/convert.py, or copy it again"
_RESTORE = "put the whole file back and run the same command again"


def _refusal(path: Path, what: str, advice: str = AGAIN) -> UserError:
    return UserError(f"{path}: {what}; {advice}")


def _folder_refusal(path: Path) -> UserError:
    """For a folder in place of a file: it holds records, or images that were not converted yet."""
    if names := sorted(file.name for file in path.glob("*.beton")):
        return _refusal(path, "is a folder", f"name the file in it, {' or '.join(names[:4])}")
    convert = f"python tools/convert.py folder --images {path} --out FILE.beton"
    return _refusal(path, "is a folder without records", f"convert its images: {convert}")


def _map_file(path: Path) -> mmap.mmap:
    """A read-only map of the whole file, long enough to hold header and field descriptors."""
    if path.is_dir():
        raise _folder_refusal(path)
    try:
        size = os.stat(path).st_size
        if size < TABLE_START:
            raise _refusal(path, f"the file is truncated or no record file: it has {size} bytes")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        there = "".join(f"{words}; " for words in where_to_look(path, lambda name: name.endswith(".beton")))
        raise _refusal(path, "no such record file", f"{there}write it with tools/convert.py") from None
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}", "check permissions and disk") from None


def _read_header(path: Path, data: np.ndarray) -> np.void:
    """The header (HEADER), after the checks that need nothing else of the file."""
    header = np.frombuffer(data, HEADER, 1)[0]
    if header["version"] != FFCV_VERSION:
        raise _refusal(path, f"no record file: FFCV version {FFCV_VERSION} expected, {header['version']} found")
    descriptors = np.frombuffer(data, FIELD, min(header["num_fields"], len(FIELD_NAMES)), HEADER.itemsize)
    if header["num_fields"] != len(FIELD_NAMES) or descriptors.tobytes() != field_descriptors().tobytes():
        names = ", ".join(bytes(d["name"]).split(b"\0")[0].decode("ascii", "replace") for d in descriptors)
        raise _refusal(
            path,
            f"an FFCV file, but not one of ours: fields {', '.join(FIELD_NAMES)} expected, {names} found",
            "convert the images with tools/convert.py, which adds keys, names and checksums",
        )
    if header["page_size"] != PAGE_SIZE:
        raise _refusal(path, f"page size {PAGE_SIZE} expected, {header['page_size']} found")
    return header


def _read_footer(path: Path, data: np.ndarray, header: np.void) -> np.void:
    """The footer (FOOTER), after checking that the file has the length the header implies."""
    end = int(header["alloc_table_ptr"])
    whole = end + int(header["num_samples"]) * ALLOCATION.itemsize
    start = end - FOOTER.itemsize
    if end > data.size:
        raise _refusal(path, f"the file is truncated: {data.size} bytes, {whole} expected")
    table_end = TABLE_START + int(header["num_samples"]) * TABLE.itemsize
    found = start >= table_end and data[start : start + 8].tobytes() == FOOTER_MAGIC
    if not found:
        raise _refusal(path, "no footer with checksums: damaged, or not written by tools/convert.py")
    if data.size != whole:
        kind = "truncated" if data.size < whole else "too long"
        raise _refusal(path, f"the file is {kind}: {data.size} bytes, {whole} expected")
    footer = np.frombuffer(data, FOOTER, 1, start)
    if footer_crc(footer) != footer["crc"][0]:
        raise _refusal(path, "the footer is damaged (CRC-32 differs)")
    if footer["version"][0] != FORMAT_VERSION:
        raise _refusal(path, f"record format {FORMAT_VERSION} expected, {footer['version'][0]} found")
    return footer[0]


def _section(path: Path, data: np.ndarray, what: str, start: int, size: int, crc: int) -> np.ndarray:
    """Bytes [start, start + size) of the file, after their checksum."""
    part = data[start : start + size]
    if part.size != size or zlib.crc32(part.data) != crc:
        raise _refusal(path, f"the {what} is damaged (CRC-32 differs)")
    return part


def _parse_manifest(path: Path, text: bytes, samples: int) -> dict[str, Any]:
    """The manifest, with the entries this module relies on checked for presence and agreement."""
    try:
        manifest = json.loads(text)
        same_classes = len(manifest["class_names"]) == len(manifest["class_counts"])
        same_samples = sum(manifest["class_counts"]) == manifest["samples"] == samples
        complete = manifest["format"] == FORMAT_NAME and {"digest", "made"} <= manifest.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(path, f"the manifest is not ours: {type(error).__name__}: {error}") from None
    if not (same_classes and same_samples and complete):
        raise _refusal(path, f"the manifest does not describe the {samples} samples of this file")
    return manifest


class Columns(NamedTuple):
    """What finds and decodes the stored images, in the form that compiled code takes: see the attributes of Records."""

    data: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray
    raw: np.ndarray
    stored_widths: np.ndarray
    stored_heights: np.ndarray


class Records:
    """A record file opened for reading: numpy columns in file order, image bytes by memory map.

    Attributes (N samples, C classes):
        path, manifest (dict), class_names (list[str]), num_classes, class_counts int64[C], digest (hex),
        keys, labels, sources int64[N]; widths, heights int32[N], of the ORIGINAL image, in pixels;
        stored_widths, stored_heights int32[N]; raw bool[N], True = raw RGB pixels, False = JPEG;
        offsets, sizes int64[N], of the stored bytes in the file; crcs uint32[N], of the stored bytes;
        data, the whole file as read-only uint8 memory map.
    Raises UserError when the file is missing, not ours, truncated or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map = _map_file(self.path)
        self.data = np.frombuffer(self._map, np.uint8)
        header = _read_header(self.path, self.data)
        footer = _read_footer(self.path, self.data, header)
        samples = int(header["num_samples"])
        self._read_columns(samples, int(header["alloc_table_ptr"]), footer)
        self._read_names(samples, footer)
        start, size = int(footer["manifest_offset"]), int(footer["manifest_size"])
        text = _section(self.path, self.data, "manifest", start, size, int(footer["manifest_crc"]))
        self.manifest = _parse_manifest(self.path, text.tobytes(), samples)
        self.class_names: list[str] = self.manifest["class_names"]
        self.num_classes = len(self.class_names)
        self.class_counts = np.array(self.manifest["class_counts"], np.int64)
        self.digest: str = self.manifest["digest"]
        self._check_columns(int(footer["names_offset"]))

    @property
    def grey_bits(self) -> int:
        """The bits that 16-bit grey was taken to use when its files were converted; a manifest says it where they are not 16."""
        encoding = self.manifest["made"].get("encoding") or {}
        return encoding.get("grey_bits", 16)

    def _read_columns(self, samples: int, allocation_start: int, footer: np.void) -> None:
        table_bytes = samples * TABLE.itemsize
        head_crc = int(footer["head_crc"])
        _section(self.path, self.data, "header or table of samples", 0, TABLE_START + table_bytes, head_crc)
        table = np.frombuffer(self.data, TABLE, samples, TABLE_START)
        size, crc = samples * ALLOCATION.itemsize, int(footer["allocation_crc"])
        _section(self.path, self.data, "allocation table", allocation_start, size, crc)
        allocation = np.frombuffer(self.data, ALLOCATION, samples, allocation_start)
        image = table["f0"]
        self.labels = table["f1"].astype(np.int64)
        self.keys = table["f2"].astype(np.int64)
        self.widths = table["f3"].astype(np.int32)
        self.heights = table["f4"].astype(np.int32)
        self.sources = table["f5"].astype(np.int64)
        self.crcs = table["f6"].astype(np.uint32)
        self.stored_widths = image["width"].astype(np.int32)
        self.stored_heights = image["height"].astype(np.int32)
        self.raw = image["mode"] == MODE_RAW
        self.offsets = image["data_ptr"].astype(np.int64)
        self.sizes = allocation["size"].astype(np.int64)
        same = np.array_equal(allocation["ptr"], image["data_ptr"])
        if not same or not np.array_equal(allocation["sample_id"], np.arange(samples, dtype=np.uint64)):
            raise _refusal(self.path, "the allocation table does not list the samples in their order")

    def _read_names(self, samples: int, footer: np.void) -> None:
        start, size = int(footer["names_offset"]), int(footer["names_size"])
        part = _section(self.path, self.data, "list of names", start, size, int(footer["names_crc"]))
        text_start = (samples + 1) * 8  # after uint64 offsets, one more than names
        if size < text_start:
            raise _refusal(self.path, "the list of names is too short")
        self._name_offsets = np.frombuffer(part, "<u8", samples + 1).astype(np.int64)
        self._name_bytes = part[text_start:]
        if self._name_offsets[-1] != self._name_bytes.size or (np.diff(self._name_offsets) < 0).any():
            raise _refusal(self.path, "the list of names does not fit its offsets")

    def _check_columns(self, images_end: int) -> None:
        """Refuse contents that make no sense, which intact checksums cannot rule out."""
        if not len(self):
            raise _refusal(self.path, "the file holds no samples")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            wrong = self.labels[(self.labels < 0) | (self.labels >= self.num_classes)][0]
            raise _refusal(self.path, f"label {wrong} is not among the manifest's {self.num_classes} classes")
        if not np.array_equal(np.bincount(self.labels, minlength=self.num_classes), self.class_counts):
            raise _refusal(self.path, "the class counts of the manifest differ from the labels")
        ends = self.offsets + self.sizes
        images_start = TABLE_START + len(self) * TABLE.itemsize
        inside = (self.sizes > 0) & (self.offsets >= images_start) & (ends <= images_end)
        one_page = self.offsets // PAGE_SIZE == (ends - 1) // PAGE_SIZE
        placed = inside & one_page
        if not placed.all():
            raise _refusal(self.path, f"record {int(np.argmin(placed))} points outside the pages of images")
        pixels = 3 * self.stored_widths.astype(np.int64) * self.stored_heights
        if (pixels == 0).any() or (self.sizes != pixels)[self.raw].any():
            raise _refusal(self.path, "the sizes of some images do not fit their bytes")
        rows = self.rows()
        if (np.diff(rows["key"]) == 0).any():
            raise _refusal(self.path, "two records have the same key")
        if rows_digest(rows) != self.digest:
            raise _refusal(self.path, "the table of samples does not have the manifest's digest")

    def __reduce__(self) -> tuple[type["Records"], tuple[Path]]:
        """Pickling sends the path alone: another process makes its own memory map."""
        return Records, (self.path.absolute(),)

    def __len__(self) -> int:
        return self.keys.size

    def columns(self) -> Columns:
        """The columns that decoding needs; to be made once, as each of them is looked at."""
        r = self
        return Columns(r.data, r.offsets, r.sizes, r.crcs, r.raw, r.stored_widths, r.stored_heights)

    def rows(self) -> np.ndarray:
        """ROW[N] sorted by key."""
        rows = np.empty(len(self), ROW)
        order = np.argsort(self.keys, kind="stable")
        for field, column in zip(
            ROW.names or (), (self.keys, self.labels, self.widths, self.heights, self.sources), strict=True
        ):
            rows[field] = column[order]
        return rows

    def require_whole(self) -> None:
        """UserError if the file is no longer as long as its map; to be asked once a batch, before any byte of it is touched.

        It costs less than a microsecond: the map has a descriptor of its own file, whatever the name now belongs to.
        """
        try:
            size = self._map.size()
        except OSError as error:
            raise _refusal(self.path, f"can no longer be read ({error.strerror})", _RESTORE) from error
        if size != self.data.size:
            raise _refusal(
                self.path,
                f"has {size} bytes, and had {self.data.size} when it was opened: it was changed in use",
                _RESTORE,
            )

    def name(self, position: int) -> str:
        """The name of one sample."""
        self.require_whole()
        start, end = self._name_offsets[position], self._name_offsets[position + 1]
        return self._name_bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def payload(self, position: int) -> np.ndarray:
        """The stored bytes of one image, JPEG or raw RGB pixels row by row: a read-only uint8 view."""
        self.require_whole()
        start = self.offsets[position]
        return self.data[start : start + self.sizes[position]]

    def verify(self, position: int) -> None:
        """Raise UserError unless the stored bytes of one image have the CRC-32 they were written with."""
        found = zlib.crc32(self.payload(position).data)
        if found != self.crcs[position]:
            written = f"{self.crcs[position]:08x}"
            raise self.damaged(position, f"is damaged: CRC-32 {found:08x}, {written} was written")

    def damaged(self, position: int, what: str) -> UserError:
        """The error to raise when the image of one sample cannot be used; `what` completes a sentence."""
        key, name = self.keys[position], self.name(position)
        repaired = self.path.with_name(f"{self.path.stem}-repaired.beton")
        command = shlex.join(["python", "tools/convert.py", "repair", str(self.path), "--out", str(repaired)])
        advice = f"{AGAIN}; to rebuild the file without it type: {command}"
        return _refusal(self.path, f"the image of record {position} (key {key}, {name}) {what}", advice)
