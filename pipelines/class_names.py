"""The text file of class names: one per line, in label order.

Owns the rule by which such files are read and written. Invariant: `parse(text(names))` gives the names again.
"""

from collections.abc import Sequence

from pipelines.errors import UserError

_BOM = "\ufeff"


def unfit(name: str) -> str | None:
    """Why a name cannot be a line of such a file; None if it can."""
    if not name.strip():
        return "an empty line"
    if "\0" in name:
        return "a NUL byte"
    return "a line break" if "\n" in name or "\r" in name else None


def parse(data: bytes, origin: str) -> list[str]:
    """The names in a file's bytes; `origin` names the file in messages.

    Spaces around a name belong to it, as they do in the name of a folder. A byte order mark, Windows' line ends and empty lines
    at the end do not count; bytes that are not UTF-8 are kept, as in file names. A name may occur twice, as in ImageNet.
    """
    whole = data.decode("utf-8", "surrogateescape").removeprefix(_BOM)
    names = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while names and not names[-1].strip():
        names.pop()
    for number, name in enumerate(names, 1):
        if why := unfit(name):
            raise UserError(f"{origin}, line {number}: a class name expected, {why} found")
    if not names:
        raise UserError(f"{origin}: class names expected, one per line; the file is empty")
    return names


def text(names: Sequence[str]) -> bytes:
    """The file's bytes; a byte order mark in front of a first name that starts with one keeps that name whole."""
    mark = _BOM if names and names[0].startswith(_BOM) else ""
    return (mark + "".join(f"{name}\n" for name in names)).encode("utf-8", "surrogateescape")
