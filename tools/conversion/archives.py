"""A source of images: archives, tar in any packing and zip, read as the folder that they would unpack to.

Owns the list of an archive's members and reading one: by its offset where the archive allows it, else from start to end.
Nothing is unpacked. Invariant: damage never looks like the end of an archive.
"""

import functools
import lzma
import os
import posixpath
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tarfile import InvalidHeaderError, ReadError, TarFile, TarInfo, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, NamedTuple

from pipelines.errors import UserError, quoted
from pipelines.folders import hidden, is_image
from pipelines.records.encoding import Lazy
from pipelines.records.workers import Streamed
from tools.conversion.images import Entry, Forward, Images, InTurn, in_words, read_at, refuse_git_lfs
from tools.conversion.zips import zip_entries

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
# How a file is packed, by its first bytes, whatever its name.
PACKED = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2", b"PK\3\4": "zip"}
# What tarfile, zipfile and the decompressors raise on damaged bytes; zipfile the last three, on a garbled directory.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError) + (
    NotImplementedError,
    UnicodeError,
    IndexError,
)
AFTER_THE_END = 1 << 20  # bytes of padding after the end mark: writers fill up to their block, of some kB


class Member(NamedTuple):
    """A file in an archive that is not compressed: where its bytes lie. A Lazy."""

    path: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        return read_at(self.path, self.offset, self.size)


class Nowhere(NamedTuple):
    """In place of the image that a link names; its conversion says why there is none. A Lazy."""

    why: str

    def __call__(self) -> bytes:
        raise OSError(self.why)


class _Header(TarInfo):
    """A member's header. A damaged one is an error: tarfile takes it for the end, and the members after it would be missing."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> TarInfo:
        try:
            return super().fromtarfile(tarfile)
        except (InvalidHeaderError, TruncatedHeaderError) as error:
            raise ReadError(str(error)) from error


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """Turn whatever a damaged archive raises into one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an archive") from None
    except DAMAGE as error:
        why = quoted(str(error) or type(error).__name__, 160)
        raise UserError(f"{path}: not a readable archive, damaged or truncated ({why}); copy it again") from None


def _packing(path: Path) -> str:
    """How an archive is compressed; "" if it is not."""
    with _reading(path), open(path, "rb") as file:
        head = file.read(100)
    refuse_git_lfs(path, head)
    return next((kind for start, kind in PACKED.items() if head.startswith(start)), "")


def _opened(path: Path, packing: str) -> TarFile:
    return tarfile.open(path, f"r:{packing}", tarinfo=_Header)  # type: ignore[call-overload]


def _members(archive: TarFile) -> Iterator[TarInfo]:
    """All members, of which tarfile would keep a kilobyte each in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        yield member


def entries(path: Path) -> Iterator[Entry]:
    """The files and folders of an archive in their order; of a tar inside it, as ImageNet's has for each class, what it holds.

    The inner tar n01440764.tar is read as the folder n01440764.
    """
    packing = _packing(path)
    if packing == "zip":
        with _reading(path):
            yield from zip_entries(path)
    elif packing:
        yield from _packed(path, packing)
    else:
        with _reading(path), open(path, "rb") as file:
            yield from _plain(path, file, 0, os.fstat(file.fileno()).st_size, "")


def _plain(path: Path, file: IO[bytes], start: int, size: int, folder: str) -> Iterator[Entry]:
    """Of an archive that is the `size` bytes of `file` from `start`; folder: the one that it stands for."""
    inside = _Part(file, start, size)
    with tarfile.open(fileobj=inside, mode="r:", tarinfo=_Header) as archive:  # type: ignore[call-overload]
        for member in _members(archive):
            name = posixpath.normpath(posixpath.join(folder, member.name.lstrip("/")))
            if member.isfile() and name.endswith(".tar"):
                yield from _plain(path, file, start + member.offset_data, member.size, name.removesuffix(".tar"))
            elif member.isfile():
                yield Entry(name, Member(str(path), start + member.offset_data, member.size))
            elif member.islnk() or member.issym():
                yield Entry(name, None, _target(name, folder, member))
            elif member.isdir():
                yield Entry(f"{name}/", None)
        if size - archive.offset > AFTER_THE_END:
            raise ReadError(f"its end mark comes {size - archive.offset:,} bytes before its end")


class _Part:
    """A part of a file, as a file of its own that tarfile can read."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, size: int) -> bytes:
        size = max(0, min(size, self._size - self._at))
        data = os.pread(self._file.fileno(), size, self._start + self._at)
        self._at += len(data)
        return data


