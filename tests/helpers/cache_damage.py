"""What tests of tools/logits.py share: sizes and blocks of their caches, damage to a file, and the rows of a printed table."""

import os
from collections.abc import Callable
from pathlib import Path

from helpers.small_caches import CLASSES

RECORD = 20 + 4 * len(CLASSES)  # fingerprint and f32 logits
Run = Callable[..., tuple[int, str, str]]  # the fixture `run`
B00, B01, B10, B11 = (f"v00{v}/b0000{b}.lc" for v in range(2) for b in range(2))


def change(path: Path, at: int, by: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= by
    path.write_bytes(data)


def swap(a: str, b: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        x, y = (folder / a).read_bytes(), (folder / b).read_bytes()
        (folder / a).write_bytes(y)
        (folder / b).write_bytes(x)

    return harm


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return harm


def rows_of(out: str) -> dict[str, str]:
    """Name -> text of a table printed wide; continuation lines are joined to their row."""
    rows: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if line.startswith("│"):
            left, text = (part.strip() for part in line.strip("│").split("│", 1))
            name = left or name
            rows[name] = f"{rows[name]} {text}" if name in rows else text
    return rows
