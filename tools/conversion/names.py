"""Names of classes and samples, and the text files that list them.

Invariant: a name depends on the input (a list's lines, paths inside a folder), not on where the input lies.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pipelines import class_names
from pipelines.errors import UserError, quoted

SYNSET = re.compile(r"(n\d{8}) .+")  # a line of LOC_synset_mapping.txt: n01440764 tench, Tinca tinca


def stripped(name: str, prefix: str, where: str) -> str:
    """A name without --strip-prefix; one that lacks the prefix is refused: its key would differ from its twin's elsewhere."""
    if not name.startswith(prefix):
        raise UserError(f"{where}: {quoted(name)} does not start with {prefix}, the --strip-prefix given")
    return name.removeprefix(prefix)


def class_order(folders: Iterable[str]) -> list[str]:
    """Class folders in label order: numbers by their value, as iNaturalist's 0 to 8141, and other names by letters."""
    names = sorted(folders)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=int) if numbers else names


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror}; give a text file") from None


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file; bytes that are not UTF-8 are kept, as in file names."""
    text = _read(path, what).decode("utf-8-sig", "surrogateescape")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "\0" in text:
        number = next(number for number, line in enumerate(lines, 1) if "\0" in line)
        raise UserError(f"{path}, line {number}: a NUL byte found; {what} must be a text file, in UTF-8")
    return lines


def read_classes(path: Path) -> list[str]:
    """Class names, one per line, in label order; of Kaggle's LOC_synset_mapping.txt the WordNet ids, which name the folders."""
    names = class_names.parse(_read(path, "the class list"), str(path))
    synsets = [SYNSET.fullmatch(name) for name in names]
    return [synset[1] for synset in synsets if synset] if all(synsets) else names
