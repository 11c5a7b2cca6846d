"""The promises of compiled.py: arithmetic that no caller can loosen, and machine code that is neither stale nor another's."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from helpers.boxes import box_rows
from numba.core.caching import IndexDataCacheFile

from pipelines import compiled
from pipelines.augment.geometry import boxes
from pipelines.augment.recipe import Recipe, view_params
from pipelines.files import Held, lock

PIPELINES = Path(compiled.__file__).parent
ROOT = PIPELINES.parent

# Run in a separate process: the options with which view_box is compiled FIRST are what counts.
CALLED_FROM_FASTMATH = """
import json, sys
import numpy as np
from numba import njit
from pipelines.augment import Recipe, view_box, view_params

@njit(fastmath=True)
def call(p, keys, views, width, height, out):
    for i in range(len(keys)):
        x, y, w, h, flip = view_box(p, keys[i], views[i], 2 * width[i], 2 * height[i], width[i], height[i])
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = x, y, w, h, flip

arrays = [np.array(column, dtype) for column, dtype in zip(json.load(sys.stdin), ("i8", "i4", "i4", "i4"))]
out = np.zeros((len(arrays[0]), 5), np.int32)
call(view_params(Recipe(), 0), *arrays, out)
print(json.dumps(out.tolist()))
"""


def test_boxes_do_not_depend_on_the_first_caller(tmp_path: Path) -> None:
    """Images stored at half size have many box edges on exact halves, where fastmath shifts one box in six."""
    rng = np.random.default_rng(0)
    keys, views = rng.integers(0, 2**63, 2000), rng.integers(0, 200, 2000, dtype=np.int32)
    widths, heights = rng.integers(1, 600, (2, 2000), dtype=np.int32)
    expected = boxes(view_params(Recipe(), 0), keys, views, 2 * widths, 2 * heights, widths, heights)
    columns = json.dumps([column.tolist() for column in (keys, views, widths, heights)])
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CALLED_FROM_FASTMATH]
    done = subprocess.run(command, input=columns, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.array(json.loads(done.stdout)), box_rows(expected))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's sources, with numba's setting restored after the test."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return shutil.copytree(PIPELINES, tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))


def folder_of(package: Path, cache_dir: Path | str = "") -> Path:
    """Where a fresh import of this copy would keep its machine code."""
    numba.config.CACHE_DIR = str(cache_dir)  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("compiled_copy", package / "compiled.py")
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return Path(numba.config.CACHE_DIR)  # type: ignore[attr-defined]


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n# another line\n")


SOURCES = ("geometry", "recipe", "resample")


@pytest.mark.parametrize(
    "source",
    [*(f"augment/{name}.py" for name in SOURCES), "crc32.py", "logits/blocks.py", "libffcv.py", "compiled.py"],
)
def test_changed_source_means_another_folder(copy: Path, source: str) -> None:
    before = folder_of(copy)
    assert before == folder_of(copy)
    append(copy / source)
    assert folder_of(copy) != before


def test_another_kind_of_cpu_has_another_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a clone: numba tells their code apart, but not the names of its files."""
    before = folder_of(copy)
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "another")
    assert folder_of(copy) != before


def test_one_process_at_a_time_saves_its_machine_code(copy: Path, tmp_path: Path, monkeypatch) -> None:
    """Of two that read the same index, both would give their file the same name; also where the module is imported twice."""
    folder_of(copy)
    read, saved = IndexDataCacheFile._load_index, []

    def watched(file: IndexDataCacheFile) -> dict:
        handle = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(Held):
                lock(handle)
        finally:
            os.close(handle)
        saved.append(file)
        return read(file)

    monkeypatch.setattr(IndexDataCacheFile, "_load_index", watched)
    IndexDataCacheFile(str(tmp_path), "twice", "stamp").save("float64", "its code")
    monkeypatch.undo()
    assert len(saved) == 1 and IndexDataCacheFile(str(tmp_path), "twice", "stamp").load("float64") == "its code"


def test_source_without_compiled_code_changes_nothing(copy: Path) -> None:
    before = folder_of(copy)
    append(copy / "errors.py")
    assert folder_of(copy) == before


def test_folder_lies_beside_the_sources_or_where_numba_is_told(copy: Path, tmp_path: Path) -> None:
    assert folder_of(copy).parent == copy / "__pycache__"
    assert folder_of(copy, tmp_path / "elsewhere").parent == tmp_path / "elsewhere"


def test_unwritable_sources_fall_back_on_the_users_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "__pycache__").write_text("a file, so that no folder can be made in its place, not even by root")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder_of(copy).parent == tmp_path / "home" / ".cache" / "dive-trainer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder_of(copy).parent == tmp_path / "xdg" / "dive-trainer"


def test_without_any_home_a_temporary_folder_serves(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container run under a user id without an account has no HOME and no entry in the list of users."""

    def no_home(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    (copy / "__pycache__").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = folder_of(copy)
    assert folder.parent == tmp_path and folder.name.startswith("numba-") and folder.is_dir()
    assert folder_of(copy) == folder and folder.stat().st_mode & 0o777 == 0o700, "every process has the same"
    folder.chmod(0o777)
    another = folder_of(copy)
    assert another != folder and another.is_dir(), "anybody can write there"
