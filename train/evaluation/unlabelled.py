"""Images without labels, part by part: those of a folder, a single one, or those of a record file.

Owns how files become records for a moment: by the rule of conversion, into a temporary file that has lost its name before it is
read. Invariant: an image comes to the network with the pixels that the same file has in converted records, or it is listed as
unreadable.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from accelerate.utils import broadcast_object_list

from pipelines.errors import UserError
from pipelines.folders import IMAGE_SUFFIXES, folder_files, is_image, note_left_out
from pipelines.loader import default_workers
from pipelines.order import evaluation_shard
from pipelines.records.encoding import AS_THEY_ARE, Encoding, Note, Stored
from pipelines.records.reader import Records
from pipelines.records.workers import CHUNK, Sample, Unreadable
from pipelines.records.writing import UnreadableImages, write_records
from train.run.agreement import require_alike

# What the files of a part have at most. The temporary file is larger where they are no JPEGs, as it keeps what they show at
# quality 95: often three times as large, of small files with text many times.
_PART_IMAGES, _PART_BYTES = 4096, 2**29 // 3


class Part(NamedTuple):
    """What one process has of a part of the images, in their order."""

    size: int
    "how many images the part has, on all processes together"
    records: Records | None
    "None: there is none that can be read"
    positions: np.ndarray
    "int64 [n]: in the records"
    unreadable: list[Unreadable]
    noted: Sequence[tuple[str, Note]] = ()
    "by the names of the images"


class Images(Protocol):
    """Images that can be counted, and walked through in parts, the same ones on all processes."""

    def __len__(self) -> int: ...

    def parts(self, rank: int, world: int) -> Iterator[Part]: ...


class RecordedImages:
    """Those of a record file; one that is damaged is an error, as in an evaluation."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def parts(self, rank: int, world: int) -> Iterator[Part]:
        for first in range(0, len(self), _PART_IMAGES):
            size = min(_PART_IMAGES, len(self) - first)
            yield Part(size, self._records, first + evaluation_shard(size, rank, world), [])


class ImageFiles:
    """Image files, by their names below `root`, in parts."""

    def __init__(
        self,
        root: Path,
        names: list[list[str]],
        workers: int | None = None,
        grey_bits: int = AS_THEY_ARE.grey_bits,
    ) -> None:
        self._root, self._names = root, names
        self._workers = workers or default_workers()
        self._encoding = Encoding(grey_bits=grey_bits)

    def __len__(self) -> int:
        return sum(map(len, self._names))

    def parts(self, rank: int, world: int) -> Iterator[Part]:
        for names in self._names:
            own = [names[i] for i in evaluation_shard(len(names), rank, world)]
            yield self._recorded(own, len(names))

    def _recorded(self, names: list[str], size: int) -> Part:
        if not names:
            return Part(size, None, np.empty(0, np.int64), [])
        samples = [Sample(name, 0, str(self._root / name)) for name in names]
        # Starting a process costs more than encoding a few images.
        workers = min(self._workers, len(samples) // (2 * CHUNK))
        noted: list[tuple[str, Note]] = []

        def note(name: str, stored: Stored) -> None:
            noted.extend((name, one) for one in stored.notes)

        with tempfile.TemporaryDirectory(prefix="images-") as folder:
            file = Path(folder) / "images.beton"
            try:
                bad = write_records(
                    file,
                    samples,
                    ["unlabelled"],
                    kind="prediction",
                    encoding=self._encoding,
                    workers=workers if workers > 1 else 0,
                    skip_bad=True,
                    noted=note,
                )
            except UnreadableImages as error:
                return Part(size, None, np.empty(0, np.int64), list(error.images))
            records = Records(file)  # a map, which outlives the name
        return Part(size, records, np.arange(len(records)), bad, noted)


def open_images(
    path: Path,
    workers: int | None = None,
    is_main: bool = True,
    grey_bits: int = AS_THEY_ARE.grey_bits,
) -> Images:
    """The images of a folder (nested ones too), an image file or a record file; UserError where there are none.

    Several processes call it together, one of them with `is_main`: all get what that one finds, as a folder may change from one
    look to the next. workers: processes that read files; None = this process's share of the cores. grey_bits: what 16-bit grey
    uses.
    """
    listed: tuple[Path, list[list[str]]] | None = None
    failure: str | None = None
    if is_main:
        try:
            listed = _listed(path)
        except UserError as error:  # the others wait
            failure = str(error)
    listed, failure = broadcast_object_list([listed, failure])
    if failure is not None:
        raise UserError(failure)
    if listed is None:
        records = Records(path)
        require_alike(
            {str(path): records.digest}, "the processes see different images", "give records that all machines share"
        )
        return RecordedImages(records)
    root, names = listed
    return ImageFiles(root, names, workers, grey_bits)


def _listed(path: Path) -> tuple[Path, list[list[str]]] | None:
    """Root and parts of the image files; None: it is a record file."""
    if path.is_dir():
        files = [name for name, _ in folder_files(path, {})]
        names = [name for name in files if is_image(name)]
        if not names:
            raise UserError(f"{path}: no images in this folder, nor below it ({' '.join(sorted(IMAGE_SUFFIXES))})")
        note_left_out([name for name in files if not is_image(name)])
        return path, list(_cut(path, names))
    if path.suffix == ".beton":
        return None
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; give a folder of images, an image or a record file (.beton)")
    return path.parent, [[path.name]]


def _cut(root: Path, names: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name in names:
        own = _size_of(root / name)
        if part and (len(part) == _PART_IMAGES or size + own > _PART_BYTES):
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    yield part


def _size_of(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0  # it will be listed as unreadable
