"""Writing record files: images in, one .beton out (layout: layout.py; one image: encoding.py).

Owns the worker processes, the sections of the file and its temporary name. Files are stored as JPEG, arrays as raw
pixels, images of another record file unchanged. Knows nothing about data sets, lists or folders.
Invariant: the bytes written depend on the samples, the options and the decoder named in the manifest, not on
the number of workers, the host or the time; and a file under its final name is complete.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import traceback
import warnings
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import PIL

from pipelines.errors import UserError
from pipelines.files import Held, fsync_folder, lock
from pipelines.records import layout
from pipelines.records.encoding import (
    AS_THEY_ARE,
    Broken,
    Encoding,
    Lazy,
    Stored,
    StrPath,
    decoder_name,
    read_file,
    read_lazy,
    store_array,
    store_file,
)
from pipelines.records.reader import Records
from pipelines.records.restarts import lists_segments

CHUNK = 16  # samples sent at a time: large enough to hide the cost of sending, small enough to bound memory
CHUNKS_PER_WORKER = 3  # being encoded, or waiting to be written


class Streamed(ABC):
    """An image of a source that can only be read from its start to its end, such as a compressed archive.

    The parent reads it and sends its bytes to a worker: were the workers to read, each would go through the whole source. It is
    read when its turn comes, in the order of the samples, which should be that of the source. It never leaves the process.
    """

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of an image file. Raises UserError, which ends the conversion, where the source is damaged."""


class Sample(NamedTuple):
    """One image to write: a file's path or bytes, RGB pixels uint8[height, width, 3], or what reads one of these in its turn."""

    name: str
    label: int
    image: StrPath | bytes | np.ndarray | Lazy | Streamed


class Samples(Protocol):
    """Samples that can be counted, and walked through again and again: a list, or what makes them anew each time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


class Unreadable(NamedTuple):
    """One image that cannot be read or stored, and why, in words."""

    name: str
    reason: str


Answer = Stored | Unreadable | Exception


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


def encode_sample(sample: Sample, encoding: Encoding) -> Stored | Unreadable:
    """What to store for one sample. Raises UserError for a fault of the machine."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata and large images do not matter here
            return _encoded(sample, encoding)
    except Broken as error:
        return Unreadable(sample.name, str(error))
    except UserError as error:
        raise UserError(f"{sample.name}: {error}") from None
    except Exception as error:
        raise RuntimeError(f"while converting {sample.name}") from error


def _encoded(sample: Sample, encoding: Encoding) -> Stored:
    image = sample.image
    if isinstance(image, (str, os.PathLike)):
        image = read_file(image)
    elif isinstance(image, Streamed):
        image = image.read()
    elif not isinstance(image, (np.ndarray, bytes)):
        image = read_lazy(image)
    return store_array(image) if isinstance(image, np.ndarray) else store_file(image, encoding)


def _sendable(sample: Sample) -> Sample:
    """The sample as another process can have it."""
    return sample._replace(image=sample.image.read()) if isinstance(sample.image, Streamed) else sample


def _work(tasks: Connection, encoding: Encoding) -> None:
    """The loop of a worker: receive samples and answer each in turn, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; only the parent reacts
    try:
        while True:
            for sample in tasks.recv():
                try:
                    tasks.send(encode_sample(sample, encoding))
                except (UserError, RuntimeError) as error:
                    error.add_note(traceback.format_exc())
                    tasks.send(error)
    except (EOFError, OSError):
        return


class _Worker:
    """One process and our end of its pipe.

    Each worker has a pipe of its own. concurrent.futures has one for all, where a worker killed while it sends leaves
    the others and the parent waiting for ever. The process is not forked: the caller may have threads (a progress
    bar, torch), and a fork inherits their locks locked.
    """

    def __init__(self, encoding: Encoding) -> None:
        context = multiprocessing.get_context("forkserver")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, encoding), daemon=True)
        self.process.start()
        theirs.close()
        self.todo: deque[tuple[int, str]] = deque()  # numbers and names

    def give(self, first: int, samples: Sequence[Sample]) -> None:
        """Send samples, numbered from `first`; only to an idle worker, which is known to be receiving."""
        self.todo.extend(enumerate((sample.name for sample in samples), first))
        try:
            self.line.send(samples)
        except OSError:
            raise self._death() from None

    def take(self) -> tuple[int, Answer]:
        """The next answer, with its sample's number."""
        try:
            answer = self.line.recv()
        except (EOFError, OSError):
            raise self._death() from None
        return self.todo.popleft()[0], answer

    def _death(self) -> UserError:
        return UserError(
            f"{self.todo[0][1]}: the worker that converted it died: killed, out of memory (use fewer "
            "--workers), or a crash of the decoder (remove or repair this file)"
        )

    def stop(self) -> None:
        self.line.close()
        self.process.kill()  # it is idle, or its work is no longer needed
        self.process.join()


def _encode_parallel(samples: Samples, encoding: Encoding, workers: int) -> Generator[Stored | Unreadable, None, None]:
    """As encode_sample, in processes, in the order of the samples, with bounded memory."""
    team: dict[Any, _Worker] = {}
    ahead = workers * CHUNKS_PER_WORKER * CHUNK
    answers: dict[int, Answer] = {}
    given = taken = 0
    source = iter(samples)
    try:
        for _ in range(min(workers, -(-len(samples) // CHUNK))):
            worker = _Worker(encoding)
            team[worker.line] = worker
        while taken < len(samples):
            for worker in team.values():
                if not worker.todo and given < len(samples) and given + CHUNK <= taken + ahead:
                    chunk = [_sendable(sample) for sample in itertools.islice(source, CHUNK)]
                    if not chunk:
                        raise ValueError(f"{len(samples)} samples were promised, {given} came")
                    worker.give(given, chunk)
                    given += len(chunk)
            for line in connection.wait([line for line, worker in team.items() if worker.todo]):
                number, answer = team[line].take()
                answers[number] = answer
            while taken in answers:
                answer = answers.pop(taken)
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                taken += 1
    finally:
        for worker in team.values():
            worker.stop()


def _encode(samples: Samples, encoding: Encoding, workers: int) -> Generator[Stored | Unreadable, None, None]:
    if workers > 1:
        yield from _encode_parallel(samples, encoding, workers)
    else:
        for sample in samples:
            yield encode_sample(sample, encoding)


def check_output(path: Path, force: bool) -> None:
    """Raise UserError unless `path` may be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / 'train.beton'}")
    if path.exists() and not force:
        raise UserError(f"{path} exists; add --force to overwrite it, or name another file")


@contextlib.contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """A locked file beside `path` that takes its name on success and is removed on any error.

    Its name is fixed, so that a later run overwrites what a killed one left; the lock refuses a second writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with open(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666), "wb", buffering=1 << 20) as file:
        _lock(file, temporary)
        try:
            file.truncate(0)
            yield file
            file.flush()
            Records(temporary)  # check that it opens before it becomes visible
            os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink()
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


def _check_samples(samples: Samples, num_classes: int) -> np.ndarray:
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
def _new_file(target: Path, samples: int) -> Iterator[_Writer]:
    """The writer of a file that becomes visible, as a whole, only if the with block succeeds."""
    try:
        with _published(target) as file:
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
    keys = _check_samples(samples, len(class_names))
    made: dict[str, Any] = {"kind": kind, "options": options or {}}
    bad: list[Unreadable] = []
    modes: set[int] = set()
    with _new_file(target, len(samples)) as writer, contextlib.closing(_encode(samples, encoding, workers)) as encoded:
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
    with _new_file(target, len(positions)) as writer:
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
