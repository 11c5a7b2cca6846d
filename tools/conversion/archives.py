"""A source of images: archives, tar in any packing and zip, read as the folder that they would unpack to.

Owns the list of an archive's members and reading one: by its offset where the archive allows it, else from start to end.
Nothing is unpacked. Invariant: damage never looks like the end of an archive.
"""

import itertools
import lzma
import os
import posixpath
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tarfile import InvalidHeaderError, ReadError, TarFile, TarInfo, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, NamedTuple

from pipelines.errors import UserError, quoted
from pipelines.folders import hidden, is_image
from pipelines.records.encoding import Lazy
from pipelines.records.writing import Sample, Streamed
from tools.conversion.folder import (
    SPLITS,
    class_names_of,
    label_of,
    labels_of,
    note_deeper,
    note_others,
    refuse_unfit,
)
from tools.conversion.images import Entry, Images, git_lfs_pointer
from tools.conversion.names import stripped
from tools.conversion.zips import read_at, zip_entries

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
# How a file is packed, by its first bytes, whatever its name.
PACKED = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2", b"PK\3\4": "zip"}
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
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        why = quoted(str(error) or type(error).__name__, 160)
        raise UserError(f"{path}: not a readable archive, damaged or truncated ({why}); copy it again") from None


def _packing(path: Path) -> str:
    """How an archive is compressed; "" if it is not."""
    with _reading(path), open(path, "rb") as file:
        head = file.read(100)
    if git_lfs_pointer(head):
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself; type: git lfs pull")
    return next((kind for start, kind in PACKED.items() if head.startswith(start)), "")


def _opened(path: Path, packing: str) -> TarFile:
    return tarfile.open(path, f"r:{packing}", tarinfo=_Header)  # type: ignore[call-overload]


def _members(archive: TarFile) -> Iterator[TarInfo]:
    """All members, of which tarfile would keep a kilobyte each in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        yield member


def entries(path: Path) -> Iterator[Entry]:
    """The files of an archive in their order; of a tar inside it, as the archive of ImageNet has for each class, its files.

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


class _Stream:
    """A compressed archive, read forward; asked for a member before the last one, it begins anew."""

    def __init__(self, path: Path, packing: str) -> None:
        self._path, self._packing = path, packing
        self._next, self._archive = 0, None

    def read(self, number: int) -> bytes:
        with _reading(self._path):
            if self._archive is None or number < self._next:
                self._archive, self._next = _opened(self._path, self._packing), 0
            member = next(itertools.islice(_members(self._archive), number - self._next, None), None)
            self._next = number + 1
            file = self._archive.extractfile(member) if member else None
            data = file.read() if file else b""
            if not member or len(data) < member.size:
                raise ReadError("unexpected end of data")
            return data


@dataclass(frozen=True)
class Packed(Streamed):
    """A file in a compressed archive."""

    stream: _Stream
    number: int  # among all members

    def read(self) -> bytes:
        return self.stream.read(self.number)


def _packed(path: Path, packing: str) -> Iterator[Entry]:
    print(f"note: going through {path} for its list of files, as it is compressed", file=sys.stderr, flush=True)
    stream = _Stream(path, packing)
    with _reading(path), _opened(path, packing) as archive:
        for number, member in enumerate(_members(archive)):
            name = posixpath.normpath(member.name.lstrip("/"))
            if member.isfile() and name.endswith(".tar"):
                raise UserError(
                    f"{path}: holds the archive {quoted(name)} and is compressed itself; decompress it first"
                )
            if member.isfile():
                yield Entry(name, Packed(stream, number))
            elif member.islnk() or member.issym():
                yield Entry(name, None, _target(name, "", member))
        while archive.fileobj and archive.fileobj.read(1 << 20):
            pass  # up to the checksum at the end of the compressed file


def inside_archive(path: Path) -> tuple[Path, str] | None:
    """The archive and the folder inside it that a path names: data.tar, or data.tar/train. None for other files and folders."""
    for parent in (path, *path.parents):
        if parent.name.lower().endswith(SUFFIXES) and parent.is_file():
            return parent, "" if parent == path else path.relative_to(parent).as_posix()
    return None


