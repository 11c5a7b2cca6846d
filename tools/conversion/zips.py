"""Members of zip archives: where each lies, and reading one.

Owns the bytes of a member, whose checksum is compared. Invariant: a member is read without the archive's directory, which for an
archive of a million images takes seconds and much memory to load.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError, quoted
from tools.conversion.images import Entry, read_at

HEADER = 30  # bytes of a member's header in front of its name and extra field, whose lengths are the last four


class ZipMember(NamedTuple):
    """A file in a zip archive. A Lazy."""

    path: str
    header: int  # its offset
    size: int  # in the archive
    deflated: bool
    crc: int

    def __call__(self) -> bytes:
        head = read_at(self.path, self.header, HEADER)
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        data = read_at(self.path, self.header + HEADER + lengths, self.size)
        if self.deflated:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        if zlib.crc32(data) != self.crc:
            raise OSError("its checksum in the archive differs")
        return data


def zip_entries(path: Path) -> Iterator[Entry]:
    """The files and folders of a zip archive in the order of its directory."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = posixpath.normpath(member.filename.lstrip("/"))
            if member.is_dir():
                yield Entry(f"{name}/", None)
                continue
            if member.flag_bits & 1:
                raise UserError(f"{path}: {quoted(member.filename)} is encrypted; unpack the archive with its password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{path}: {quoted(member.filename)} is compressed in an unusual way; unpack the archive"
                )
            deflated = member.compress_type == zipfile.ZIP_DEFLATED
            yield Entry(name, ZipMember(str(path), member.header_offset, member.compress_size, deflated, member.CRC))
