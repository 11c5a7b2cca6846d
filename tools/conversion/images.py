"""What a source of images hands on when they lie in files of many: each image under its path inside, and what reads it.

Owns the type, the class names and labels that such a file may bring, and what the readers of such files share. Invariant: paths
are relative, in their shortest spelling, and in an order that depends on the files alone.
"""

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar, NamedTuple

from pipelines.errors import UserError
from pipelines.records.encoding import Lazy
from pipelines.records.workers import Streamed


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one or several files that hold many."""

    where: str  # the files, for messages
    found: Mapping[str, Lazy | Streamed]  # by paths
    labels: list[int] | None = None  # in the same order, where the files give them
    class_names: list[str] | None = None  # of these labels
    others: list[str] = field(default_factory=list)  # an archive's files that are no images
    folders: list[str] = field(default_factory=list)  # which it names as such: empty ones, too; each ends in /
    numbered: bool = False  # the paths are running numbers, which mean nothing elsewhere
    by_stem: bool = False  # a list names an image whatever its suffix

    @property
    def streamed(self) -> bool:
        """Whether they can only be read in this order."""
        return any(isinstance(image, Streamed) for image in self.found.values())


class Entry(NamedTuple):
    """A file in an archive, a link to one, or a folder."""

    name: str  # its path, in the shortest spelling; that of a folder ends in /
    reader: Lazy | Streamed | None  # None for a link or folder
    target: str = ""  # of a link


class Forward:
    """Files that can only be read one after another. Asked for one that it has passed, it begins anew.

    begin: yields for each file, in order, a function that returns its bytes, which is called before the next one is asked for,
    or not at all. Only one Forward is open at a time: a data set may have more shards than a process can have open files.
    """

    _opened: ClassVar["Forward | None"] = None

    def __init__(self, where: str, begin: Callable[[], Generator[Callable[[], bytes], None, None]]) -> None:
        self._where, self._begin = where, begin
        self._next, self._rest = 0, begin()

    def _rewind(self) -> None:
        self._rest.close()
        self._next, self._rest = 0, self._begin()

    def read(self, number: int) -> bytes:
        if Forward._opened and Forward._opened is not self:
            Forward._opened._rewind()
        Forward._opened = self
        if number < self._next:
            self._rewind()
        contents = next(itertools.islice(self._rest, number - self._next, None), None)
        self._next = number + 1
        if contents is None:
            raise UserError(f"{self._where}: holds fewer files than when they were listed; type the command again")
        return contents()


@dataclass(frozen=True)
class InTurn(Streamed):
    """A file of a Forward."""

    source: Forward
    number: int

    def read(self) -> bytes:
        return self.source.read(self.number)


@functools.lru_cache(maxsize=64)
def _file(path: str) -> IO[bytes]:
    """A file of many images, opened once in each process."""
    return open(path, "rb", buffering=0)


def read_at(path: str, offset: int, size: int) -> bytes:
    """Bytes of an archive. OSError where it ends before."""
    data = os.pread(_file(path).fileno(), size, offset)
    if len(data) < size:
        raise OSError("the archive is truncated")
    return data


def in_words(paths: Sequence[Path]) -> str:
    """Files, for messages."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def refuse_repeated(paths: Sequence[Path], kind: str) -> None:
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path} is given twice; give each {kind} once")


def refuse_git_lfs(path: Path, head: bytes) -> None:
    """Refuse what a clone without Git LFS holds in place of a large file, by its first bytes."""
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself; type: git lfs pull")
