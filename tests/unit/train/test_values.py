"""Every key of the tree with values that no run can use: one line and exit code 2, or a run that works.

Numbers are tried on reading, and what reading accepts in real runs, many at a time; paths in the commands that use them. The keys
are those of the dataclasses, so that a new one is in by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from helpers.closed import closed
from helpers.launch import run

from pipelines.errors import UserError
from train.config import Config
from train.evaluate import EvaluateConfig
from train.predict import PredictConfig
from train.settings import flatten, keys, load, to_yaml
from train.values import without_none


@dataclass(kw_only=True)
class Everything(EvaluateConfig, PredictConfig):
    """The keys of all entry scripts."""


KEYS = keys(Everything)
NUMBERS: dict[type, tuple[str, ...]] = {
    float: ("nan", "inf", "-inf", "1e400", "-1", "0", "1e30", "1e-30"),
    int: (str(10**30), str(2**63), str(2**63 - 1), "-1", "0"),
}
NEVER = {"nan", "inf", "-inf", "1e400", str(10**30), str(2**63), "-1"}
# Accepted, and then ended by the run itself: a diverged loss, a batch, a warm-up or a switch that is beyond the data, early
# stopping without a split to select on.
ENDS = {
    *("optim.lr=1e30", "optim.weight_decay=1e30"),
    *(f"{name}={2**63 - 1}" for name in ("optim.batch", "schedule.warmup_steps", "eval.patience")),
    *(f"distill.{name}={2**63 - 1}" for name in ("drw_from", "diversity_from")),
}
ELSEWHERE = {"distill.diversity"}  # may be negative, and needs experts: objectives/test_objective.py
OWN = {name for name in KEYS if name in {*vars(EvaluateConfig()), *vars(PredictConfig())} - set(vars(Config()))}


def kind_of(name: str) -> tuple[Any, bool]:
    """(type of the value or of an element, whether it is a list)"""
    inner, _ = without_none(KEYS[name].hint)
    return (get_args(inner)[0], True) if get_origin(inner) is list else (inner, False)


def tries() -> Iterator[tuple[str, str]]:
    """(override, the number in it) for each numeric key: alone, or as the first of a list."""
    for name, key in KEYS.items():
        if name in ELSEWHERE:
            continue
        kind, listed = kind_of(name)
        for number in NUMBERS.get(kind, ()):
            rest = [str(value) for value in (key.default or [])[1:]] if listed else []
            yield f"{name}=" + (f"[{', '.join([number, *rest])}]" if listed else number), number


def one_line(error: UserError) -> str:
    line = str(error)
    assert "\n" not in line and len(line) < 600, line
    return line


def accepted(config_file: Path) -> list[str]:
    found = []
    for override, number in tries():
        key = override.partition("=")[0]
        try:
            config = load(Everything, config_file, [override])
        except UserError as error:
            assert key in one_line(error)
        else:
            assert number not in NEVER, override
            assert str(flatten(config)[key]).strip("[]").split(",")[0] not in ("nan", "inf", "-inf")
            found.append(override)
    return found


def groups(config_file: Path, overrides: list[str]) -> list[list[str]]:
    """The overrides in few groups, each of which can be read as a whole."""
    made: list[list[str]] = []
    for override in overrides:
        for group in made:
            try:
                if not any(other.partition("=")[0] == override.partition("=")[0] for other in group):
                    load(Everything, config_file, [*group, override])
                    group.append(override)
                    break
            except UserError:
                continue
        else:
            made.append([override])
    return made


def test_numbers_that_are_accepted_train(taught: Path, tmp_path: Path) -> None:
    found = accepted(taught / "dive.yaml")
    assert len({override.partition("=")[0] for override, _ in tries()}) > 40 and set(found) > ENDS
    harmless = groups(taught / "dive.yaml", [override for override in found if override not in ENDS])
    assert len(harmless) < 5
    for number, group in enumerate([*harmless, *([one] for one in sorted(ENDS))]):
        # In a file, where a setting may be of no effect.
        config = tmp_path / f"{number}.yaml"
        given = [*group, "distill.teacher=t", "model.name=resnet8", "schedule.epochs=1"]
        read = to_yaml(load(Everything, taught / "dive.yaml", given)).splitlines(keepends=True)
        config.write_text("".join(line for line in read if line.partition(":")[0] not in OWN))
        done = run("distill", config, f"run={tmp_path}/run{number}", cwd=taught, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert (done.returncode, len(errors)) == ((2, 1) if group[0] in ENDS else (0, 0)), (group, done.stderr)


# ---- paths ----

LONG = "x" * 255
PLACES = (
    "~/new",
    "~no_such_user/x",
    "folder",
    "missing/x",
    "file/x",
    "closed/x",
    "closed",
    "loop/x",
    LONG,
    f"{LONG}x",
    "''",
)
WEIGHTS = "distill.teacher=runs/t/model.safetensors"
COMMANDS: dict[str, tuple[str, ...]] = {  # the command that uses a path; other keys: a student's
    "cache.dir": ("cache_logits", "dive.yaml", "distill.teacher=t"),
    "data.train": ("teacher", "bsce.yaml", "run=new"),
    "data.val": ("teacher", "bsce.yaml", "run=new"),
    "data.test": ("teacher", "bsce.yaml", "run=new"),
    "distill.teacher_classes": ("distill", "dive.yaml", WEIGHTS, "distill.teacher_arch=resnet8", "run=new"),
    "run": ("teacher", "bsce.yaml"),
    "predictions": ("evaluate", "t"),
    "features": ("evaluate", "t"),
    "export": ("evaluate", "t"),
    "out": ("predict", "t", "file"),
    "prior": ("predict", "t", "file"),
}


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.is_path])
def test_paths_that_cannot_be_used(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for name in ("bsce.yaml", "dive.yaml", "runs"):
        (tmp_path / name).symlink_to(taught / name)
    for name in ("home", "folder", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "closed/x").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    script, *arguments = COMMANDS.get(key, ("distill", "dive.yaml", "distill.teacher=t", "run=new"))
    if script not in ("evaluate", "predict"):
        arguments.append("--dry-run")
    with closed(tmp_path / "closed"):
        for place in PLACES:
            value = f"{key}=[{place}]" if key == "cache.paths" else f"{key}={place}"
            done = run(script, *arguments, value, cwd=tmp_path, check=False)
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert (done.returncode, len(lines)) in ((0, 0), (2, 1)), (value, done.stderr)
            assert done.returncode or place not in ("~no_such_user/x", f"{LONG}x", "''"), value
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("~")]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
