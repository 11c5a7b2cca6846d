"""Memory maps of a cache's blocks: they leave nothing on the heap; when they are released; files that change meanwhile."""

import ctypes
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.small_caches import make_cache, make_records, some_samples

from pipelines.errors import UserError
from pipelines.logits import LogitCache
from pipelines.logits.maps import BlockMaps

VIEWS = 300


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def heap_in_use(cache: LogitCache) -> int:
    """Bytes that malloc has allocated, without the buffer of the cache's thread that reads ahead."""
    assert cache._ahead
    cache._ahead.join()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library has no mallinfo2")
    libc.mallinfo2.restype = _Mallinfo
    return libc.mallinfo2().uordblks


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    return make_cache(folder, make_records(folder / "a.beton", some_samples(5)), views=VIEWS)


def test_open_blocks_keep_nothing_on_the_heap(cache_folder: Path) -> None:
    """A small allocation that stays takes the place of a large one, once for each view that a training opens."""
    cache = LogitCache(cache_folder)
    keys = cache._keys
    for view in range(20):
        cache.gather(keys, np.full(len(keys), view))
    before = heap_in_use(cache)
    for view in range(20, VIEWS):
        cache.gather(keys, np.full(len(keys), view))
    kept = (heap_in_use(cache) - before) / (VIEWS - 20)
    assert mapped(cache_folder) == VIEWS and kept < 32, f"{kept:.0f} bytes for each block"


def test_maps_go_with_their_owner(cache_folder: Path) -> None:
    before = mapped(cache_folder)
    maps = BlockMaps(VIEWS, limit=3)
    for view in (5, 0, 7, 2):
        path = cache_folder / f"v{view:03d}" / "b00000.lc"
        maps.open(view, path, path.stat().st_size)
        content = (ctypes.c_uint8 * path.stat().st_size).from_address(int(maps.addresses[view]))
        assert bytes(content) == path.read_bytes()
    assert len(maps) == 4 and mapped(cache_folder) == before + 4
    maps.close_oldest()
    assert np.flatnonzero(maps.addresses).tolist() == [0, 2, 7] and len(maps) == 3, (
        "the first that was opened is closed"
    )
    assert mapped(cache_folder) == before + 3
    del maps
    assert mapped(cache_folder) == before


def test_files_that_change_between_the_check_and_the_map(tmp_path: Path) -> None:
    maps, path = BlockMaps(2, limit=3), tmp_path / "b00000.lc"
    with pytest.raises(UserError, match=r"b00000.lc: cannot be read \(No such file"):
        maps.open(0, path, 10)
    path.write_bytes(bytes(9))
    with pytest.raises(UserError, match="b00000.lc was changed while it was opened"):
        maps.open(0, path, 10)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="b00000.lc: cannot be mapped into memory"):
        maps.open(0, path, 0)
    assert len(maps) == 0 and not maps.addresses.any()


def test_a_block_cut_short_in_use_is_an_error(cache_folder: Path, tmp_path: Path) -> None:
    """To touch its map would end this process; a block that was deleted lives as long as its map."""
    folder = shutil.copytree(cache_folder, tmp_path / cache_folder.name)
    cache = LogitCache(folder)
    keys, view = cache._keys, np.zeros(5, np.int64)
    logits = cache.gather(keys, view)
    path = folder / "v000/b00000.lc"
    data = path.read_bytes()
    for changed in (len(data) // 2, 0, len(data) + 1):
        os.truncate(path, changed)
        with pytest.raises(UserError, match=f"b00000.lc has {changed} bytes, and had {len(data)} when it was opened"):
            cache.gather(keys, view)
    path.write_bytes(data)
    assert cache.gather(keys, view).equal(logits)
    path.unlink()
    assert cache.gather(keys, view).equal(logits)
