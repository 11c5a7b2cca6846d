"""The name of a run, and the folder that the name stands for."""

from pathlib import Path

from pipelines.errors import UserError

RUNS = Path("runs")


def run_folder(name: str) -> Path:
    """`NAME` -> runs/NAME below the current directory; a name with a slash is a path itself."""
    return Path(name).expanduser() if "/" in name else RUNS / name


def run_name(run: str | None, config_file: Path, seed: int) -> str:
    """The name of a run: as given by `run=`, or the config file's stem and the seed."""
    name = run or f"{config_file.stem}-s{seed}"
    if name.strip() in ("", ".", ".."):
        raise UserError(f"run={name}: a run needs a name, e.g. run=first, or a folder with a slash, e.g. run=./first")
    return name
