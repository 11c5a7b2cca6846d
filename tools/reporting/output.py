"""Where a figure's files go: STEM.md, STEM.json, STEM.svg and STEM.png in one folder.

Invariant: a place that cannot be written is refused before the work; all files are tried, even where one fails.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines.files import check_file_place, check_folder_place, write_bytes_atomic, write_each, write_json_atomic
from tools.reporting.style import save

SUFFIXES = (".md", ".json", ".svg", ".png")


def check_place(folder: Path, stem: str, given: str = "--out") -> None:
    """UserError where the files could not be written after the work; given: what named the folder."""
    check_folder_place(folder, f"{given} {folder}")
    if folder.is_dir():
        for suffix in SUFFIXES:
            check_file_place(folder / f"{stem}{suffix}", f"{given} {folder}")


def write_all(folder: Path, stem: str, page: str, data: dict[str, Any], figure: Figure) -> list[Path]:
    """Write page, data and figure, make the folder where it is missing, and give the files back."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    write_each(
        lambda: write_bytes_atomic(paths[0], page.encode()),
        lambda: write_json_atomic(paths[1], data),
        lambda: save(figure, folder / stem),
    )
    return paths
