"""Cache folders, written and read: killed writers, full disks, damage of every kind, and which cache a run may use."""

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_caches import (
    CLASSES,
    FEW,
    MANY,
    RECIPE,
    cache_files,
    fill,
    identity_of,
    logits_of,
    make_cache,
    make_records,
    prints_of,
    some_samples,
    wanted_of,
    write_cell,
)

from pipelines.augment.recipe import Recipe
from pipelines.errors import UserError
from pipelines.files import is_temporary, temporary_path
from pipelines.logits import CacheWriter, LogitCache
from pipelines.logits.blocks import BLOCK_ROWS, HEADER, Block, open_block
from pipelines.logits.folder import Wanted, find_cache, misfits, open_folder
from pipelines.logits.identity import cache_identity, identity_bytes, identity_hash, view_identity
from pipelines.records.reader import Records
from pipelines.records.workers import Sample


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, many: Records) -> Path:
    """A cache of two blocks and three views; read only, never damaged."""
    return make_cache(tmp_path_factory.mktemp("large"), many, views=3)


@pytest.fixture
def small(tmp_path: Path, few: Records) -> Path:
    """A cache of one block and two views, to be damaged."""
    return make_cache(tmp_path, few)


def expected(keys: np.ndarray, views: np.ndarray) -> np.ndarray:
    return np.concatenate([logits_of(keys[i : i + 1], int(views[i])) for i in range(len(keys))])


def gather_all(folder: Path, records: Records) -> None:
    """Open a cache and read all its targets, as successive runs would."""
    cache = LogitCache(folder)
    for view in range(cache.views):
        found = cache.gather(records.keys, np.full(len(records), view, np.int32))
        assert np.array_equal(found.numpy(), logits_of(records.keys, view))


# ---- reading ----


def test_any_keys_under_any_views_in_one_call(large: Path, many: Records) -> None:
    """Both blocks, all views, mixed and repeated, in the requested order."""
    cache = LogitCache(large)
    assert (cache.views, cache.classes) == (3, 5)
    rng = np.random.default_rng(0)
    for size in (1, 2, 500):
        keys = many.keys[rng.integers(0, MANY, size)]
        views = rng.integers(0, 3, size).astype(np.int32)
        found = cache.gather(keys, views)
        assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected(keys, views))
    gather_all(large, many)
    assert cache.gather(many.keys[:0], np.zeros(0, np.int32)).shape == (0, 5)


@pytest.mark.parametrize(("codec", "tolerance"), [("f16", 8 * 2**-11), ("u8", 16 / 255 / 2 * 1.01)])
def test_smaller_codecs(tmp_path: Path, few: Records, codec: str, tolerance: float) -> None:
    cache = LogitCache(make_cache(tmp_path, few, codec=codec))
    found = cache.gather(few.keys, np.ones(FEW, np.int32)).numpy()
    assert 0 < np.abs(found - logits_of(few.keys, 1)).max() <= tolerance
    assert 0 < cache.require_temperature(3.0) < 1e-3


def test_keys_by_name(large: Path, many: Records) -> None:
    cache, some = LogitCache(large), [0, 40, MANY - 1]
    names = [many.name(i) for i in some]
    assert cache.keys_of(names).tolist() == many.keys[some].tolist() and cache.keys_of([]).shape == (0,)
    with pytest.raises(UserError, match=r"has no sample named one\.jpg \(nor 1 more of these 5\): names are those"):
        cache.keys_of([*names, "one.jpg", "two.jpg"])
    with pytest.raises(UserError, match=r"has no sample named two\.jpg: "):
        cache.keys_of(["two.jpg"])
    with pytest.raises(TypeError, match="names is the text 'two.jpg': give a list of names"):
        cache.keys_of("two.jpg")


def test_what_is_not_there(large: Path, many: Records) -> None:
    cache = LogitCache(large)
    ok = np.zeros(1, np.int32)
    for key in (-1, int(many.keys.max()) + 1, int(many.keys.min()) + 1):
        with pytest.raises(UserError, match=f"has no sample with key {key}$"):
            cache.gather(np.array([many.keys[0], key]), np.zeros(2, np.int32))
    for view in (3, -1):
        with pytest.raises(UserError, match=f"holds views 0 to 2, not view {view}$"):
            cache.gather(many.keys[:1], ok + view)


