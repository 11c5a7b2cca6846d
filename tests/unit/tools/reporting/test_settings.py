"""The table of settings has what differs, and nothing else."""

from pathlib import Path

import pytest
from helpers.report_runs import config, made_run, material

from pipelines.errors import UserError
from tools.reporting.settings import section

DIGEST = "0123456789abcdef" * 4


def run(folder: Path, seed: int, **distill: object):
    environment = {"torch": f"2.{seed}", "host": "h", "cuda": None}
    facts = {"tau": None, "caches": [DIGEST[seed:]], "backend": "ffcv"}
    record = {"facts": facts, "sessions": [{"environment": environment}]}
    return made_run(
        f"r{seed}", folder / str(seed), seed, {"run.json": record}, config=config(seed, f"r{seed}", **distill)
    )


def test_what_differs(tmp_path: Path) -> None:
    tables = section(material(run(tmp_path, 0), run(tmp_path, 1, method="ce"))).tables
    named = {table.title: dict((row[0], row[1:]) for row in table.rows) for table in tables}
    assert named["Settings that differ"] == {"distill.method": ["bsce", "ce"], "run": ["r0", "r1"], "seed": ["0", "1"]}
    assert named["Facts that differ"] == {"caches": ["0123456789ab…", "123456789abc…"]}
    assert named["Environments that differ"] == {"torch": ["2.0", "2.1"]}
    assert named["Settings in common"]["optim.lr"] == ["0.1"] and "seed" not in named["Settings in common"]


def test_one_run_and_none() -> None:
    made = section(material(made_run("a"), made_run("b", config=None)))
    assert [table.title for table in made.tables] == ["Settings"] and "b" in made.notes[0]
    with pytest.raises(UserError):
        section(material(made_run("b", config=None)))
