"""The settings of the runs that differ, and the facts and environment that their settings leave open."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import UserError
from tools.reporting.runs import Run
from tools.reporting.section import DASH, Material, Section
from tools.reporting.tables import Table
from train.settings import flatten, value_text

_HASH = 32  # characters: a value as long as this without a space is a digest; its beginning tells it apart
_SHOWN = 12


def section(material: Material) -> Section:
    runs = [run for run in material.runs if run.config is not None]
    if not runs:
        raise UserError("files of predictions hold no settings")
    others = [run.title for run in material.runs if run.config is None]
    trees = [{key: value_text(value) for key, value in flatten(run.config).items()} for run in runs]
    differing, same = _apart(trees)
    titles = [run.title for run in runs]
    tables = []
    if differing:
        tables.append(Table("Settings that differ", ["setting", *titles], _rows(differing, trees)))
    for title, facts in (("Facts that differ", _facts(runs)), ("Environments that differ", _environments(runs))):
        if rows := _rows(_apart(facts)[0], facts):
            tables.append(Table(title, ["", *titles], rows))
    if same:
        tables.append(
            Table("Settings in common" if len(runs) > 1 else "Settings", ["setting", "value"], _rows(same, trees[:1]))
        )
    notes = [f"No settings are known of {', '.join(others)}: files of predictions."] * bool(others)
    return Section(title="Settings", intro=_intro(len(runs), len(differing)), tables=tables, notes=notes)


def _intro(runs: int, differing: int) -> str:
    if runs == 1:
        return "One run has settings, so nothing is compared."
    if not differing:
        return "The settings of the runs are the same, down to the name."
    return "Facts are what settings leave open, such as which images lie at a path. Only the beginning of a digest is shown."


def _apart(trees: Sequence[Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """(keys whose values differ, keys whose values are the same), of all that any tree has, in order."""
    names = list(dict.fromkeys(key for tree in trees for key in tree))
    differing = [key for key in names if len({tree.get(key) for tree in trees}) > 1]
    return differing, [key for key in names if key not in differing]


def _rows(names: Sequence[str], trees: Sequence[Mapping[str, str]]) -> list[list[str]]:
    return [[key, *(tree.get(key, DASH) for tree in trees)] for key in names]


def _facts(runs: Sequence[Run]) -> list[dict[str, str]]:
    return [{name: _short(value) for name, value in run.json("run.json").get("facts", {}).items()} for run in runs]


def _environments(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Of each run's last session."""
    sessions = [run.json("run.json").get("sessions", []) for run in runs]
    return [{name: _short(value) for name, value in one[-1]["environment"].items()} if one else {} for one in sessions]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    if isinstance(value, bool) or not isinstance(value, str):
        return value_text(value)
    return f"{value[:_SHOWN]}…" if len(value) >= _HASH and " " not in value else value