@pytest.mark.parametrize("limit", ["_OPEN_BLOCKS", "_OPEN_BYTES"])
def test_more_blocks_than_are_kept_open(
    tmp_path: Path, few: Records, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    folder = make_cache(tmp_path, few, views=7)
    size = LogitCache(folder)._kind.block_bytes(BLOCK_ROWS)
    monkeypatch.setattr(f"pipelines.logits.reader.{limit}", {"_OPEN_BLOCKS": 3, "_OPEN_BYTES": 4 * size - 1}[limit])
    cache = LogitCache(folder)
    views = np.random.default_rng(0).integers(0, 7, 60).astype(np.int32)
    for view, key in zip(views, few.keys[np.arange(60) % FEW], strict=True):
        found = cache.gather(np.array([key]), np.array([view], np.int32))
        assert np.array_equal(found.numpy(), logits_of(np.array([key]), int(view)))
    assert len(cache._maps) == 3


def test_the_next_view_is_read_ahead(tmp_path: Path, few: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each view, that of the next epoch; not where a batch has several views, of which the next are no others."""
    folder = make_cache(tmp_path, few, views=3)
    read: list[str] = []

    class Watched(io.FileIO):
        def readinto(self, buffer: Any) -> int:  # what is read to the end
            count = super().readinto(buffer)
            if not count:
                read.append(Path(self.name).parent.name)
            return count or 0

    monkeypatch.setattr("pipelines.logits.reader.open", lambda path, *_, **__: Watched(path), raising=False)
    cache, expected = LogitCache(folder), []
    for views, after in (([0, 0], ["v001"]), ([0, 0], []), ([1, 2], []), ([1, 1], ["v002"]), ([2, 2], ["v000"])):
        cache.gather(few.keys[:2], np.array(views, np.int32))
        assert cache._ahead is not None
        cache._ahead.join()
        expected += after
        assert read == expected, views
    shutil.rmtree(folder / "v001")
    LogitCache(folder).gather(few.keys[:2], np.zeros(2, np.int32))  # what is missing is told when it is needed


def test_one_view_at_a_time_is_read_ahead(tmp_path: Path, few: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is slower than the epochs a second thread would slow down the first; its turn comes with a later batch."""
    cache = LogitCache(make_cache(tmp_path, few, views=4))
    begun: list[str] = []
    disk = threading.Event()

    def slow(paths: list[Path]) -> None:
        begun.append(paths[0].parent.name)
        disk.wait(60)

    monkeypatch.setattr("pipelines.logits.reader._into_page_cache", slow)
    for view in (0, 1, 1):
        cache.gather(few.keys[:2], np.full(2, view, np.int32))
    assert cache._ahead is not None and begun == ["v001"]
    disk.set()
    cache._ahead.join()
    cache.gather(few.keys[:2], np.full(2, 1, np.int32))
    cache._ahead.join()
    assert begun == ["v001", "v002"]


def forked(task: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """A separate process that starts in milliseconds: forked from a server that has imported what it needs (conftest.py)."""
    here = str(Path(__file__).parent)
    if here not in sys.path:  # an entry script, imported by another test, has replaced it by the repository
        sys.path.append(here)
    process = multiprocessing.get_context("forkserver").Process(target=task, args=arguments)
    process.start()
    return process


def _read_as_nobody(folder: Path, records_path: Path, answer: Connection) -> None:
    records = Records(records_path)
    views = np.zeros(len(records), np.int32)
    LogitCache(folder).gather(records.keys, views)  # compile before rights are given up
    os.chdir(folder.parent)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    try:
        (Path(folder.name) / "probe").touch()
        answer.send("the folder can be written to")
    except PermissionError:
        cache = LogitCache(folder.name)
        cache.require(wanted_of(records), 2, "same")
        answer.send(cache.gather(records.keys, views).numpy())


def test_readers_need_no_write_access(small: Path, few: Records) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    for path in (small.parent, *(path for path in [small, *small.rglob("*")] if path.is_dir())):
        path.chmod(0o555)
    for path in small.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    ours, theirs = multiprocessing.Pipe()
    process = forked(_read_as_nobody, small, few.path, theirs)
    theirs.close()
    found = ours.recv()
    process.join()
    small.parent.chmod(0o755)
    small.chmod(0o755)
    assert not isinstance(found, str), found
    assert np.array_equal(found, logits_of(few.keys, 0))
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def _read_in_a_fork(cache: LogitCache, keys: np.ndarray, answer: Connection) -> None:
    answer.send([cache.gather(keys, np.full(len(keys), view)).numpy() for view in (0, 1, 2)])


def test_a_cache_that_is_open_survives_a_fork(large: Path, many: Records) -> None:
    """As in DataLoader workers: views opened before the fork, and views opened after it, on both sides."""
    cache = LogitCache(large)
    cache.gather(many.keys, np.zeros(MANY, np.int32))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_read_in_a_fork, args=(cache, many.keys, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    for view in (0, 1, 2):
        assert np.array_equal(found[view], logits_of(many.keys, view))
        assert np.array_equal(cache.gather(many.keys, np.full(MANY, view)).numpy(), found[view])


def _read_elsewhere(cache: LogitCache, folder: Path, keys: np.ndarray, answer: Connection) -> None:
    os.chdir(folder)
    answer.send((len(cache._maps), cache.gather(keys, np.ones(len(keys), int)).numpy()))


def test_a_cache_travels_to_another_process(small: Path, few: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pickled as its path, which is valid in any working directory; open files are left out."""
    monkeypatch.chdir(small.parent)
    cache = LogitCache(small.name)
    cache.gather(few.keys, np.ones(FEW, int))
    ours, theirs = multiprocessing.Pipe()
    process = forked(_read_elsewhere, cache, small, few.keys, theirs)
    theirs.close()
    was_open, found = ours.recv()
    process.join()
    assert was_open == 0 and np.array_equal(found, logits_of(few.keys, 1))


def test_keys_and_views_as_a_user_has_them(large: Path, many: Records) -> None:
    """Tensors, lists, any integers, strided arrays; but exactly one view for each key."""
    cache, keys, views = LogitCache(large), many.keys[:8], np.arange(8) % 3
    expected_logits = expected(keys, views)
    for k, v in (
        (torch.from_numpy(keys), torch.from_numpy(views.astype(np.int32))),
        (keys.tolist(), views.astype(np.uint8)),
        (np.repeat(keys, 2)[::2], np.repeat(views, 2)[::2]),
    ):
        assert np.array_equal(cache.gather(k, v).numpy(), expected_logits)
    for k, v in ((keys, views[:7]), (keys, views[:1]), (keys[None], views[None])):
        with pytest.raises(ValueError, match="one view for each key"):
            cache.gather(k, v)
    with pytest.raises(ValueError, match="are integers, not float64"):
        cache.gather(keys, views + 0.5)


def test_scattered_reading_opens_each_block_once(tmp_path: Path, few: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LogitCache(make_cache(tmp_path, few, views=9))
    opened: list[int] = []
    monkeypatch.setattr("pipelines.logits.reader.open_block", lambda *cell: opened.append(cell[2]) or open_block(*cell))
    views = np.random.default_rng(0).integers(0, 9, FEW)
    for _ in range(3):
        assert np.array_equal(cache.gather(few.keys, views).numpy(), expected(few.keys, views))
    assert sorted(opened) == sorted(set(views.tolist()))


# ---- writing ----


def test_files_of_a_cache(small: Path, few: Records) -> None:
    identity = identity_of(few)
    assert small.name == f"t-{identity_hash(identity).hex()[:12]}"
    assert (small / "identity.json").read_bytes() == identity_bytes(identity)
    assert (small / "index.bin").read_bytes() == few.rows().tobytes()
    names = sorted(str(path.relative_to(small)) for path in small.rglob("*") if path.is_file())
    assert names == ["done.json", "identity.json", "index.bin", "made.json", "v000/b00000.lc", "v001/b00000.lc"]


def test_more_views_extend_a_cache_and_fewer_do_not_shrink_it(tmp_path: Path, few: Records, small: Path) -> None:
    before = cache_files(small)
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    assert writer.folder == small and writer.missing(2) == [] and writer.missing(4) == [(2, 0), (3, 0)]
    fill(writer, 4)
    assert LogitCache(small).views == 4
    after = cache_files(small)
    assert len(after) == len(before) + 2 and before.items() <= after.items()
    fill(writer, 1)
    assert LogitCache(small).views == 4
    gather_all(small, few)
    summed = sum(open_block(small, writer.kind, view, 0, FEW).certificate for view in range(4))
    assert np.array_equal(LogitCache(small).certificate, np.asarray(summed))


def test_logits_of_any_kind_give_the_same_bytes(tmp_path: Path, few: Records) -> None:
    """Arrays, which may be read-only or lie in memory in any way, and tensors: of float64, with gradients, by columns."""
    keys = np.sort(few.keys)
    logits, prints = logits_of(keys, 0), prints_of(keys, 0)
    logits.flags.writeable = False
    blocks = set()
    tensor = torch.tensor(logits)
    arrays = logits, np.ascontiguousarray(logits[::-1])[::-1], logits.astype(">f4"), np.asfortranarray(logits)
    tensors = tensor.double(), tensor.clone().requires_grad_(), tensor.T.contiguous().T
    for number, given in enumerate((*arrays, *tensors)):
        writer = CacheWriter(tmp_path / str(number), "t", identity_of(few), few.rows())
        assert writer.write((0, 0), given, prints) == (logits.argmax(axis=1) == writer.rows["label"]).sum()
        blocks.add((writer.folder / "v000/b00000.lc").read_bytes())
    assert len(blocks) == 1


def test_two_writers_at_once(tmp_path: Path, many: Records, large: Path) -> None:
    """Interleaved, from both ends, both writing one cell: the bytes are the same, and each may declare the cache complete."""
    a, b = (CacheWriter(tmp_path, "t", identity_of(many), many.rows()) for _ in range(2))
    cells = a.missing(3)
    for forth, back in zip(cells, reversed(cells), strict=True):
        if not a.has(forth):
            write_cell(a, forth)
        write_cell(b, back)
    a.finish(3, {})
    b.finish(3, None)
    assert cache_files(a.folder) == cache_files(large)
    gather_all(a.folder, many)


def test_writers_that_finish_together_leave_all_views_declared(
    tmp_path: Path, few: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writer ends while the first, which has counted fewer views, still sums their certificates."""
    a, b = (CacheWriter(tmp_path, "t", identity_of(few), few.rows()) for _ in range(2))
    for cell in a.missing(2):
        write_cell(a, cell)
    ends: list[threading.Thread] = []

    def slowly(*arguments: Any) -> Block:
        if not ends:
            for view in (2, 3):
                write_cell(b, (view, 0))
            ends.append(threading.Thread(target=b.finish, args=(4, None)))
            ends[0].start()
            ends[0].join(0.3)
        return open_block(*arguments)

    monkeypatch.setattr("pipelines.logits.writer.open_block", slowly)
    a.finish(2, None)
    ends[0].join()
    assert LogitCache(a.folder).views == 4


def accuracy_of(records: Records, views: int) -> float:
    labels = records.rows()["label"]
    keys = records.rows()["key"]
    return float(np.mean([(logits_of(keys, view).argmax(axis=1) == labels).mean() for view in range(views)]))


def test_made_json_tells_of_all_sessions(tmp_path: Path, few: Records, small: Path) -> None:
    """Also of the teacher's accuracy on all views, in whichever session they were written: killed sessions recorded nothing."""
    first = {"host": "here"}
    assert json.loads((small / "made.json").read_text()) == {
        "teacher_top1": accuracy_of(few, 2),
        "sessions": [first],
    }
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    before = (small / "made.json").stat().st_mtime_ns
    assert writer.finish(2, None) == accuracy_of(few, 2)
    assert (small / "made.json").stat().st_mtime_ns == before
    write_cell(writer, (2, 0))  # and the writer is killed
    writer.finish(3, None)
    assert json.loads((small / "made.json").read_text()) == {
        "teacher_top1": accuracy_of(few, 3),
        "sessions": [first],
    }
    write_cell(writer, (3, 0))
    writer.finish(4, {"host": "there"})
    assert json.loads((small / "made.json").read_text())["sessions"] == [first, {"host": "there"}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sessions": 3}'])
def test_a_damaged_made_json_is_begun_anew(tmp_path: Path, few: Records, small: Path, text: str) -> None:
    (small / "made.json").write_text(text)
    CacheWriter(tmp_path, "t", identity_of(few), few.rows()).finish(2, {"host": "there"})
    assert json.loads((small / "made.json").read_text())["sessions"] == [{"host": "there"}]


def test_what_killed_writers_left_is_removed(tmp_path: Path, few: Records, small: Path) -> None:
    """Only after an hour: a younger file may belong to a live writer, on this host or another. It never counts as a block."""
    places = [small / "v000/b00000.lc", small / "v001/b00000.lc", small / "identity.json", small / "v007/b00000.lc"]
    (small / "v007").mkdir()
    old, young = ([temporary_path(path) for path in places] for _ in range(2))
    for path in (*old, *young):
        path.write_bytes(b"half a bl")
    for path in old:
        os.utime(path, (time.time() - 3700,) * 2)
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    assert not any(path.exists() for path in old) and all(path.exists() for path in young)
    assert writer.missing(8) == [(view, 0) for view in range(2, 8)] and not writer.has((7, 0))
    for path in young:
        os.utime(path, (time.time() - 3700,) * 2)
    writer.finish(2, None)
    assert not any(path.exists() for path in young)
    gather_all(small, few)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers(tmp_path: Path, few: Records, value: float) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    keys = writer.rows["key"]
    logits = logits_of(keys, 1)
    logits[17, 2] = value
    with pytest.raises(UserError, match=rf"NaN or infinite logits for sample {keys[17]} \(view 1\)"):
        writer.write((1, 0), logits, prints_of(keys, 1))
    assert not list(writer.folder.rglob("*.lc")) and writer.missing(2) == [(0, 0), (1, 0)]


def test_logits_too_large_for_f16_write_nothing(tmp_path: Path, few: Records) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(few, codec="f16"), few.rows())
    keys = writer.rows["key"]
    with pytest.raises(UserError, match="use cache.codec=f32"):
        writer.write((0, 0), logits_of(keys, 0) * 1e4, prints_of(keys, 0))
    assert not list(writer.folder.rglob("*.lc"))


def test_a_mistake_of_ours_is_no_user_error(tmp_path: Path, few: Records) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    with pytest.raises(ValueError, match=r"logits \(40, 5\) for a block of 41 rows, 5 classes"):
        writer.write((0, 0), logits_of(writer.rows["key"][:40], 0), prints_of(writer.rows["key"][:40], 0))


def _write_all(parent: Path, records_path: Path, views: int) -> None:
    records = Records(records_path)
    fill(CacheWriter(parent, "t", identity_of(records), records.rows()), views)


def test_killed_at_any_moment_and_resumed(tmp_path: Path, many: Records) -> None:
    """SIGKILL six times, at random moments: every visible file is whole, and in the end there is no trace of the kills."""
    views, parent = 12, tmp_path / "killed"
    calm = make_cache(tmp_path / "calm", many, views)
    rng, left = random.Random(0), []
    for number in range(6):
        process = forked(_write_all, parent, many.path, views)
        until = time.monotonic() + 30
        seen = len(list(parent.rglob("*.lc")))
        while process.is_alive() and len(list(parent.rglob("*.lc"))) == seen and number and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.join()
        for path in [path for path in parent.rglob("*") if path.is_file() and not is_temporary(path)]:
            name = path.relative_to(next(parent.iterdir()))
            if path.suffix in (".lc", ".bin") or path.name == "identity.json":
                assert path.read_bytes() == (calm / name).read_bytes()
        left.append(len(list(parent.rglob("*.lc"))))
        assert not list(parent.rglob("done.json")) or left[-1] == 2 * views
    assert left == sorted(left) and left[0] < 2 * views
    folder = make_cache(parent, many, views)
    assert folder.name == calm.name and cache_files(folder) == cache_files(calm)
    assert LogitCache(folder).views == views
    gather_all(folder, many)


def _write_on_a_full_disk(parent: Path, scratch: Path, records_path: Path, limit: int, answer: Connection) -> None:
    records = Records(records_path)
    make_cache(scratch, records)  # puts all compiled code on the disk before it is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond it fails as on a full disk
    try:
        fill(CacheWriter(parent, "t", identity_of(records), records.rows()), 2)
        answer.send("written")
    except UserError as error:
        answer.send(str(error))


def test_a_full_disk(tmp_path: Path, few: Records) -> None:
    """In any file: one clear line, nothing half-written, and the same command continues when there is space again."""
    block = 100 + FEW * (20 + 20 + 4) + 6 * 24 + 4 + 4
    reason = os.strerror(errno.EFBIG)
    parent = tmp_path / "full"
    for limit, where in ((100, f"cache.dir={parent}"), (1000, f"cache.dir={parent}"), (block - 1, f"{parent}/t-")):
        ours, theirs = multiprocessing.Pipe()
        process = forked(_write_on_a_full_disk, parent, tmp_path / "scratch", few.path, limit, theirs)
        theirs.close()
        found = ours.recv()
        process.join()
        assert found.startswith(f"cannot write to {where}") and reason in found
        assert not list(parent.rglob("*.lc")) and not [path for path in parent.rglob("*") if is_temporary(path)]
    gather_all(make_cache(parent, few), few)


def test_no_room_for_the_last_files(tmp_path: Path, few: Records) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    write_cell(writer, (0, 0))
    (writer.folder / "done.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write to .*make room.* and run the same command again"):
        writer.finish(1, {})
    (writer.folder / "done.json").rmdir()
    writer.finish(1, {})
    assert LogitCache(writer.folder).views == 1


def test_a_place_that_cannot_be_written(tmp_path: Path, few: Records) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to cache.dir=.*file: .*choose another cache.dir"):
        CacheWriter(tmp_path / "file", "t", identity_of(few), few.rows())


def test_a_damaged_block_is_not_declared_complete(tmp_path: Path, few: Records) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(few), few.rows())
    for cell in writer.missing(2):
        write_cell(writer, cell)
    path = writer.folder / "v001/b00000.lc"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"v001/b00000\.lc: .*delete it"):
        writer.finish(2, {})
    with pytest.raises(UserError, match="is unfinished; run train/cache_logits.py again"):
        LogitCache(writer.folder)
    path.unlink()
    fill(writer, 2)
    gather_all(writer.folder, few)


# ---- damage ----


def flip(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def lengthen(data: bytearray, rng: random.Random) -> bytearray:
    return data + rng.randbytes(rng.randrange(1, 5000))


def blank(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data) - 8)
    piece = bytes(max(8, rng.randrange(len(data) - start)))
    return data[:start] + piece + data[start + len(piece) :]


def drop(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data) - 1)
    return data[:start] + data[start + rng.randrange(1, 64) :]


@pytest.mark.parametrize("name", ["identity.json", "index.bin", "v000/b00000.lc", "v001/b00000.lc"])
@pytest.mark.parametrize("harm", [flip, cut, lengthen, blank, drop])
def test_every_damage_is_refused(small: Path, few: Records, name: str, harm: Callable) -> None:
    """Damaged at random places, a cache either does not open or refuses the damaged targets."""
    whole = (small / name).read_bytes()
    rng = random.Random(f"{name} {harm.__name__}")
    for _ in range(5):
        harmed = whole
        while harmed == whole:  # zeros over zeros change nothing
            harmed = harm(bytearray(whole), rng)
        (small / name).write_bytes(harmed)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            gather_all(small, few)
    (small / name).write_bytes(whole)
    gather_all(small, few)


@pytest.mark.parametrize("name", ["identity.json", "index.bin", "done.json", "v001/b00000.lc"])
def test_a_missing_file_is_named_at_the_start(small: Path, few: Records, name: str) -> None:
    (small / name).unlink()
    what = {"identity.json": "cache", "done.json": "is unfinished"}.get(name, name)
    with pytest.raises(UserError, match=what):
        LogitCache(small).require(wanted_of(few), 2, "same")


def test_done_json_may_be_replaced_while_it_is_read(small: Path, few: Records, tmp_path: Path, monkeypatch) -> None:
    """A writer has finished more views, just after this process has read the file."""
    longer = make_cache(tmp_path / "longer", few, views=3) / "done.json"
    read = Path.read_bytes

    def replaced(path: Path) -> bytes:
        data = read(path)
        if path == small / "done.json":
            path.write_bytes(read(longer))
        return data

    monkeypatch.setattr(Path, "read_bytes", replaced)
    before = LogitCache(small).views
    assert before < 3 == LogitCache(small).views


def test_done_json_is_believed_only_as_written(small: Path, few: Records, tmp_path: Path) -> None:
    """done.json has the number of views and the codec's loss: edited, cut or copied from another cache, it is refused."""
    done = small / "done.json"
    whole = done.read_text()
    other = make_cache(tmp_path, few, codec="f16") / "done.json"
    edits = [
        whole.replace('"views": 2', '"views": 3'),
        whole.replace("0.0", "0.5", 1),
        whole[: len(whole) // 2],
        whole.replace("{", "{ ", 1),  # equal values, other bytes: 1e-05 and 1E-05 are one flipped bit apart
        "[]",
        "{}",
        "null",
        "",
        other.read_text(),
    ]
    for text in edits:
        assert text != whole
        done.write_text(text)
        with pytest.raises(UserError, match=r"done\.json"):
            LogitCache(small)
    done.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"done\.json"):
        LogitCache(small)
    done.write_text(whole)
    gather_all(small, few)


def test_an_edited_identity_needs_all_blocks_anew(small: Path, few: Records) -> None:
    """Even if the folder is renamed to fit: the blocks carry the hash of the identity they were written under."""
    identity = identity_of(few, seed=1)
    (small / "identity.json").write_bytes(identity_bytes(identity))
    with pytest.raises(UserError, match=f"its name should end in {identity_hash(identity).hex()[:12]}"):
        LogitCache(small)
    renamed = small.rename(small.with_name(f"t-{identity_hash(identity).hex()[:12]}"))
    with pytest.raises(UserError, match=r"done\.json is .* of another cache"):
        LogitCache(renamed)
    (renamed / "done.json").unlink()
    writer = CacheWriter(renamed.parent, "t", identity, few.rows())
    with pytest.raises(UserError, match=r"v000/b00000\.lc: its header is not that of view 0, block 0 of this cache"):
        writer.finish(2, {})


def test_names_of_the_folder(small: Path, few: Records) -> None:
    link = small.parent / "best"
    link.symlink_to(small)
    gather_all(link, few)
    link.unlink()
    renamed = small.rename(small.with_name("mine"))
    with pytest.raises(UserError, match=r"mine: its name should end in \w{12}, .*rename the folder back"):
        LogitCache(renamed)
    renamed = renamed.rename(renamed.with_name(f"another-name-{small.name[-12:]}"))
    gather_all(renamed, few)


def test_another_format(small: Path, few: Records) -> None:
    identity = identity_of(few) | {"format": 3}
    (small / "identity.json").write_bytes(identity_bytes(identity))
    renamed = small.rename(small.with_name(f"t-{identity_hash(identity).hex()[:12]}"))
    with pytest.raises(UserError, match="has cache format 3, this version reads 2"):
        LogitCache(renamed)


@pytest.mark.parametrize("source", ["view", "teacher"])
def test_a_block_that_belongs_elsewhere(small: Path, few: Records, tmp_path: Path, source: str) -> None:
    """The block of another view, and that of another teacher under the same view: equal in size, refused by name."""
    other = small if source == "view" else make_cache(tmp_path / "other", few, weights="cd" * 32)
    shutil.copy(other / "v001/b00000.lc", small / f"v00{0 if source == 'view' else 1}/b00000.lc")
    with pytest.raises(UserError, match=r"b00000\.lc: its header is not that of view \d, block 0 of this cache"):
        gather_all(small, few)


def test_swapped_records_name_file_block_and_key(small: Path, few: Records) -> None:
    """Two records are swapped with their checksums, and the file is sealed again: only these two are refused."""
    path = small / "v001/b00000.lc"
    size, rows = 20 + 4 * 5, few.rows()
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    split = HEADER.itemsize + FEW * size
    for table in (data[HEADER.itemsize : split].reshape(FEW, size), data[split : split + 4 * FEW].reshape(FEW, 4)):
        table[[3, 8]] = table[[8, 3]]
    path.write_bytes(data[:-4].tobytes() + zlib.crc32(data[split:-4].tobytes()).to_bytes(4, "little"))
    cache = LogitCache(small)
    view = np.ones(1, np.int32)
    for i in (3, 8):
        message = (
            rf"v001/b00000\.lc: the record of key {rows['key'][i]} \(view 1, block 0\) is damaged; delete the file"
        )
        with pytest.raises(UserError, match=message):
            cache.gather(rows["key"][i : i + 1], view)
    untouched = np.delete(rows["key"], [3, 8])
    assert len(cache.gather(untouched, np.ones(len(untouched), np.int32))) == FEW - 2


def test_the_index_of_another_dataset(small: Path, tmp_path: Path) -> None:
    other = make_records(tmp_path / "other.beton", some_samples(FEW, seed=1))
    (small / "index.bin").write_bytes(other.rows().tobytes())
    with pytest.raises(UserError, match=r"index\.bin is damaged or of another dataset"):
        LogitCache(small)


# ---- which run may use which cache ----


def refusal(cache: LogitCache, wanted: Wanted, views: int = 1, pixels: str = "close") -> str:
    with pytest.raises(UserError) as caught:
        cache.require(wanted, views, pixels)
    return str(caught.value)


def test_what_fits_has_no_notes(small: Path, few: Records) -> None:
    assert LogitCache(small).require(wanted_of(few), 2, "same") == []
    assert LogitCache(small).require(wanted_of(few, weights="ab" * 32), 1, "close") == []


def _recipe(records: Records, **changes: object) -> dict:
    return view_identity(records, dataclasses.replace(RECIPE, **changes), 0, "reference")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("dataset.class_names", lambda r, v: v | {"dataset": v["dataset"] | {"class_names": CLASSES[::-1]}}),
        ("dataset.class_names", lambda r, v: v | {"dataset": v["dataset"] | {"class_names": [*CLASSES, "fly"]}}),
        ("data_seed", lambda r, v: v | {"data_seed": 1}),
        ("recipe.pad", lambda r, v: _recipe(r, pad=2)),
        ("recipe.flip", lambda r, v: _recipe(r, flip=False)),
        ("recipe.size", lambda r, v: _recipe(r, size=8)),
        ("recipe.crop", lambda r, v: _recipe(r, crop="random_resized_crop")),
        ("recipe.scale", lambda r, v: _recipe(r, crop="random_resized_crop", scale=[0.1, 1.0])),
        ("recipe.jitter", lambda r, v: v | {"recipe": v["recipe"] | {"jitter": [0.4]}}),
        ("versions.views", lambda r, v: v | {"versions": v["versions"] | {"views": 99}}),
        ("versions.finish", lambda r, v: v | {"versions": v["versions"] | {"finish": 99}}),
        ("newcomer", lambda r, v: v | {"newcomer": True}),
    ],
)
def test_each_field_is_refused_by_its_name(small: Path, few: Records, field: str, change: Callable) -> None:
    wanted = wanted_of(few)
    text = refusal(LogitCache(small), wanted._replace(view=change(few, wanted.view)))
    assert f"{field}: " in text and "is not a cache of this run" in text and "train/cache_logits.py" in text