def read_archives(paths: Sequence[Path]) -> Images:
    """The images of one or several archives, each of which may be a folder inside one: data.tar/train."""
    found: dict[str, Lazy | Streamed] = {}
    links: list[str] = []
    others: list[str] = []
    streamed = False
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    for path in paths:
        archive, inside = inside_archive(path) or (path, "")
        every: dict[str, Entry] = {}
        for entry in entries(archive):
            every.pop(entry.name, None)  # of two files with one name the later one counts, as when unpacking
            every[entry.name] = entry
        for entry in every.values():
            name = _below(entry.name, inside)
            if name is None or any(hidden(part) for part in name.split("/")[:-1]):
                continue
            if hidden(posixpath.basename(name)) or not is_image(name):
                others.append(name)
                continue
            if name in found:
                raise UserError(f"{path}: {quoted(name)} is in another of the archives too; give each archive once")
            real = _resolved(entry, every)
            found[name] = real.reader or Nowhere("a link that leads nowhere in the archive")
            streamed |= isinstance(real.reader, Streamed)
            if entry.reader is None:
                links.append(name)
    if not found:
        raise UserError(f"{where}: no images in it; give an archive of images, and the folder inside it, if any")
    if streamed:  # what a link names may have been read already
        found |= dict.fromkeys(links, Nowhere("a link inside a compressed archive"))
    return Images(where=where, found=found, streamed=streamed, others=others)


def _below(name: str, folder: str) -> str | None:
    """A path relative to a folder; None for one that lies elsewhere."""
    if not folder or folder == ".":
        return name
    return name.removeprefix(f"{folder}/") if name.startswith(f"{folder}/") else None


def _resolved(entry: Entry, every: dict[str, Entry]) -> Entry:
    """What a link leads to, through other links."""
    for _ in range(8):
        if entry.reader is not None or entry.target not in every:
            break
        entry = every[entry.target]
    return entry


def _folder(name: str, depth: int) -> str:
    """The class folder of an image; "" for one that lies above these."""
    parts = name.split("/")
    return "/".join(parts[:depth]) if len(parts) > depth else ""


def archive_classes(images: Images, depth: int) -> list[str]:
    """The names of the classes of an archive in label order; depth: as in folder.py."""
    names = {name.split("/")[0] for name in images.found if "/" in name}
    inner = {name.split("/")[0] for name in images.found if name.count("/") > 1}
    if len(names) == 1 and names == inner and depth == 1:
        (name,) = names
        raise UserError(
            f"{images.where}: holds the one folder {name}; if its sub-folders are the classes, type {images.where}/{name}"
        )
    if names and all(name.lower() in SPLITS for name in names) and names == inner:
        example = f"--images {images.where}/{min(names)}"
        raise UserError(
            f"{images.where}: holds splits ({', '.join(sorted(names))}), not classes; convert each, such as {example}"
        )
    folders = {folder for name in images.found if (folder := _folder(name, depth))}
    if not folders:
        raise UserError(f"{images.where}: no sub-folders found; every class needs its own, with its images in it")
    refuse_unfit(images.where, folders)
    return list(class_names_of(folders).values())


def archive_samples(images: Images, class_names: Sequence[str], prefix: str, depth: int) -> list[Sample]:
    """Every image below the class folders, in the order of a folder's, or in that in which they can be read."""
    labels = labels_of(class_names)
    folder_of = {name: folder for name in images.found if (folder := _folder(name, depth))}
    loose = [name for name in images.found if depth > 1 and "/" in name and name not in folder_of]
    if loose:
        raise UserError(f"{images.where}/{loose[0]}: lies above the class folders; give another --depth")
    own = class_names_of(set(folder_of.values()))
    named = list(folder_of)
    if not images.streamed:
        rank = {folder: number for number, folder in enumerate(own)}

        def as_in_a_folder(name: str) -> tuple[int, list[str], str]:
            *inner, file = name.split("/")
            return rank[folder_of[name]], inner, file

        named.sort(key=as_in_a_folder)
    samples = []
    for name in named:
        folder = folder_of[name]
        label = label_of(own[folder], labels, f"{images.where}/{folder}")
        samples.append(Sample(stripped(name, prefix, images.where), label, images.found[name]))
    note_others(images.others)
    note_deeper(named, depth)
    return samples
