"""Writing record files: images in, one .beton out (layout: layout.py; one image: encoding.py; many: workers.py).

Owns the sections of the file and its temporary name. Files are stored as JPEG, arrays as raw pixels, images of another record
file unchanged. Knows nothing about data sets, lists or folders.
Invariant: the bytes written depend on the samples, the options and the decoder named in the manifest, not on
the number of workers, the host or the time; and a file under its final name is complete.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL

from pipelines.errors import UserError
from pipelines.files import Held, check_folder_place, fsync_folder, lock
from pipelines.records import layout
from pipelines.records.encoding import AS_THEY_ARE, Encoding, Stored, StrPath, decoder_name
from pipelines.records.reader import Records
from pipelines.records.restarts import lists_segments
from pipelines.records.workers import Samples, Unreadable, encode


class UnreadableImages(UserError):
    """Raised after all samples were tried; `images` lists every one that cannot be read."""

    def __init__(self, images: Sequence[Unreadable], samples: int) -> None:
        first = images[0]
        advice = "repair or remove them, or leave them out with --skip-bad"
        if len(images) == samples:
            advice = "check the folder and the list given"
        super().__init__(
            f"{len(images)} of {samples} images cannot be read, first {first.name} ({first.reason}); {advice}"
        )
        self.images = images


def check_output(path: Path, force: bool) -> None:
    """Raise UserError unless `path` may be written, and can be; leaves no trace."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / 'train.beton'}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a pipe, socket or device; name a file to write, such as data/train.beton")
    _require_free(path, force)
    check_folder_place(path.parent, str(path))


def _require_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UserError(f"{path} exists; add --force to overwrite it, or name another file")


