"""What a source of images hands on when they lie in files of many: each image under its path inside, and what reads it.

Owns the type, and the class names and labels that such a file may bring. Invariant: paths are relative, in their shortest
spelling, and in an order that depends on the files alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.records.encoding import Lazy
from pipelines.records.writing import Streamed


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one or several files that hold many."""

    where: str  # the files, for messages
    found: Mapping[str, Lazy | Streamed]  # by paths
    streamed: bool = False  # they can only be read in this order
    labels: list[int] | None = None  # in the same order, where the files give them
    class_names: list[str] | None = None  # of these labels
    others: list[str] = field(default_factory=list)  # files that are no images
    numbered: bool = False  # the paths are running numbers, which mean nothing elsewhere
    by_stem: bool = False  # a list names an image whatever its suffix


def git_lfs_pointer(data: bytes) -> bool:
    """Whether a file is what a clone without Git LFS holds in place of a large file."""
    return data.startswith(b"version https://git-lfs")


class Entry(NamedTuple):
    """A file in an archive, or a link to one."""

    name: str  # its path, in the shortest spelling
    reader: Lazy | Streamed | None  # None for a link
    target: str = ""  # of a link