def test_the_scale_of_crops_is_refused_by_its_name(tmp_path: Path, few: Records) -> None:
    view = view_identity(few, Recipe(size=4), 0, "reference")
    identity = cache_identity(view, {"weights": "ab"}, "f32", 1)
    writer = CacheWriter(tmp_path, "t", identity, few.rows())
    fill(writer, 1)
    view = view_identity(few, Recipe(size=4, scale=[0.2, 1.0]), 0, "reference")
    text = refusal(LogitCache(writer.folder), Wanted(view, few.rows()))
    assert "recipe.scale: cache [0.08, 1.0], here [0.2, 1.0]" in text


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("backend", {"backend": "ffcv"}),
        ("versions.resample", {"versions": {"views": 1, "resample": 99, "finish": 1}}),
        ("size_rule", {"size_rule": "short_side 256"}),
    ],
)
def test_fields_that_only_change_pixels(small: Path, few: Records, field: str, change: dict) -> None:
    wanted = wanted_of(few)
    wanted = wanted._replace(view=wanted.view | change)
    cache = LogitCache(small)
    (note,) = cache.require(wanted, 2, "close")
    assert note.startswith(f"{field}: cache ")
    assert f"{field}: cache " in refusal(cache, wanted, pixels="same")


def test_another_teacher_is_refused(small: Path, few: Records) -> None:
    text = refusal(LogitCache(small), wanted_of(few, weights="cd" * 32))
    assert "teacher.weights: another teacher, cache abababababab, here cdcdcdcdcdcd" in text


