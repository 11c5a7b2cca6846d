"""Start-up costs, short form: memory grows with the samples' columns, and no Python object is kept per sample."""

import gc
import sys
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from drills import startup as scale

from pipelines.libffcv import library_path
from pipelines.records.reader import Records

FEW, MANY, CLASSES = 4_000, 40_000, 200
BACKENDS = ["reference", pytest.param("ffcv", marks=pytest.mark.skipif(not library_path(), reason="needs FFCV"))]


@pytest.fixture(scope="module")
def long_tails(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("long_tails")
    files = {samples: folder / f"{samples}.beton" for samples in (FEW, MANY)}
    for samples, path in files.items():
        scale.write_long_tail(path, samples, CLASSES)
    return files


class Cost(NamedTuple):
    """Python's blocks after each stage of a start, on top of those before it; the peak in bytes, numpy's included."""

    blocks: dict[str, int]
    peak: int


def cost(path: Path, backend: str) -> Cost:
    gc.collect()
    before = sys.getallocatedblocks()
    tracemalloc.start()
    try:
        blocks = {name: sys.getallocatedblocks() - before for name in scale.start(path, backend, batch=16, size=16)}
        return Cost(blocks, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_python_object_per_sample(backend: str, long_tails: dict[int, Path]) -> None:
    cost(long_tails[FEW], backend)  # makes everything that a process makes only at its first start
    few, many = (cost(long_tails[samples], backend) for samples in (FEW, MANY))
    epochs = [f"epoch, {sampling}" for sampling in ("instance", "square_root", "class_balanced")]
    assert list(few.blocks) == ["records", "loader", *epochs, "first batch"]
    for stage in few.blocks:
        assert many.blocks[stage] - few.blocks[stage] < (MANY - FEW) // 20, stage
    # 184 when this was written; FFCV's memory manager alone takes 500. Together with the pages of the file that a start
    # reads, 160 bytes per sample, 437,513 samples stay well under 300 MB.
    assert (many.peak - few.peak) / (MANY - FEW) < 250


def test_the_generated_records_have_a_long_tail(long_tails: dict[int, Path]) -> None:
    records = Records(long_tails[MANY])
    assert len(records) == MANY and len(set(records.name(i) for i in range(100))) == 100
    counts = records.class_counts
    assert (np.diff(counts) <= 1).all() and counts.min() >= 1 and counts[0] > 100 * counts[-1]
    assert scale.class_counts(scale.SAMPLES, scale.CLASSES).sum() == scale.SAMPLES


def test_a_fresh_process_measures_every_stage(long_tails: dict[int, Path]) -> None:
    stages = scale.measure_fresh(long_tails[FEW], "reference", batch=16, size=16)
    assert [stage.name for stage in stages][::5] == ["records", "first batch"]
    assert all(stage.seconds > 0 for stage in stages)
    peaks = [stage.peak for stage in stages]
    assert peaks == sorted(peaks) and 0 < peaks[-1] < scale.GOAL_MB


def test_a_start_over_the_goals_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stages(*_arguments: object) -> list[scale.Stage]:
        return [scale.Stage("records", 1.0, 100.0), scale.Stage("first batch", 1.5, 400.0)]

    monkeypatch.setattr(scale, "measure_fresh", stages)
    monkeypatch.setattr(scale, "CLASSES", 10)
    scale.startup(tmp_path, samples=20, backends=["reference"])
    assert "in all 2.50 s" in capsys.readouterr().out
    for goal, value in (("GOAL_SECONDS", 2.4), ("GOAL_MB", 99.0)):
        with monkeypatch.context() as strict, pytest.raises(SystemExit, match="over the goals"):
            strict.setattr(scale, goal, value)
            scale.startup(tmp_path, samples=20, backends=["reference"])
