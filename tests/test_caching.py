"""Computing a cache: what students read is what the teacher would have said, whoever computed it in whatever portions."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import launch
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launch import tiny_config
from small_caches import cache_files

from models.registry import build_model
from pipelines.errors import UserError
from pipelines.finish import Finish
from pipelines.loader import Loader
from pipelines.logits import CacheWriter, LogitCache
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.identity import cache_identity, view_identity
from pipelines.records import Records
from pipelines.views import Recipe
from pipelines.writing import Sample, write_records
from train.caching import write_cache
from train.checkpoint import save_final
from train.targets import CachedTargets, Teacher

CPU = torch.device("cpu")
RECIPE = Recipe(crop="pad_crop", size=8, pad=1)
COUNT, CLASSES, BATCH = BLOCK_ROWS + 39, 5, 600  # two blocks, neither a multiple of a batch
DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("records") / "train.beton"
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (COUNT, 1, 1, 3))  # so that a teacher nobody trained sees different things too
    pixels = (colours + rng.integers(0, 56, (COUNT, 8, 8, 3))).astype(np.uint8)
    samples = [Sample(f"train/{i}", i % CLASSES, pixels[i]) for i in range(COUNT)]
    write_records(path, samples, [f"c{c}" for c in range(CLASSES)], kind="test")
    return Records(path)


def save_teacher(folder: Path, class_names: list[str], size: int, seed: int = 0, broken: bool = False) -> str:
    """A finished run of a small network that nobody trained, but that has seen colours and finds all classes equal."""
    torch.manual_seed(seed)
    network = build_model("resnet20", len(class_names))
    colours = (torch.rand(64, 3, 1, 1) * 4 - 2).expand(-1, -1, size, size) + torch.randn(64, 3, size, size) / 4
    with torch.no_grad():
        for _ in range(20):
            network(colours)
        bias = network.get_parameter("fc.bias")
        bias -= network.eval()(colours).mean(dim=0)
        if broken:
            bias[1] = float("nan")
    meta = {"architecture": "resnet20", "class_names": class_names, "mean": [0.5] * 3, "std": [0.25] * 3}
    folder.mkdir(parents=True)
    save_final(folder, network.state_dict(), meta | {"input_size": size, "train_counts": [], "precision": "fp32"})
    return str(folder)


def loader_of(records: Records) -> Loader:
    finish = Finish([0.4] * 3, [0.3] * 3, CPU, channels_last=False)
    return Loader(records, RECIPE, seed=0, backend="reference", finish=finish, device=CPU, workers=1)


def teacher_of(folder: Path, records: Records, **options: bool) -> Teacher:
    run = folder / "runs" / "t"
    path = str(run) if run.exists() else save_teacher(run, list(records.class_names), 8, **options)
    return Teacher(path, records, 8, CPU, "fp32", False)


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
    """Every key under both views, in another order and other batches, and the pixels have equal fingerprints."""
    teacher = teacher_of(made.place, records)
    targets = CachedTargets(LogitCache(made.folder), CPU, "always", "same", 1, lambda line: None)
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
    assert made.figures == {"views": 2, "images": 2 * COUNT, "seconds": made.figures["seconds"], "teacher_top1": right}
    written = json.loads((made.folder / "made.json").read_text())
    assert written.items() >= made.figures.items() and {"host", "time", "argv", "torch"} <= written.keys()


def test_interrupted_and_resumed_it_is_the_same_cache(made: SimpleNamespace, records: Records, tmp_path: Path) -> None:
    """One view first; then a block is lost; the second command computes what is missing and nothing else."""
    folder, figures = write(tmp_path, records, 1)
    assert figures["images"] == COUNT
    (folder / "v000/b00001.lc").unlink()
    before = (folder / "v000/b00000.lc").stat().st_mtime_ns
    folder, figures = write(tmp_path, records, 2)
    assert figures["images"] == COUNT + COUNT - BLOCK_ROWS
    assert (folder / "v000/b00000.lc").stat().st_mtime_ns == before
    assert cache_files(folder) == cache_files(made.folder)


def test_nothing_left_to_compute(made: SimpleNamespace, records: Records) -> None:
    """The same command again, or one with fewer views, changes no file but done.json, which stays as it was."""
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    for views in (2, 1):
        _, figures = write(made.place, records, views)
        assert figures["images"] == 0 and figures["teacher_top1"] is None
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_a_teacher_of_nan_leaves_nothing_behind(records: Records, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, records, broken=True)
    writer = writer_of(tmp_path, records, teacher)
    threads = threading.active_count()
    with pytest.raises(UserError) as caught:  # kept, with all that its traceback keeps alive
        write_cache(writer, loader_of(records), teacher, 3, BATCH, Accelerator(cpu=True))
    assert re.search(r"NaN or infinite logits for sample \d+ \(view 0\)", str(caught.value))
    assert not list(writer.folder.rglob("*.lc")) and not (writer.folder / "done.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert threading.active_count() <= threads + 1  # PIL's pool of one


def test_too_small_a_disk_is_refused_at_the_start(made, records: Records, tmp_path: Path, monkeypatch) -> None:
    """Exactly what is missing must fit; what is there already needs no room."""
    size = sum(path.stat().st_size for path in made.folder.rglob("*.lc"))
    monkeypatch.setattr("train.caching.shutil.disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(UserError, match=r"the cache needs 0\.0 GB more, .* free: choose another cache.dir"):
        write(tmp_path, records, 2)
    assert not list(tmp_path.rglob("*.lc"))
    write(made.place, records, 2)


def launched(script: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), *map(str, arguments)],
        cwd=cwd,
        env=launch.os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )


LATE = """
import os, sys, time
sys.path[0] = {root!r}
from train import cache_logits
from train.run import guard
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
    save_teacher(place / "runs" / "t", [f"class_{c}" for c in range(5)], 16)
    config = tiny_config(place, tiny, "dive", DIVE)
    launch.run("cache_logits", config, "distill.teacher=t", "data.views=5", "cache.batch=50", cwd=place)
    return place


@pytest.mark.parametrize("late", [False, True])
def test_two_ranks_write_the_same_bytes(alone: Path, tmp_path: Path, late: bool) -> None:
    """Also when one of them comes so late that the other has finished its share: no block is forgotten."""
    script = launch.ROOT / "train" / "cache_logits.py"
    if late:
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
    assert figures["images"] == 5 * 118 and figures["teacher_top1"] == alone_figures["teacher_top1"]
    assert re.search(r"images 590 .*\n.*complete: cache.paths=\[caches/", done.stdout)
    assert "5 of 5 blocks missing" in done.stdout


def test_the_students_configuration_chooses_its_cache(alone: Path, tmp_path: Path) -> None:
    """cache.paths names the folder of several caches: the one that fits the run is taken, or all that fit are listed."""
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
    save_teacher(alone / "runs" / "t2", [f"class_{c}" for c in range(5)], 16, seed=2)
    other = trained("distill.teacher=t2", "data.seed=5", check=False)
    assert other.returncode == 2 and "teacher.weights: another teacher" in other.stderr
    assert trained("distill.teacher=t", "data.seed=5").returncode == 0
    missing = next(Path(found[5][1]).rglob("*.lc"))  # type: ignore[index]
    missing.unlink()
    lost = trained("data.seed=5", check=False)
    assert lost.returncode == 2 and "b00000.lc is missing; run train/cache_logits.py again" in lost.stderr