def _target(name: str, folder: str, member: TarInfo) -> str:
    """The path of what a link names: a hard link is relative to the archive, a symbolic one to its folder."""
    base = folder if member.islnk() else posixpath.dirname(name)
    return posixpath.normpath(posixpath.join(base, member.linkname))


def _packed(path: Path, packing: str) -> Iterator[Entry]:
    print(f"note: going through {path} for its list of files, as it is compressed", file=sys.stderr, flush=True)
    stream = Forward(str(path), lambda: _contents(path, packing))
    with _reading(path), _opened(path, packing) as archive:
        for number, member in enumerate(_members(archive)):
            name = posixpath.normpath(member.name.lstrip("/"))
            if member.isfile() and name.endswith(".tar"):
                raise UserError(
                    f"{path}: holds the archive {quoted(name)} and is compressed itself; decompress it first"
                )
            if member.isfile():
                yield Entry(name, InTurn(stream, number))
            elif member.islnk() or member.issym():
                yield Entry(name, None, _target(name, "", member))
            elif member.isdir():
                yield Entry(f"{name}/", None)
        while archive.fileobj and archive.fileobj.read(1 << 20):
            pass  # up to the checksum at the end of the compressed file


def _contents(path: Path, packing: str) -> Generator[Callable[[], bytes], None, None]:
    """What reads each member of a compressed archive."""
    with _reading(path), _opened(path, packing) as archive:
        for member in _members(archive):
            yield functools.partial(_member, path, archive, member)


def _member(path: Path, archive: TarFile, member: TarInfo) -> bytes:
    with _reading(path):
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) < member.size:
            raise ReadError("unexpected end of data")
        return data


def inside_archive(path: Path) -> tuple[Path, str] | None:
    """The archive and the folder inside it that a path names: data.tar, or data.tar/train. None for other files and folders."""
    for parent in (path, *path.parents):
        if parent.name.lower().endswith(SUFFIXES) and parent.is_file():
            return parent, "" if parent == path else path.relative_to(parent).as_posix()
    return None


def read_archives(paths: Sequence[Path]) -> Images:
    """The images of one or several archives, each of which may be a folder inside one: data.tar/train."""
    found: dict[str, Lazy | Streamed] = {}
    others: list[str] = []
    folders: list[str] = []
    for path in paths:
        archive, inside = inside_archive(path) or (path, "")
        every: dict[str, Entry] = {}
        for entry in entries(archive):
            every.pop(entry.name, None)  # of two files with one name the later one counts, as when unpacking
            every[entry.name] = entry
        for entry in every.values():
            name = _below(entry.name, inside)
            if not name or any(hidden(part) for part in name.split("/")[:-1]):
                continue
            if name.endswith("/"):
                folders.append(name)
                continue
            if not is_image(name):
                others.append(name)
                continue
            if name in found:
                raise UserError(f"{path}: {quoted(name)} is in another of the archives too; give each archive once")
            found[name] = entry.reader or _linked(entry, every)
    if not found:
        raise UserError(
            f"{in_words(paths)}: no images in it; give an archive of images, and the folder inside it, if any"
        )
    return Images(where=in_words(paths), found=found, others=others, folders=folders)


def _below(name: str, folder: str) -> str | None:
    """A path relative to a folder, "" for itself; None for one that lies elsewhere."""
    if not folder:
        return name
    return name.removeprefix(f"{folder}/") if name.startswith(f"{folder}/") else None


def _linked(entry: Entry, every: dict[str, Entry]) -> Lazy:
    """What reads the file that a link leads to, through other links."""
    for _ in range(8):
        if entry.reader is not None or entry.target not in every:
            break
        entry = every[entry.target]
    if isinstance(entry.reader, Streamed):  # it may have been passed already
        return Nowhere("a link inside a compressed archive")
    return entry.reader or Nowhere("a link that leads nowhere in the archive")