def test_views_that_are_not_stored(small: Path, few: Records) -> None:
    text = refusal(LogitCache(small), wanted_of(few), views=5)
    assert "holds 2 views, this run uses 5: set data.views=2, or run train/cache_logits.py with data.views=5" in text


def test_a_subset_or_another_order_may_use_the_cache(large: Path, tmp_path: Path) -> None:
    cache = LogitCache(large)
    samples = some_samples(MANY)
    chosen = [samples[i] for i in np.random.default_rng(0).permutation(MANY)[:20]]
    subset = make_records(tmp_path / "subset.beton", chosen)
    assert subset.digest != cache.identity["dataset"]["digest"]
    assert cache.require(wanted_of(subset), 3, "same") == [f"dataset: 20 of the cache's {MANY} samples"]
    mixed = [samples[i] for i in np.random.default_rng(1).permutation(MANY)]
    shuffled = make_records(tmp_path / "shuffled.beton", mixed)
    assert cache.require(wanted_of(shuffled), 3, "same") == []
    for records in (subset, shuffled):
        found = cache.gather(records.keys, np.full(len(records), 2, np.int32))
        assert np.array_equal(found.numpy(), logits_of(records.keys, 2))


def test_a_subset_may_not_use_a_cache_of_mixed_views(large: Path, tmp_path: Path) -> None:
    """Its partners would be others; another order in the file changes none."""
    samples = some_samples(MANY)
    subset = make_records(tmp_path / "subset.beton", samples[:20])
    shuffled = make_records(tmp_path / "shuffled.beton", samples[::-1])
    opened = open_folder(large)
    mixed = opened.identity["recipe"] | {"mix": "mixup", "mix_alpha": 1.0, "mix_share": 1.0}
    opened = opened._replace(identity=opened.identity | {"recipe": mixed})
    for records, expected in (
        (subset, {"dataset.digest": f"20 of its {MANY} samples, and partners of mixed views are drawn from all"}),
        (shuffled, {}),
    ):
        wanted = wanted_of(records)
        assert misfits(opened, wanted._replace(view=wanted.view | {"recipe": mixed})) == expected


