"""The runs of a sweep: every combination of the values of some settings, for tools/sweep.py.

Owns how values are told apart on the command line, and how runs are named. Invariant: every combination can be read as settings,
and has a name of its own, before any run is started.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError, quoted
from tools.paper.datasets import ROOT
from train.config import Config
from train.objectives.methods import METHODS
from train.settings import load


class Run(NamedTuple):
    """One training of a sweep; name: the part of its run's name that tells it from the others."""

    name: str
    command: list[str]
    needs: tuple[str, ...] = ()


def values_of(setting: str) -> tuple[str, list[str]]:
    """(key, values) of KEY=VALUE,VALUE; a comma within brackets or quotes separates nothing."""
    key, _, text = setting.partition("=")
    values = re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,])+", text) or [""]
    if len(values) != len(set(values)):
        raise UserError(f"{quoted(setting)}: a value is given twice; name each once")
    return key, values


def planned(config: Path, settings: Sequence[str], name: str) -> list[Run]:
    """The runs, in the order of the values, the last setting fastest; UserError for settings that no run can have."""
    given = [values_of(setting) for setting in settings]
    keys = [key for key, _ in given]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is given twice; give it once, with all its values")
    if own := {"run", "resume", "eval_only"}.intersection(keys):
        raise UserError(f"{min(own)} is set for each run of a sweep; --name NAME names the sweep")
    swept = [key for key, values in given if len(values) > 1]
    if not swept:
        raise UserError("nothing is swept: give a setting with several values, such as seed=0,1,2")
    last = [key.rpartition(".")[2] for key in swept]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(swept, last, strict=True)}
    runs = []
    for values in itertools.product(*(values for _, values in given)):
        chosen = dict(zip(keys, values, strict=True))
        label = "_".join(f"{short[key]}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', chosen[key])}" for key in swept)
        words = [f"{key}={value}" for key, value in chosen.items()]
        method = load(Config, config, words).distill.method
        command = [str(ROOT / METHODS[method].script), str(config), *words, f"run={name}/{label}"]
        runs.append(Run(label, command))
    labels = [run.name for run in runs]
    if again := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(
            f"two runs would be named {again}: their values differ only in characters that no name of a run has"
        )
    return runs
