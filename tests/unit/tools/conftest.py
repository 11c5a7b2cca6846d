"""The caches that tests of tools/logits.py share: made once, copied by those that damage them."""

import shutil
from pathlib import Path

import pytest
from helpers.cache_damage import Run
from helpers.small_caches import make_cache

from pipelines.records.reader import Records
from tools.logits import main


@pytest.fixture(scope="session")
def intact(tmp_path_factory: pytest.TempPathFactory, many: Records) -> Path:
    """Two blocks under two views."""
    return make_cache(tmp_path_factory.mktemp("intact"), many)


@pytest.fixture
def cache(tmp_path: Path, intact: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "caches" / intact.name))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command line of tools/logits.py -> (exit code, stdout, stderr), so wide that no line of a table is folded."""
    monkeypatch.setenv("COLUMNS", "250")

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