def _relabelled(samples: list[Sample]) -> list[Sample]:
    return [samples[0]._replace(label=3), *samples[1:]]


def _repainted(samples: list[Sample]) -> list[Sample]:
    return [samples[0]._replace(image=255 - np.asarray(samples[0].image)), *samples[1:]]


def _widened(samples: list[Sample]) -> list[Sample]:
    return [samples[0]._replace(image=np.zeros((4, 6, 3), np.uint8)), *samples[1:]]


def _renamed(samples: list[Sample]) -> list[Sample]:
    return [samples[0]._replace(name="newcomer"), *samples[1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_relabelled, "has label 0 in it, here 3"),
        (_repainted, "has source "),
        (_widened, "has width 4 in it, here 6"),
        (_renamed, "is not in it"),
    ],
)
def test_a_changed_sample_is_refused(small: Path, tmp_path: Path, change: Callable, words: str) -> None:
    samples = change(some_samples(FEW))
    for name, chosen in (("all", samples), ("some", samples[:7])):
        records = make_records(tmp_path / f"{name}.beton", chosen)
        text = refusal(LogitCache(small), wanted_of(records))
        assert "dataset.digest: another dataset, sample " in text and words in text
        assert f"(1 of {len(chosen)} samples differ so)" in text


def test_more_samples_than_were_cached_are_refused(small: Path, tmp_path: Path) -> None:
    records = make_records(tmp_path / "more.beton", some_samples(FEW + 2)[:FEW] + some_samples(FEW + 2)[-2:])
    text = refusal(LogitCache(small), wanted_of(records))
    assert "(2 of 43 samples differ so)" in text or "another dataset" in text


