"""Samples, and encoding them one after another, in this process or in worker processes.

Owns the processes and what they are sent; one image is encoded in encoding.py. Invariant: the answers come in the order of the
samples and do not depend on the number of processes, and a streamed image is read by this process, in that order.
"""

import itertools
import multiprocessing
import os
import signal
import traceback
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipelines.errors import UserError
from pipelines.records.encoding import (
    Broken,
    Encoding,
    Lazy,
    Stored,
    StrPath,
    read_file,
    read_lazy,
    store_array,
    store_file,
)

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
        try:
            self.line, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, encoding), daemon=True)
            self.process.start()
        except OSError as error:  # the server of processes has a socket in the folder for temporary files
            raise UserError(
                f"no process that reads images can be started ({error.strerror or error}): set a folder for temporary files with "
                "a short name, by TMPDIR=FOLDER in front of the command, raise ulimit -u, or give fewer workers"
            ) from error
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
    """As encode, in processes, with bounded memory."""
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


def encode(samples: Samples, encoding: Encoding, workers: int) -> Generator[Stored | Unreadable, None, None]:
    """What to store for each sample, in their order. workers: processes; 0 or 1 = this one."""
    if workers > 1:
        yield from _encode_parallel(samples, encoding, workers)
    else:
        for sample in samples:
            yield encode_sample(sample, encoding)
