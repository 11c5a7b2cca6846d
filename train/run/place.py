"""The name of a run, and the folder that the name stands for."""

import re
from pathlib import Path

import yaml

from pipelines.errors import UserError
from pipelines.files import home_expanded

RUNS = Path("runs")
_PATHS = ("./", "../", "/", "~", f"{RUNS}/")  # a name that begins so is a path


def run_folder(name: str) -> Path:
    """`NAME` and `GROUP/NAME` -> that folder in runs/; a name that begins with ./, ../, /, ~ or runs/ is a path.

    Earlier versions took every name with a slash for a path: a run or an export that lies there is still found.
    """
    if name.startswith(_PATHS):
        return expanded(name)
    folder, beside = RUNS / name, Path(name)
    if "/" in name and not folder.exists() and (beside.is_file() or _is_run(beside)):
        return beside
    return folder


def expanded(path: str) -> Path:
    """The path, with ~ as the home folder; UserError where that is not known."""
    try:
        return Path(home_expanded(path))
    except ValueError as error:
        raise UserError(str(error)) from error


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "model.json").is_file()


def run_name(run: str | None, config_file: Path, seed: int, method: str) -> str:
    """The name of a run: as given by `run=`, or the config file's stem, the method and the seed.

    The method is left out if it is among the words of the stem. Earlier versions always left it out: an existing run of the same
    method under that name keeps it.
    """
    name = run or _default_name(config_file, seed, method)
    if name.strip().rstrip("/").rpartition("/")[2] in ("", ".", ".."):
        raise UserError(f"run={name}: a run needs a name, e.g. run=first, or a folder, e.g. run=./first")
    return name


def _default_name(config_file: Path, seed: int, method: str) -> str:
    stem = config_file.stem
    plain = f"{stem}-s{seed}"
    if method in re.split(r"[_-]", stem) or _method_of(RUNS / plain) == method:
        return plain
    return f"{stem}-{method}-s{seed}"


def _method_of(folder: Path) -> str | None:
    """The method of the run in a folder; None where there is no run."""
    try:
        return yaml.safe_load((folder / "config.yaml").read_bytes())["distill"]["method"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def note_on_place(run: str | None, folder: Path) -> str | None:
    """A line to print if a run is not where its name says; None if it is."""
    if run is None or run.startswith(_PATHS) or folder == RUNS / run:
        return None
    return (
        f"run={run}: found in {folder}, where an earlier version put it; a new run of this name would lie in {RUNS / run} "
        f"(run=./{run} names the folder itself)"
    )
