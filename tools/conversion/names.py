"""Names of classes and samples, and the text files that list them.

Invariant: a name depends on the input (a list's lines, paths inside a folder), not on where the input lies.
"""

from pathlib import Path

from pipelines.errors import UserError


def stripped(name: str, prefix: str, where: str) -> str:
    """A name without --strip-prefix; one that lacks the prefix is refused: its key would differ from its twin's elsewhere."""
    if not name.startswith(prefix):
        raise UserError(f"{where}: {name} does not start with {prefix}, the --strip-prefix given")
    return name.removeprefix(prefix)


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file; bytes that are not UTF-8 are kept, as in file names."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror}") from None


def read_classes(path: Path) -> list[str]:
    """Class names, one per line, in label order."""
    names = [line.strip() for line in read_lines(path, "the class list")]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise UserError(f"{path}, line {names.index('') + 1}: a class name expected, an empty line found")
    if not names:
        raise UserError(f"{path}: class names expected, one per line; the file is empty")
    return names
