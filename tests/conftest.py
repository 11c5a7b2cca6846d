"""What all tests share: the optional data folder, and the skip of GPU tests on machines without one.

Conventions: a test writes only under pytest's `tmp_path`; what several tests of a module share is made once
under `tmp_path_factory` in a module-scoped fixture; nothing is ever downloaded.
"""

import contextlib
import fcntl
import gc
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from helpers import rewritten, warm

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
LONGEST = (  # the files that take longest, longest first, after six with which three processes begin
    # The first compiles what most need (`tiny`); of the two beside it, which would compile the same, one does not need it, and
    # the other waits for processes most of the time.
    "runs/test_run_drills.py",
    "unit/pipelines/augment/test_finish.py",
    "runs/test_launchers.py",
    "unit/tools/conversion/test_cifar.py",
    "unit/tools/test_bench.py",
    "unit/tools/conversion/test_demo_images.py",
    "unit/tools/test_reproduce.py",
    "unit/tools/test_report.py",
    "unit/pipelines/test_loader.py",
    "runs/test_slurm.py",
    "runs/test_unlike_ranks.py",
    "runs/test_stops.py",
    "runs/test_readme.py",
    "runs/test_interruptions.py",
    "unit/train/test_experiment.py",
    "runs/test_wiring.py",
    "runs/test_configs.py",
    "unit/pipelines/records/test_layout.py",
    "unit/pipelines/logits/test_reader.py",
    "runs/test_finetune.py",
    "unit/train/test_predict.py",
    "unit/train/objectives/test_caching.py",
    "runs/test_distributed.py",
    "runs/test_cache_drills.py",
    "runs/test_targets_online.py",
    "unit/train/test_loop.py",
    "unit/train/test_values.py",
    "unit/tools/test_convert.py",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread: on small tensors more gain nothing, and on a busy machine they wait endlessly for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> None:
    """multiprocessing's processes, such as those that convert images, are forks of one that has imported what they need.

    That takes up to 2 s in each of them otherwise. It begins here, in the root of the repository, from where it imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pytest", "pipelines.records.workers", "pipelines.logits"])
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; users have none, so these tests skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data folder beside the repository: {SHARED_DATA}")
    return SHARED_DATA


def pytest_configure(config: pytest.Config) -> None:
    """All tests but those marked `gpu` run on the CPU, so that they mean the same on every machine; programs inherit this.

    Where several processes take whole files, pytest-xdist keeps our order instead of starting with the files of most tests. These
    processes are forks of one warm Python, as the programs are that the tests start: imports are done once for all. Meanwhile
    this process rewrites the asserts of the tests for all.
    """
    os.environ["ACCELERATE_USE_CPU"] = "true"
    # What the CPU says it can do it can: torch.compile would build and load a library for each of its instruction sets first.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        os.environ.pop(name, None)  # rich would write for a terminal, or for another one
    if not hasattr(config, "workerinput"):
        home = tempfile.TemporaryDirectory(prefix="huggingface-")  # without the user's answers to `accelerate config`
        config.add_cleanup(home.cleanup)
        os.environ["HF_HOME"] = home.name
    # Looking for garbage takes a twentieth of the time otherwise: among all objects of torch, after every 700 new ones.
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    # In the background of a script Ctrl-C is ignored, and would be by all programs that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    rewritten.use()
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if set(getattr(config.option, "tx", None) or ()) == {"popen"}:
        warming = threading.Thread(target=warm.python)
        warming.start()
        folder = tempfile.TemporaryDirectory(prefix="rewritten-")
        config.add_cleanup(folder.cleanup)
        rewritten.write(config, Path(folder.name))
        warming.join()
        os.environ[warm.SERVED] = warm.python()
        config.option.tx = [f"popen//python={warm.python()}"] * len(config.option.tx)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no process starts one when the others are done; skip `gpu` tests without a GPU."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _on_its_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU for a test marked `gpu`, of which accelerate, whose state is global, keeps nothing."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    from accelerate.state import AcceleratorState

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.beton (118 images, 5 long-tailed classes) and test.beton (37): raw, 8 x 8, learnable.

    The code that loads them is compiled here, by one process: where none is stored yet that takes 12 seconds, which three would
    spend on the same.
    """
    from helpers.launch import run, tiny_config, write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    lock = tmp_path_factory.getbasetemp().parent / "compiling.lock"  # in the folder of all processes of xdist
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run("teacher", tiny_config(tmp_path_factory.mktemp("first"), folder), "--dry-run", cwd=folder)
    return folder


@pytest.fixture
def bare_environment(tmp_path: Path, monkeypatch):
    """An empty current directory, the CPU, no launcher; torch's switches are restored afterwards."""
    import torch
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "CUBLAS_WORKSPACE_CONFIG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    before = dict(os.environ)
    yield
    AcceleratorState._reset_state(True)
    for name in set(os.environ) - set(before):  # accelerate sets RANK and the like itself
        del os.environ[name]
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
