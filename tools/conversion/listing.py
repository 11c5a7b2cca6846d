"""A source of images: the files named by the lines `path label` of a list. Invariant: samples come in the list's order."""

from pathlib import Path

from pipelines.errors import UserError
from pipelines.records.writing import Sample
from tools.conversion.names import read_lines, stripped

MAX_CLASSES = 1_000_000  # a larger label is a mistake, such as a key in place of the label


def list_samples(root: Path, path: Path, prefix: str, classes: int | None) -> list[Sample]:
    """One sample per `path label` line; the path may contain spaces. Empty lines are skipped."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root is the folder that the list's paths start from")
    samples = []
    for number, line in enumerate(read_lines(path, "the list"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise UserError(f"{where}: 'path label' expected, a label from 0 up, found: {line.strip()}")
        file, label = parts
        if int(label) >= (classes or MAX_CLASSES):
            raise UserError(f"{where}: label {label} is not in 0..{(classes or MAX_CLASSES) - 1}")
        samples.append(Sample(stripped(file, prefix, where), int(label), str(root / file)))
    return samples
