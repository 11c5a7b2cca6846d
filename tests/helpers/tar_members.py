"""Images in an uncompressed tar file, read by offset: a source that needs no temporary files."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.records.workers import Sample


class Member(NamedTuple):
    """Where the bytes of one image lie."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the archive is truncated")
        return data


class TarSamples:
    """The members of a tar file, read again at each iteration."""

    def __init__(self, path: Path):
        self._path = path
        with tarfile.open(path, "r:") as archive:
            self._members = [(member.name, member.offset_data, member.size) for member in archive]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sample]:
        for name, offset, size in self._members:
            yield Sample(name, 0, Member(self._path, offset, size))
