"""The asserts of all test files are rewritten once in a session, which takes 6 s, not once in each process of pytest-xdist.

pytest keeps what it has rewritten beside the sources, unless Python may write no bytecode. Then, and in a new clone, each of its
processes would rewrite the same files at the same time. Invariant: what is read was rewritten from the source as it is.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

FOLDER = "DIVE_REWRITTEN"  # in the environment of the processes: where they are, if not beside the sources


def write(config: pytest.Config, folder: Path) -> None:
    """Rewrite the test files of this command line into `folder`, or beside the sources if Python writes bytecode there."""
    if config.option.assertmode != "rewrite":
        return
    if sys.dont_write_bytecode:
        os.environ[FOLDER] = str(folder)
        use()
    state = config.stash[rewrite.assertstate_key]
    for path in _test_files(config):
        kept = rewrite.get_cache_dir(path) / (path.name[:-3] + rewrite.PYC_TAIL)
        if rewrite.try_makedirs(kept.parent) and rewrite._read_pyc(path, kept) is None:
            source_hash, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, source_hash, kept)


def use() -> None:
    """Have this process read what the session has rewritten."""
    if folder := os.environ.get(FOLDER):
        rewrite.get_cache_dir = lambda path: Path(folder, *path.parts[1:-1])


def _test_files(config: pytest.Config) -> Iterator[Path]:
    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        yield from sorted(path.rglob("test_*.py")) if path.is_dir() else [path] if path.is_file() else []
