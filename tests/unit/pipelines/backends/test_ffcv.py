"""What is specific to the ffcv backend: its native library, its scratch memory, its threads. The contract: test_loader.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import libffcv
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.backends import ffcv as ffcv_backend
from pipelines.backends.ffcv import FFCVBackend
from pipelines.backends.reference import ReferenceBackend
from pipelines.batch import Boxes, Plan
from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

ROOT = Path(ffcv_backend.__file__).parents[2]
PARAMS = view_params(Recipe(size=16), 0)
needs_ffcv = pytest.mark.skipif(libffcv.library_path() is None, reason="FFCV is not installed")

# Two streams at once on numba's fallback threading layer, used on machines without TBB and OpenMP.
TWO_STREAMS = """
import sys, threading
import numba, numpy as np
from pipelines.backends.ffcv import FFCVBackend
from pipelines.records import Records
from pipelines.augment import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.batch import Plan

records = Records(sys.argv[1])
positions = np.arange(len(records)).repeat(20)
boxes = draw(view_params(Recipe(size=16), 0), records, Plan(positions, np.zeros(len(positions), np.int32))).boxes

def load():
    backend = FFCVBackend(records, 2, "always")
    out = np.empty((len(positions), 16, 16, 3), np.uint8)
    for _ in range(30):
        backend.load(positions, boxes, out)

threads = [threading.Thread(target=load) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(numba.threading_layer())
"""

# A loader on one core, as in a container or a Slurm job with one: its thread loads, the main thread ends.
ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import numba, numpy as np, torch
from pipelines.augment import Recipe
from pipelines.loader import Loader
from pipelines.records import Records

loader = Loader(Records(sys.argv[1]), Recipe(size=16), seed=0, backend="ffcv", finish=None, device=torch.device("cpu"))
batches = loader.batches(np.arange(6), np.zeros(6, np.int32), 2)
print(sum(len(batch.images) for batch in batches), numba.config.NUMBA_NUM_THREADS)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Six JPEGs from 20 x 30 to 320 x 480 pixels, the sides doubling, then shrinking again."""
    folder = tmp_path_factory.mktemp("ffcv")
    rng = np.random.default_rng(0)
    paths = []
    for i, factor in enumerate((1, 2, 4, 16, 8, 1)):
        small = Image.fromarray(rng.integers(0, 256, (2, 3, 3), np.uint8))
        paths.append(folder / f"{i}.jpg")
        small.resize((30 * factor, 20 * factor), Image.Resampling.BICUBIC).save(paths[-1], quality=95)
    samples = [Sample(path.name, 0, path) for path in paths]
    write_records(folder / "sizes.beton", samples, ["any"], kind="test")
    return Records(folder / "sizes.beton")


def boxes_of(records: Records, *positions: int) -> tuple[np.ndarray, Boxes]:
    """Positions, and the boxes of their first views."""
    plan = Plan(np.array(positions), np.zeros(len(positions), np.int32))
    return plan.positions, draw(PARAMS, records, plan).boxes


@needs_ffcv
def test_scratch_grows_with_the_images_of_a_batch(records: Records) -> None:
    """One image at a time, so that scratch grows in the middle of a file; each is compared with the oracle."""
    ours, oracle = FFCVBackend(records, 2, "first"), ReferenceBackend(records, 1, "first")
    rows, sizes = [], []
    for position in range(len(records)):
        found, expected = np.empty((2, 1, 16, 16, 3), np.uint8)
        for backend, out in ((ours, found), (oracle, expected)):
            backend.load(*boxes_of(records, position), out)
        assert np.abs(found.astype(int) - expected).max() <= 6, "smooth pictures: the two decoders are close"
        rows.append(found)
        sizes.append(ours._scratch.shape[1])
    assert sizes == [3 * 600, 3 * 2400, 3 * 9600, 3 * 153600, 3 * 153600, 3 * 153600]
    together = np.empty((6, 16, 16, 3), np.uint8)
    FFCVBackend(records, 2, "first").load(*boxes_of(records, *range(6)), together)
    np.testing.assert_array_equal(together, np.concatenate(rows))


@needs_ffcv
def test_the_decoder_leaves_nothing_of_the_image_before(records: Records) -> None:
    """A small image after a large one in the same scratch memory, against the same image alone."""
    alone, after = np.empty((2, 1, 16, 16, 3), np.uint8)
    FFCVBackend(records, 1, "first").load(*boxes_of(records, 5), alone)
    backend = FFCVBackend(records, 1, "first")
    for position in (3, 5):
        backend.load(*boxes_of(records, position), after)
    np.testing.assert_array_equal(alone, after)


@needs_ffcv
def test_streams_take_turns_where_numba_cannot_run_two(records: Records) -> None:
    """Without the lock numba ends the process: "Concurrent access has been detected"."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWO_STREAMS, str(records.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "workqueue"


@needs_ffcv
def test_a_process_of_one_core_ends(records: Records) -> None:
    """TBB waited for ever at exit, where numba's threads were started by another thread than the main one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ON_ONE_CORE, str(records.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "6 1"


def test_a_library_that_does_not_load_is_a_users_error(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV was removed after FFCV was built, or FFCV was never installed."""
    broken = tmp_path / "_libffcv.so"
    broken.write_bytes(b"not a library")
    for path in (broken, None):
        monkeypatch.setattr(libffcv, "library_path", lambda path=path: path)
        with pytest.raises(UserError, match="tools/setup.sh.*data.backend=reference"):
            FFCVBackend(records, 1, "first")


@needs_ffcv
def test_the_library_is_found_without_importing_ffcv() -> None:
    """Importing FFCV compiles for seconds and sets torch to one thread."""
    program = (
        "import sys; from pipelines.libffcv import library_path; from pipelines.backends import ffcv; "
        "assert library_path().is_file(); sys.exit('ffcv' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == 0


def test_no_library_where_ffcv_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert libffcv.library_path.__wrapped__() is None