def test_temperatures_over_the_budget(tmp_path: Path, few: Records) -> None:
    """One class far above the rest: 8 bits over that range lose all information about the others."""
    folders = {}
    for codec in ("u8", "f16", "f32"):
        writer = CacheWriter(tmp_path, "t", identity_of(few, codec=codec), few.rows())
        keys = writer.rows["key"]
        logits = logits_of(keys, 0)
        logits[:, 1] = -8000
        writer.write((0, 0), logits, prints_of(keys, 0))
        writer.finish(1, {})
        folders[codec] = writer.folder
    for temperature in (1.0, 4.0):
        with pytest.raises(UserError, match=rf"codec u8 loses \d.*% .*T = tau/p = {temperature:g} .*cache.codec=f32"):
            LogitCache(folders["u8"]).require_temperature(temperature)
    assert 0 < LogitCache(folders["f16"]).require_temperature(6.0) < 0.01
    with pytest.raises(UserError, match=r"codec f16 is not certified at T = tau/p = 25 .*up to T = 20"):
        LogitCache(folders["f16"]).require_temperature(25.0)
    assert LogitCache(folders["f32"]).require_temperature(25.0) == 0


# ---- cache.paths ----


def test_a_cache_or_the_folder_that_holds_it(small: Path, few: Records, tmp_path: Path) -> None:
    wanted = wanted_of(few)
    assert find_cache(small) == find_cache(small.parent) == find_cache(small.parent, wanted) == small
    assert LogitCache(str(small.parent), wanted).folder == small
    with pytest.raises(UserError, match=r"no logit cache at .*nothing; write one with `python train/cache_logits.py"):
        find_cache(tmp_path / "nothing", wanted)
    (tmp_path / "caches").mkdir()
    with pytest.raises(UserError, match=r"no logit cache at .*/cache; nearest: .*/caches; write one with"):
        find_cache(tmp_path / "cache", wanted)
    (tmp_path / "caches/config.yaml").touch()
    with pytest.raises(UserError, match=r"no logit cache at .*/caches; this is the folder of a run; write one with"):
        find_cache(tmp_path / "caches", wanted)
    # a folder's only cache is always opened, so that the refusal says how it differs
    assert find_cache(small.parent, wanted_of(few, seed=9)) == small
    assert find_cache(small, wanted_of(few, seed=9)) == small


def test_among_several_the_one_that_fits(tmp_path: Path, few: Records, many: Records) -> None:
    """Caches are told apart by data seed, dataset and teacher; damaged neighbours do not matter."""
    folders = [
        make_cache(tmp_path, few),
        make_cache(tmp_path, few, seed=1),
        make_cache(tmp_path, many, views=1, seed=2),
        make_cache(tmp_path, few, seed=3, weights="cd" * 32),
        make_cache(tmp_path, few, seed=3, weights="ef" * 32),
    ]
    (make_cache(tmp_path, few, seed=4) / "index.bin").write_bytes(b"")
    assert find_cache(tmp_path, wanted_of(few)) == folders[0]
    assert find_cache(tmp_path, wanted_of(few, seed=1)) == folders[1]
    assert find_cache(tmp_path, wanted_of(few, seed=2)) == folders[2]  # the few are a subset of the many
    assert find_cache(tmp_path, wanted_of(few, seed=3, weights="ef" * 32)) == folders[4]
    # what only changes pixels is not used for the choice: with pixels=same, `require` refuses it by name
    wanted = wanted_of(few, seed=1)
    assert find_cache(tmp_path, wanted._replace(view=wanted.view | {"backend": "ffcv"})) == folders[1]


def test_several_that_fit_are_listed_by_what_tells_them_apart(tmp_path: Path, few: Records) -> None:
    a = make_cache(tmp_path, few)
    b = make_cache(tmp_path, few, codec="u8")
    c = make_cache(tmp_path, few, weights="cd" * 32, batch=8)
    make_cache(tmp_path, few, seed=1)
    with pytest.raises(UserError) as caught:
        find_cache(tmp_path, wanted_of(few))
    text = str(caught.value)
    assert text.startswith(f"cache.paths: 3 caches in {tmp_path} would do: ") and text.endswith("name one of them")
    assert f"{a.name} (batch 64, codec f32, teacher.weights abababababab)" in text
    assert f"{b.name} (batch 64, codec u8, teacher.weights abababababab)" in text
    assert f"{c.name} (batch 8, codec f32, teacher.weights cdcdcdcdcdcd)" in text
    assert find_cache(tmp_path, wanted_of(few, weights="cd" * 32)) == c


def test_several_of_which_none_fits_are_listed_with_their_differences(tmp_path: Path, few: Records) -> None:
    a = make_cache(tmp_path, few)
    b = make_cache(tmp_path, few, seed=1, weights="cd" * 32)
    broken = make_cache(tmp_path, few, seed=2)
    (broken / "identity.json").write_text("{")
    with pytest.raises(UserError) as caught:
        find_cache(tmp_path, wanted_of(few, seed=5, weights="ab" * 32))
    text = str(caught.value)
    assert f"none of the 3 caches in {tmp_path} is a cache of this run" in text
    assert f"{a.name} (data_seed: cache 0, here 5)" in text
    assert f"{b.name} (data_seed: cache 1, here 5; teacher.weights: another teacher" in text
    assert f"{broken}/identity.json is damaged" in text
