"""The four files of a figure: table as Markdown and JSON, picture as SVG and PNG, all of one name in one folder."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files import check_file_place, check_folder_place, write_bytes_atomic, write_each, write_json_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".md", ".json", ".svg", ".png")


def check_place(folder: Path, name: str) -> None:
    """UserError, before the work, where NAME.md and the others could not be written into `folder`, or not be drawn."""
    importlib.import_module("tools.report.style")  # says which package is missing
    check_folder_place(folder, "--out")
    if folder.exists():
        for suffix in _SUFFIXES:
            check_file_place(folder / f"{name}{suffix}", "--out")


def write(folder: Path, name: str, page: str, value: Any, figure: "Figure") -> None:
    """Write page (Markdown), value (JSON) and picture, and say where they are."""
    from tools.report.style import save

    stem = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    write_each(
        lambda: write_bytes_atomic(stem.with_name(f"{name}.md"), page.encode()),
        lambda: write_json_atomic(stem.with_name(f"{name}.json"), value),
        lambda: save(figure, stem),
    )
    print(f"wrote {', '.join(str(stem.with_name(f'{name}{suffix}')) for suffix in _SUFFIXES)}")
