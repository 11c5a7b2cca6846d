"""What several tests of train/ share, made once per session."""

from pathlib import Path

import pytest
from helpers.launch import run, tiny_config

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory with a finished teacher `t` and its cache in caches/."""
    folder = tmp_path_factory.mktemp("taught")
    run("teacher", tiny_config(folder, tiny, "bsce"), "run=t", "data.seed=1", cwd=folder)
    run("cache_logits", tiny_config(folder, tiny, "dive", DIVE), "distill.teacher=t", "cache.codec=f32", cwd=folder)
    return folder
