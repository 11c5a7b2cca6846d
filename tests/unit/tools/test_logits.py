"""The command line of tools/logits.py: as a program, where no cache is, and with values out of range."""

import subprocess
from pathlib import Path

import pytest
from helpers import warm
from helpers.cache_damage import B00, Run, change

from tools.logits import main

ROOT = Path(__file__).resolve().parents[3]


def test_as_a_program(cache: Path) -> None:
    """From another folder: one line on stderr and exit code 2."""
    change(cache / B00, 3000)
    command = [warm.python(), str(ROOT / "tools/logits.py"), "verify", cache.name]
    done = subprocess.run(command, cwd=cache.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {cache.name}: 1 bad file: {B00};")


def test_no_cache_there(tmp_path: Path, run: Run) -> None:
    for command in ("info", "verify", "repair", "flatness"):
        code, _, err = run(command, tmp_path / "nothing")
        assert code == 2 and "no logit cache at" in err


@pytest.mark.parametrize("words", [["--p", "0"], ["--p", "inf"], ["--views", "0"]])
def test_settings_that_make_no_sense(intact: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flatness", str(intact), *words]) == 2 and "allowed" in capsys.readouterr().err
