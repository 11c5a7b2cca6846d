"""What all tests share: the optional data folder, and the skip of GPU tests on machines without one.

Conventions: a test writes only under pytest's `tmp_path`; what several tests of a module share is made once
under `tmp_path_factory` in a module-scoped fixture; nothing is ever downloaded.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread: on small tensors more gain nothing, and on a busy machine they wait for each other for ever."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; users have none, their tests skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data folder beside the repository: {SHARED_DATA}")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where PyTorch sees no CUDA device."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.beton (118 images, 5 long-tailed classes) and test.beton (37): raw, 16 x 16, learnable."""
    from launch import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder
