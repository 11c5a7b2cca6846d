"""Computing a cache: students read exactly what the teacher would answer, however the work was divided."""

import contextlib
import json
import math
import os
import random
import re
import resource
import subprocess
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import launch
from helpers.launch import tiny_config
from helpers.small_caches import cache_files, prints_of
from safetensors.torch import load_file

from models.registry import build_model
from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.device import SideStream
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits import CacheWriter, Ensemble, LogitCache
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.identity import cache_identity, view_identity
from pipelines.logits.writer import cache_size
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train.networks.final import save_final
from train.networks.info import ModelInfo
from train.networks.weights import read_run
from train.objectives.caching import _CellProgress, _plan, _Publisher, _shared_list, write_cache
from train.objectives.targets import CachedTargets, Teacher
from train.run import launcher
from train.run.stops import Stopped
from train.watch.text import size_text

CPU = torch.device("cpu")
SECONDS = 60  # for what takes none, on a busy machine too
RECIPE = Recipe(crop="pad_crop", size=8, pad=1)
COUNT, CLASSES, BATCH = BLOCK_ROWS + 39, 5, 600  # two blocks, neither a multiple of a batch
DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("records") / "train.beton"
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (COUNT, 1, 1, 3))  # so that even an untrained teacher sees differences
    pixels = (colours + rng.integers(0, 56, (COUNT, 8, 8, 3))).astype(np.uint8)
    samples = [Sample(f"train/{i}", i % CLASSES, pixels[i]) for i in range(COUNT)]
    write_records(path, samples, [f"c{c}" for c in range(CLASSES)], kind="test")
    return Records(path)


def save_teacher(folder: Path, class_names: list[str], size: int, seed: int = 0, broken: bool = False) -> str:
    """A finished run of a small untrained network whose batch norm has seen colours and whose classes are balanced."""
    torch.manual_seed(seed)
    network = build_model("resnet8", len(class_names))
    colours = (torch.rand(64, 3, 1, 1) * 4 - 2).expand(-1, -1, size, size) + torch.randn(64, 3, size, size) / 4
    with torch.no_grad():
        for _ in range(20):
            network(colours)
        bias = network.get_parameter("fc.bias")
        bias -= network.eval()(colours).mean(dim=0)
        if broken:
            bias[1] = torch.finfo().max  # finite, but more of it is not
            network.get_parameter("fc.weight")[1] = 1e38
    meta = {"architecture": "resnet8", "class_names": class_names, "mean": [0.5] * 3, "std": [0.25] * 3}
    folder.mkdir(parents=True)
    save_final(folder, network.state_dict(), ModelInfo.of(meta | {"input_size": size, "precision": "fp32"}))
    return str(folder)


def loader_of(records: Records) -> Loader:
    finish = Finish([0.4] * 3, [0.3] * 3, CPU, channels_last=False)
    return Loader(records, RECIPE, seed=0, backend="reference", finish=finish, device=CPU, workers=1)


def teacher_of(folder: Path, records: Records, **options: bool) -> Teacher:
    run = folder / "runs" / "t"
    path = str(run) if run.exists() else save_teacher(run, list(records.class_names), 8, **options)
    return Teacher(read_run(path), records, 8, CPU, "fp32", False)


def writer_of(folder: Path, records: Records, teacher: Teacher, codec: str = "f32") -> CacheWriter:
    view = view_identity(records, RECIPE, 0, "reference")
    return CacheWriter(folder / "caches", "t", cache_identity(view, teacher.identity, codec, BATCH), records.rows())


def write(folder: Path, records: Records, views: int, codec: str = "f32") -> tuple[Path, dict]:
    """Compute a cache in this process: (its folder, figures)."""
    teacher = teacher_of(folder, records)
    writer = writer_of(folder, records, teacher, codec)
    return writer.folder, write_cache(writer, loader_of(records), teacher, views, BATCH, Accelerator(cpu=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, records: Records) -> SimpleNamespace:
    """A finished cache of two views in f32: .place (with runs/ and caches/), .folder, .figures."""
    place = tmp_path_factory.mktemp("made")
    folder, figures = write(place, records, 2)
    return SimpleNamespace(place=place, folder=folder, figures=figures)


def test_cached_is_what_the_teacher_says_online(made: SimpleNamespace, records: Records) -> None:
    """Every key under both views, in another order and other batches; the pixels have equal fingerprints."""
    teacher = teacher_of(made.place, records)
    targets = CachedTargets(Ensemble([LogitCache(made.folder)]), CPU, "always", "same", 1, lambda line: None)
    order = np.random.default_rng(1).permutation(COUNT)
    worst = 0.0
    for view in (1, 0):
        for batch in loader_of(records).batches(order, np.full(COUNT, view, np.int32), 997):
            worst = max(worst, float((targets(batch) - teacher(batch)).abs().max()))
    assert worst <= 1e-5


def test_views_differ_and_labels_are_counted(made: SimpleNamespace, records: Records) -> None:
    cache = LogitCache(made.folder)
    first, second = (cache.gather(records.keys, np.full(COUNT, view, np.int32)) for view in (0, 1))
    assert (first != second).any(dim=1).float().mean() > 0.9
    labels = torch.from_numpy(records.labels)
    assert torch.bincount(first.argmax(dim=1), minlength=CLASSES).max() < 0.9 * COUNT
    right = sum(int((logits.argmax(dim=1) == labels).sum()) for logits in (first, second)) / (2 * COUNT)
    assert made.figures.items() >= {"views": 2, "images": 2 * COUNT, "teacher_top1": right}.items()
    written = json.loads((made.folder / "made.json").read_text())
    (session,) = written["sessions"]
    assert written["teacher_top1"] == right and {"host", "time", "argv", "torch", "images"} <= session.keys()


def test_interrupted_and_resumed_it_is_the_same_cache(made: SimpleNamespace, records: Records, tmp_path: Path) -> None:
    """One view first; then a block is lost; the second command computes only what is missing."""
    folder, figures = write(tmp_path, records, 1)
    assert figures["images"] == COUNT
    (folder / "v000/b00001.lc").unlink()
    before = (folder / "v000/b00000.lc").stat().st_mtime_ns
    folder, figures = write(tmp_path, records, 2)
    assert figures["images"] == COUNT + COUNT - BLOCK_ROWS
    assert (folder / "v000/b00000.lc").stat().st_mtime_ns == before
    assert cache_files(folder) == cache_files(made.folder)


def test_it_ends_with_its_launcher_and_goes_on(
    made: SimpleNamespace, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another parent than the first, as of an orphan, after the first block."""
    publish = _Publisher.publish

    def orphaned(*arguments) -> None:
        publish(*arguments)
        patched.setattr(launcher, "parent", lambda: os.getppid() + 1)

    with monkeypatch.context() as patched:
        patched.setenv("TORCHELASTIC_RUN_ID", "none")
        patched.setattr(_Publisher, "publish", orphaned)
        with pytest.raises(Stopped, match="the end of its launcher"):
            write(tmp_path, records, 2)
    folder, figures = write(tmp_path, records, 2)
    assert 0 < figures["images"] < 2 * COUNT and cache_files(folder) == cache_files(made.folder)


def test_nothing_left_to_compute(made: SimpleNamespace, records: Records) -> None:
    """The same command again, or one with fewer views, changes no file; done.json keeps its content."""
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    for views in (2, 1):
        _, figures = write(made.place, records, views)
        assert figures["images"] == 0 and figures["teacher_top1"] == made.figures["teacher_top1"]
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_a_teacher_whose_logits_overflow_leaves_nothing_behind(records: Records, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, records, broken=True)
    writer = writer_of(tmp_path, records, teacher)
    before = set(threading.enumerate())
    with pytest.raises(UserError) as caught:  # the exception is kept, with all that its traceback keeps alive
        write_cache(writer, loader_of(records), teacher, 3, BATCH, Accelerator(cpu=True))
    assert re.search(
        r"the teacher \(view \d\) gives NaN or infinite logits for \d+ of \d+ images of .*train.beton, first for \S+ \(key \d+\)",
        str(caught.value),
    )
    assert not list(writer.folder.rglob("*.lc")) and not (writer.folder / "done.json").exists()
    left = set(threading.enumerate()) - before
    assert len(left) <= 1 and not [thread for thread in left if thread.name == "loader"]  # one may be PIL's pool


def test_too_small_a_disk_is_refused_at_the_start(made, records: Records, tmp_path: Path, monkeypatch) -> None:
    """Only what is missing must fit; existing blocks need no space."""
    size = sum(path.stat().st_size for path in made.folder.rglob("*.lc"))
    monkeypatch.setattr("train.objectives.caching.shutil.disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(
        UserError, match=r"the cache needs 364\.9 kB more, .* has 364\.9 kB free: choose another cache.dir"
    ):
        write(tmp_path, records, 2)
    assert not list(tmp_path.rglob("*.lc"))
    write(made.place, records, 2)


def test_the_size_is_known_without_a_list_of_blocks(made, records: Records) -> None:
    identity = LogitCache(made.folder).identity
    size = cache_size(identity, len(records), 2)
    files = list(made.folder.rglob("*.lc"))
    assert (size.blocks, size.bytes) == (len(files), sum(path.stat().st_size for path in files))
    for samples in (4096, 4097, 8192, 100_000):
        one = cache_size(identity, samples, 1)
        rows = [min(4096, samples - first) for first in range(0, samples, 4096)]
        assert (one.blocks, one.bytes) == (len(rows), sum(map(one.kind.block_bytes, rows)))
        assert cache_size(identity, samples, 10**9).bytes == one.bytes * 10**9


@pytest.mark.parametrize(
    "settings, free, words",
    [
        (
            "data.views=1000000000",
            10**12,
            r"118 samples x 1000000000 views x \d+ bytes: .* needs .* more, .* has 1000\.0 GB",
        ),
        ("schedule.epochs=99999999", 10**10, r"118 samples x 99999999 views .* has 10\.0 GB free"),
        ("data.views=1000000000", 10**18, "are 1,000,000,000 files, at most 1,000,000 are allowed"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_views_beyond_any_disk_are_refused_before_anything_grows(
    alone: Path, tmp_path: Path, monkeypatch, settings: str, free: int, words: str, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("train.objectives.caching.shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = [f"distill.teacher={alone}/runs/t", f"cache.dir={tmp_path}/new/caches", settings, *more]
    done = launch.run("cache_logits", alone / "dive.yaml", *given, cwd=alone, check=False)
    assert done.returncode == 2 and re.search(words, done.stderr), done.stderr
    assert not (tmp_path / "new").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # kB


# ---- the thread that writes behind ----


class SlowWriter:
    """Simulates a slow disk; `gate` lets a write end."""

    def __init__(self) -> None:
        self.busy, self.gate = threading.Event(), threading.Event()
        self.begun: list[tuple[int, int]] = []

    def write(self, cell: tuple[int, int], logits: np.ndarray, prints: Fingerprints) -> int:
        self.begun.append(cell)
        self.busy.set()
        assert self.gate.wait(SECONDS)
        if cell[0] == 2:
            raise UserError("the disk is full")
        return int(logits[0, 0])


BLOCK = torch.full((4, CLASSES), 3.0), torch.zeros(4, 17, dtype=torch.int64), lambda: None


def test_at_most_one_block_waits_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next block may be computed meanwhile, the one after it only when the first is on the disk."""
    now, asked = [0.0], threading.Event()

    def clock() -> float:
        then = now[0]
        asked.set()
        return then

    monkeypatch.setattr("train.objectives.caching.time", SimpleNamespace(perf_counter=clock))
    slow = SlowWriter()
    with _Publisher(slow, CPU) as publisher:  # type: ignore[arg-type]
        publisher.publish((0, 0), *BLOCK)
        second = threading.Thread(target=publisher.publish, args=((1, 0), *BLOCK))
        second.start()
        assert asked.wait(SECONDS) and slow.busy.wait(SECONDS)
        second.join(0.1)  # enough time to go on, if it did
        assert second.is_alive() and slow.begun == [(0, 0)]
        now[0] += 5
        slow.gate.set()
        second.join()
        publisher.wait()
        assert slow.begun == [(0, 0), (1, 0)]
        assert (publisher.rows, publisher.right, publisher.waited) == (8, 6, 5)


class AtOnce(Executor):
    """A thread that is done with its work before the one that handed it over goes on, as happens on a busy machine."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, work, /, *args, **kwargs) -> Future:
        done: Future = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


def test_the_writing_thread_may_be_faster_than_the_one_that_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.objectives.caching.ThreadPoolExecutor", AtOnce)
    slow = SlowWriter()
    slow.gate.set()
    with _Publisher(slow, CPU) as publisher:  # type: ignore[arg-type]
        publisher.publish((0, 0), *BLOCK)
        publisher.wait()
    assert slow.begun == [(0, 0)] and publisher.rows == 4


def test_the_writing_thread_works_on_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would open a context on the first GPU otherwise, in every process."""
    chosen: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append((threading.current_thread().name, gpu)))
    monkeypatch.setattr("train.objectives.caching.SideStream", lambda device, use: SideStream(CPU, use))
    slow, third = SlowWriter(), torch.device("cuda", 2)
    slow.gate.set()
    with _Publisher(slow, third) as publisher:  # type: ignore[arg-type]
        publisher.publish((0, 0), *BLOCK)
        publisher.publish((1, 0), *BLOCK)
    assert chosen == [("writer_0", third)]


def published(folder: Path, records: Records, device: torch.device) -> dict[str, bytes]:
    """The files of a cache whose teacher, on `device`, has much to do before and after each block."""
    writer, numbers = writer_of(folder, records, teacher_of(folder, records)), torch.Generator().manual_seed(0)
    with _Publisher(writer, device) as publisher:
        for cell in sorted(writer.missing(3)):
            rows = writer.block_size(cell[1])
            logits = torch.randn(rows, CLASSES, generator=numbers)
            prints = torch.randint(256, (rows, 17), generator=numbers)
            publisher.wait()
            if device.type == "cuda":
                torch.cuda._sleep(50_000_000)
            publisher.publish(cell, logits.to(device) + 0, prints.to(device) + 0, lambda: None)
            torch.full((rows, CLASSES), math.nan, device=device)  # takes what is free of the block's memory
        publisher.wait()
    return cache_files(writer.folder)


@pytest.mark.gpu
def test_a_block_is_written_as_a_busy_gpu_computed_it(records: Records, tmp_path: Path) -> None:
    """The thread that writes waits until it is computed, on a stream of its own."""
    found = published(tmp_path / "gpu", records, torch.device("cuda", 0))
    assert found == published(tmp_path / "cpu", records, CPU)


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    slow = SlowWriter()
    slow.gate.set()
    with pytest.raises(UserError, match="the disk is full"), _Publisher(slow, CPU) as publisher:  # type: ignore[arg-type]
        publisher.publish((2, 0), *BLOCK)
        publisher.publish((3, 0), *BLOCK)
    assert slow.begun == [(2, 0)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


def test_a_block_that_is_being_written_survives_an_error_elsewhere(made, records: Records, tmp_path: Path) -> None:
    """The loader fails in the second block: the first is still written to the disk."""
    teacher = teacher_of(made.place, records)
    writer, loader = writer_of(tmp_path, records, teacher), loader_of(records)
    stream = loader.stream

    def failing(plan):
        seen = 0
        for item in stream(plan):
            seen += len(item.keys)
            if seen > writer.block_size(0):
                raise UserError("an image does not decode")
            yield item

    loader.stream = failing  # type: ignore[method-assign]
    writer.missing = lambda views: [(0, 0), (0, 1)]  # type: ignore[method-assign]
    with pytest.raises(UserError, match="an image does not decode"), _in_order():
        write_cache(writer, loader, teacher, 1, BATCH, Accelerator(cpu=True))
    assert writer.has((0, 0)) and not writer.has((0, 1))


@contextlib.contextmanager
def _in_order():
    """Writers that take cells in the listed order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "train.objectives.caching.random.SystemRandom", lambda: SimpleNamespace(shuffle=lambda cells: None)
        )
        yield


# ---- several writers ----


def test_every_writer_has_an_order_of_its_own(made, records: Records, tmp_path: Path) -> None:
    """Whichever seeds are set: equal orders would compute everything twice."""
    writer = writer_of(tmp_path, records, teacher_of(made.place, records))
    orders = []
    for _ in range(3):
        random.seed(0)
        torch.manual_seed(0)
        orders.append(_shared_list(writer, 20))
    assert all(sorted(order) == writer.missing(20) for order in orders)
    assert orders[0] != orders[1] and orders[1] != orders[2] and orders[0] != writer.missing(20)


def test_a_cell_that_somebody_else_finished_is_left_out(made, records: Records, tmp_path: Path) -> None:
    """A cell is looked up again when its turn comes, not only at the start."""
    writer = writer_of(tmp_path, records, teacher_of(made.place, records))
    cells = writer.missing(3)
    by_key = np.argsort(records.keys)
    plan = _plan(writer, cells, by_key, BLOCK_ROWS)
    first = next(plan).positions
    for view, block in ((0, 1), (2, 0)):
        keys = writer.rows["key"][writer.block_rows(block)]
        writer.write((view, block), np.zeros((len(keys), CLASSES), np.float32), prints_of(keys, view))
    rest = [(int(item.views[0]), len(item.positions)) for item in plan]
    assert len(first) == BLOCK_ROWS
    assert rest == [(1, BLOCK_ROWS), (1, COUNT - BLOCK_ROWS), (2, COUNT - BLOCK_ROWS)]


def test_two_writers_at_once_share_the_work(tiny: Path, tmp_path: Path) -> None:
    """Each computes a large part, little is computed twice, and the bytes are those of a single writer."""
    train = Records(tiny / "train.beton")
    recipe, views = Recipe(crop="pad_crop", size=8, pad=2), 60

    def fill(place: Path) -> dict:
        path = (
            str(tmp_path / "t") if (tmp_path / "t").exists() else save_teacher(tmp_path / "t", [*train.class_names], 8)
        )
        teacher = Teacher(read_run(path), train, 8, CPU, "fp32", False)
        finish = Finish([0.4] * 3, [0.3] * 3, CPU, channels_last=False)
        loader = Loader(train, recipe, seed=0, backend="reference", finish=finish, device=CPU, workers=1)
        identity = cache_identity(view_identity(train, recipe, 0, "reference"), teacher.identity, "u8", 40)
        writer = CacheWriter(place, "t", identity, train.rows())
        return write_cache(writer, loader, teacher, views, 40, Accelerator(cpu=True)) | {"folder": writer.folder}

    alone = fill(tmp_path / "alone")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(fill, [tmp_path / "both"] * 2))
    assert cache_files(both[0]["folder"]) == cache_files(alone["folder"])
    images = [figures["images"] for figures in both]
    assert views * 118 <= sum(images) <= 1.5 * views * 118 and min(images) > 0
    assert {figures["teacher_top1"] for figures in both} == {alone["teacher_top1"]}
    sessions = json.loads((both[0]["folder"] / "made.json").read_text())["sessions"]
    assert sorted(session["images"] for session in sessions) == sorted(images)


# ---- progress ----


def test_progress_says_what_the_limit_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow data, a slow disk, neither: judged by the shares of time spent waiting. The first batch is start-up."""
    monkeypatch.setattr("train.objectives.caching._PLAIN_SECONDS", 0.0)
    now = 0.0
    monkeypatch.setattr("train.objectives.caching.time", SimpleNamespace(perf_counter=lambda: now))

    def sleep(seconds: float) -> None:  # whatever else the machine does
        nonlocal now
        now += seconds

    def limit(data: float, disk: float) -> str:
        publisher = SimpleNamespace(waited=0.0, rows=0, right=0)

        def batches():
            sleep(0.2)  # start-up
            for _ in range(5):
                yield SimpleNamespace(keys=np.zeros(10))
                sleep(data)

        cells = [(view, 0) for view in range(5)]
        with _CellProgress(cells, publisher, "1.5 GB", is_main=True) as progress:  # type: ignore[arg-type]
            for cell, _ in zip(cells, progress.watch(batches()), strict=True):  # type: ignore[arg-type]
                sleep(0.04 + disk)
                publisher.waited += disk
                publisher.rows, publisher.right = publisher.rows + 8, publisher.right + 5
                progress.advance(cell)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5 and all(" images/s" in line for line in lines)
        match = re.fullmatch(
            r"block 3/5, ([\d,]+) images/s, 0:00:00 left of 1\.5 GB, waiting for data (\d+)%, teacher top-1 62.5%, limit: (.*)",
            lines[2],
        )
        assert match and float(match[1]) > 20
        return match[3]

    assert limit(0.0, 0.0) == "the teacher"
    assert limit(0.12, 0.02) == "data"
    assert limit(0.02, 0.12) == "writing"


def test_sizes_in_words() -> None:
    assert [size_text(size) for size in (0, 540_000, 999.9e6, 1.26e9)] == ["0.0 kB", "540.0 kB", "999.9 MB", "1.3 GB"]


# ---- from the command line ----


def launched(script: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return launch.finish(launch.start_program(script, *arguments, cwd=cwd, ranks=2))


LATE = """
import os, sys, time
sys.path[0] = {root!r}
from train import cache_logits
from train.run.exits import guard
in_time = cache_logits.write_cache
def late(*arguments):
    time.sleep(1.5 * int(os.environ["RANK"]))
    return in_time(*arguments)
cache_logits.write_cache = late
sys.exit(guard(cache_logits.main))
"""


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a teacher `t` and the cache that one process wrote, five views of 118 images."""
    place = tmp_path_factory.mktemp("alone")
    save_teacher(place / "runs" / "t", [f"class_{c}" for c in range(5)], 8)
    config = tiny_config(place, tiny, "dive", DIVE)
    launch.run("cache_logits", config, "distill.teacher=t", "data.views=5", "cache.batch=50", cwd=place)
    return place


def test_two_ranks_write_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    """Even when one starts so late that the other has finished its share: no block is forgotten."""
    script = tmp_path / "late.py"
    script.write_text(LATE.format(root=str(launch.ROOT)))
    arguments = (alone / "dive.yaml", f"distill.teacher={alone}/runs/t", "data.views=5", "cache.batch=50")
    done = launched(script, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (theirs,) = (tmp_path / "caches").iterdir()
    (ours,) = (alone / "caches").iterdir()
    assert theirs.name == ours.name and cache_files(theirs) == cache_files(ours) and len(cache_files(ours)) == 5 + 2
    assert LogitCache(theirs).views == 5
    figures = json.loads((theirs / "made.json").read_text())
    alone_figures = json.loads((ours / "made.json").read_text())
    assert figures["sessions"][0]["images"] == 5 * 118 and figures["teacher_top1"] == alone_figures["teacher_top1"]
    assert re.search(r"images 590 .*teacher_top1 0\.\d+\n(.*\n)?complete: cache.paths=\[caches/", done.stdout)
    size = sum(path.stat().st_size for path in ours.rglob("*.lc"))
    assert f"5 of 5 blocks missing, {size_text(size)} in the end" in done.stdout


READ = """
import sys
sys.path[0] = {root!r}
import numpy as np
from accelerate import Accelerator
from pipelines.augment.finish import Finish
from pipelines.loader import Loader
from pipelines.logits import Ensemble, LogitCache
from pipelines.order import TrainOrder
from pipelines.records import Records
from pipelines.augment import Recipe
from train.objectives.targets import CachedTargets
accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
records, device = Records({records!r}), accelerator.device
order = TrainOrder(records.keys, 3, 24, 5, rank, world)
finish = Finish([0.5] * 3, [0.5] * 3, device, channels_last=True)
recipe = Recipe(crop="pad_crop", size=8, pad=2)
loader = Loader(records, recipe, seed=0, backend="reference", finish=finish, device=device, workers=1)
targets = CachedTargets(Ensemble([LogitCache({cache!r})]), device, "always", "same", 1, lambda line: None)
found = [(batch.keys, batch.views, targets(batch).numpy()) for batch in loader.stream(order.plan(0, 11))]
np.savez(f"rank{{rank}}of{{world}}", **dict(zip(("keys", "views", "targets"), map(np.stack, zip(*found)))))
accelerator.end_training()
"""


def test_two_ranks_read_the_targets_of_one(alone: Path, tiny: Path, tmp_path: Path) -> None:
    """Concatenated by rank, the rows of each global batch across epochs: same samples, views and targets, to the bit."""
    (cache,) = (alone / "caches").iterdir()
    script = tmp_path / "read.py"
    script.write_text(READ.format(root=str(launch.ROOT), records=str(tiny / "train.beton"), cache=str(cache)))
    assert launch.finish(launch.start_program(script, cwd=tmp_path)).returncode == 0
    done = launched(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, *two = (np.load(tmp_path / f"rank{name}.npz") for name in ("0of1", "0of2", "1of2"))
    for name in ("keys", "views", "targets"):
        assert np.array_equal(one[name], np.concatenate([rank[name] for rank in two], axis=1))
    assert one["keys"].shape == (11, 24) and set(one["views"].ravel()) == {0, 1, 2}


def test_a_file_of_weights_is_the_same_teacher_as_its_run(alone: Path, tmp_path: Path) -> None:
    """Given by network and class list, its weights inside a training script's checkpoint: byte for byte the same cache."""
    names = [f"class_{c}" for c in range(5)]
    state = load_file(alone / "runs/t/model.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "best.pth")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    (tmp_path / "other.txt").write_text("\n".join(names[::-1]))

    def cached(classes: str, *more: str) -> subprocess.CompletedProcess[str]:
        teacher = ["distill.teacher=best.pth", "distill.teacher_arch=resnet8", f"distill.teacher_classes={classes}"]
        normalised = ["distill.teacher_mean=[0.5,0.5,0.5]", "distill.teacher_std=[0.25,0.25,0.25]", "data.mean=[0,0,0]"]
        arguments = [alone / "dive.yaml", *teacher, *normalised, "data.views=5", "cache.batch=50", *more]
        return launch.run("cache_logits", *arguments, cwd=tmp_path, check=False)

    done = cached("classes.txt")
    assert done.returncode == 0, done.stderr
    assert "took 'state_dict' of epoch, state_dict" in done.stdout and "every name began with 'module.'" in done.stdout
    (theirs,), (ours,) = ((place / "caches").iterdir() for place in (tmp_path, alone))
    assert theirs.name.startswith("best-") and theirs.name[-12:] == ours.name[-12:]
    assert cache_files(theirs) == cache_files(ours)
    # This teacher is untrained.
    assert re.search(
        r"warning: the teacher is right on \d+\.\d% of these views, .* would be on 50\.8%: wrong", done.stdout
    )
    refused = cached("other.txt")
    assert refused.returncode == 2 and "class 0 = 'class_4', the data has 'class_0'" in refused.stderr
    unnamed = launch.run("cache_logits", alone / "dive.yaml", "distill.teacher=best.pth", cwd=tmp_path, check=False)
    assert unnamed.returncode == 2 and "distill.teacher_arch=NAME distill.teacher_classes=FILE" in unnamed.stderr


def test_the_students_configuration_chooses_its_cache(alone: Path, tmp_path: Path) -> None:
    """cache.paths names a folder of several caches: the one that fits the run is taken, or all that fit are listed."""
    student = ["data.views=1", "schedule.epochs=1", f"cache.paths=[{tmp_path}/caches]", "cache.check=always"]
    options = [f"distill.teacher={alone}/runs/t", "data.views=1", f"cache.dir={tmp_path}/caches"]

    def cached(*more: str) -> None:
        launch.run("cache_logits", alone / "dive.yaml", *options, *more, cwd=alone)

    def trained(*more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return launch.run("distill", alone / "dive.yaml", *student, *more, "--dry-run", cwd=alone, check=check)

    cached()
    cached("data.seed=5")
    found = {seed: re.search(r"cache (\S+): 1 views of", trained(f"data.seed={seed}").stdout) for seed in (0, 5)}
    assert all(found.values()) and found[0][1] != found[5][1]  # type: ignore[index]
    none = trained("data.seed=6", check=False)
    assert (
        none.returncode == 2 and "none of the 2 caches" in none.stderr and "data_seed: cache 5, here 6" in none.stderr
    )
    cached("cache.codec=f32")
    several = trained(check=False)
    assert several.returncode == 2 and "2 caches in" in several.stderr and "(codec f32)" in several.stderr
    save_teacher(alone / "runs" / "t2", [f"class_{c}" for c in range(5)], 8, seed=2)
    other = trained("distill.teacher=t2", "data.seed=5", check=False)
    assert other.returncode == 2 and "teacher.weights: another teacher" in other.stderr
    assert trained("distill.teacher=t", "data.seed=5").returncode == 0
    missing = next(Path(found[5][1]).rglob("*.lc"))  # type: ignore[index]
    missing.unlink()
    lost = trained("data.seed=5", check=False)
    assert lost.returncode == 2 and "b00000.lc is missing; run train/cache_logits.py again" in lost.stderr