@contextlib.contextmanager
def _published(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """A locked file beside `path` that takes its name on success and is removed on any error.

    force: replace a file of that name, which another process may have written since it was looked for.

    Its name is fixed, so that a later run overwrites what a killed one left; the lock refuses a second writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with open(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666), "wb", buffering=1 << 20) as file:
        _lock(file, temporary)
        try:
            _require_free(path, force)
            file.truncate(0)
            yield file
            file.flush()
            Records(temporary)  # check that it opens before it becomes visible
            os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # a Ctrl-C may come just after it took its name
            raise
    fsync_folder(path.parent)


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file before it is written from its start."""
    try:
        lock(file.fileno())
        mine = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (Held, FileNotFoundError):
        mine = False
    if not mine:  # another run holds the lock, or published or removed the file between our open and our lock
        raise UserError(f"{path}: another conversion is writing this file; wait for its end")


def check_samples(samples: Samples, num_classes: int) -> np.ndarray:
    """The samples' keys, int64[N], after checking that there are some, with fit labels and different keys."""
    if not len(samples):
        raise UserError("there are no images to write")
    if iter(samples) is samples:
        raise ValueError("samples are walked through more than once: an iterator will not do")
    keys = np.empty(len(samples), np.int64)
    for number, sample in enumerate(samples):
        keys[number] = layout.sample_key(sample.name)
        if not 0 <= sample.label < num_classes:
            raise UserError(f"{sample.name}: label {sample.label} is not in 0..{num_classes - 1}, the classes given")
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(np.diff(keys[order]) == 0)
    if equal.size:
        first, second = order[equal[0] : equal[0] + 2].tolist()
        names = {number: sample.name for number, sample in enumerate(samples) if number in (first, second)}
        raise UserError(
            f"{equal.size} images have the key of another, such as {names[first]} (image {first + 1}) "
            f"and {names[second]} (image {second + 1}); every image needs a name of its own"
        )
    return keys


class _Writer:
    """The sections of one file, to which images are added in order."""

    def __init__(self, file: IO[bytes], samples: int) -> None:
        self.file = file
        self.table = np.zeros(samples, layout.TABLE)
        self.allocation = np.zeros(samples, layout.ALLOCATION)
        self.names: list[bytes] = []
        self.restarts = 0  # images of which a part can be decoded alone
        # As in FFCV, images start at the first page after the table, which has room for unreadable samples too.
        head = layout.TABLE_START + self.table.nbytes
        self.position = file.seek(-(-head // layout.PAGE_SIZE) * layout.PAGE_SIZE)

    def add(self, name: str, label: int, key: int, stored: Stored) -> None:
        """Write one image, without crossing a page, and its rows of both tables."""
        size, number = len(stored.payload), len(self.names)
        room = layout.PAGE_SIZE - self.position % layout.PAGE_SIZE
        if size > room:
            self.position = self.file.seek(self.position + room)
        self.file.write(stored.payload)
        image = (stored.mode, stored.stored_width, stored.stored_height, self.position)
        crc = zlib.crc32(stored.payload)
        if stored.mode == layout.MODE_JPEG:
            self.restarts += lists_segments(np.frombuffer(stored.payload, np.uint8))
        self.table[number] = (image, label, key, stored.width, stored.height, stored.source, crc)
        self.allocation[number] = (number, self.position, size)
        self.names.append(layout.encode_name(name))
        self.position += size

    def finish(self, class_names: Sequence[str], made: dict[str, Any]) -> None:
        """Write everything but the images."""
        samples = len(self.names)
        table, allocation = self.table[:samples], self.allocation[:samples].tobytes()
        names, manifest = _names_section(self.names), _manifest(table, class_names, made, self.restarts)
        footer = np.zeros(1, layout.FOOTER)
        after = self.position + len(names) + len(manifest) + footer.nbytes
        header = np.array(
            [(layout.FFCV_VERSION, len(layout.FIELD_NAMES), layout.PAGE_SIZE, samples, after)],
            layout.HEADER,
        )
        head = header.tobytes() + layout.field_descriptors().tobytes() + table.tobytes()
        footer["magic"], footer["version"] = layout.FOOTER_MAGIC, layout.FORMAT_VERSION
        footer["head_crc"], footer["allocation_crc"] = zlib.crc32(head), zlib.crc32(allocation)
        footer["names_crc"], footer["manifest_crc"] = zlib.crc32(names), zlib.crc32(manifest)
        footer["names_offset"], footer["names_size"] = self.position, len(names)
        footer["manifest_offset"], footer["manifest_size"] = self.position + len(names), len(manifest)
        footer["crc"] = layout.footer_crc(footer)
        self.file.write(names + manifest + footer.tobytes() + allocation)
        self.file.seek(0)
        self.file.write(head)


@contextlib.contextmanager
def _new_file(target: Path, samples: int, force: bool) -> Iterator[_Writer]:
    """The writer of a file that becomes visible, as a whole, only if the with block succeeds."""
    try:
        with _published(target, force) as file:
            yield _Writer(file, samples)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error


def _names_section(names: Sequence[bytes]) -> bytes:
    offsets = np.zeros(len(names) + 1, "<u8")
    np.cumsum([len(name) for name in names], out=offsets[1:])
    return offsets.tobytes() + b"".join(names)


def _manifest(table: np.ndarray, class_names: Sequence[str], made: dict[str, Any], restarts: int) -> bytes:
    rows = np.empty(table.size, layout.ROW)
    for field in ("key", "label", "width", "height", "source"):
        rows[field] = table[f"f{layout.FIELD_NAMES.index(field)}"]
    manifest = {
        "format": layout.FORMAT_NAME,
        "version": layout.FORMAT_VERSION,
        "class_names": list(class_names),
        "class_counts": np.bincount(rows["label"], minlength=len(class_names)).tolist(),
        "samples": table.size,
        "digest": layout.rows_digest(rows),
        "made": made,
    }
    if restarts:
        manifest["restarts"] = restarts
    return json.dumps(manifest, sort_keys=True, indent=1).encode("ascii")


def write_records(
    path: StrPath,
    samples: Samples,
    class_names: Sequence[str],
    *,
    kind: str,
    options: dict[str, Any] | None = None,
    encoding: Encoding = AS_THEY_ARE,
    workers: int = 1,
    skip_bad: bool = False,
    force: bool = False,
    progress: Callable[[], None] | None = None,
    noted: Callable[[str, Stored], None] | None = None,
) -> list[Unreadable]:
    """Write one record file, whole or not at all, and return the unreadable images that `skip_bad` left out.

    samples: all files or all arrays, whether lazy or not; they keep their order. Only a few are held at a time: an iterable with
    a length need not hold them either.
    kind, options: how the data set was made, for the manifest; no paths of this machine, no times.
    encoding: for files. workers: processes that read and encode, 0 or 1 = none. progress: called per image.
    noted: called with the name of each stored image that has notes, in order.
    Raises UnreadableImages after trying every sample; UserError for labels, names, an existing file, a
    full disk, no memory, an image on which a worker died.
    """
    target = Path(path)
    check_output(target, force)
    keys = check_samples(samples, len(class_names))
    made: dict[str, Any] = {"kind": kind, "options": options or {}}
    bad: list[Unreadable] = []
    modes: set[int] = set()
    with (
        _new_file(target, len(samples), force) as writer,
        contextlib.closing(encode(samples, encoding, workers)) as encoded,
    ):
        for sample, key, stored in zip(samples, keys, encoded, strict=True):
            if isinstance(stored, Unreadable):
                bad.append(stored)
            else:
                writer.add(sample.name, sample.label, key, stored)
                modes.add(stored.mode)
                if len(modes) > 1:
                    raise ValueError("a record file holds either files or arrays, not both")
                if noted and stored.notes:
                    noted(sample.name, stored)
            if progress:
                progress()
        if bad and (not skip_bad or len(bad) == len(samples)):
            raise UnreadableImages(bad, len(samples))
        if layout.MODE_JPEG in modes:
            made |= {"encoding": encoding.recorded(), "decoder": decoder_name(), "pillow": PIL.__version__}
        writer.finish(class_names, made | {"skipped": [image.name for image in bad]})
    return bad


def copy_records(
    path: StrPath,
    source: Records,
    positions: Sequence[int],
    made: dict[str, Any],
    *,
    force: bool = False,
    progress: Callable[[], None] | None = None,
) -> None:
    """Write some records of another file unchanged, in the order of `positions`, whole or not at all.

    made: how the new file came about, for its manifest. progress: called per image. The class names stay the same.
    Raises UserError for an image whose checksum fails, an existing file, a full disk.
    """
    target = Path(path)
    check_output(target, force)
    with _new_file(target, len(positions), force) as writer:
        for position in positions:
            source.verify(position)
            columns = source.widths, source.heights, source.stored_widths, source.stored_heights, source.sources
            mode = layout.MODE_RAW if source.raw[position] else layout.MODE_JPEG
            stored = Stored(
                source.payload(position).data, mode, *(int(column[position]) for column in columns), notes=()
            )
            writer.add(source.name(position), int(source.labels[position]), int(source.keys[position]), stored)
            if progress:
                progress()
        writer.finish(source.class_names, made)
