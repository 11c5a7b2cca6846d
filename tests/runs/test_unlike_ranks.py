"""Two processes that differ, as those of two machines may: told by both before they work, or waited for."""

import csv
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from helpers.launch import ROOT, finish, run, start_program, tiny_config
from PIL import Image

from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records


def start(how: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return start_program(ROOT / "tests/helpers/unlike_ranks.py", how, *arguments, cwd=cwd, ranks=2)


def said(how: str, *arguments: object, cwd: Path) -> str:
    """The line of a refusal, of which nothing is left behind."""
    before = sorted(cwd.rglob("*"))
    done = finish(start(how, *arguments, cwd=cwd))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(lines) == 1 and "fault of the program" not in done.stderr, done.stderr
    assert sorted(cwd.rglob("*")) == before
    return lines[0]


def other_records(path: Path, tiny: Path) -> Path:
    """The training records without the last image."""
    train = Records(tiny / "train.beton")
    images = [Sample(train.name(i), int(train.labels[i]), train.payload(i).reshape(8, 8, 3)) for i in range(117)]
    write_records(path, images, list(train.class_names), kind="test")
    return path


def test_other_settings(tiny: Path, tmp_path: Path) -> None:
    """Each process would train on: gradients are exchanged, weights are not."""
    line = said("more=optim.lr=0.2", "teacher", tiny_config(tmp_path, tiny), cwd=tmp_path)
    assert "different settings: optim.lr is 0.05 in process 0, 0.2 in process 1; give the same command" in line


def test_records_lie_elsewhere(tiny: Path, tmp_path: Path) -> None:
    """The same ones at another place, read by other numbers of threads, are the same; others are not."""
    config = tiny_config(tmp_path, tiny)
    other = other_records(tmp_path / "other.beton", tiny)
    line = said(f"more=data.train={other}", "teacher", config, "run=r", cwd=tmp_path)
    assert "would train on different things: train is " in line and "all machines need the same records" in line
    shutil.copy(tiny / "train.beton", tmp_path / "copy.beton")
    done = finish(start(f"more=data.train={tmp_path / 'copy.beton'}", "teacher", config, "run=r", cwd=tmp_path))
    assert done.returncode == 0, done.stderr


def test_one_does_not_see_that_the_run_is_finished(tiny: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny)
    run("teacher", config, "run=r", "schedule.epochs=1", cwd=tmp_path)
    (tmp_path / "there").mkdir()
    line = said(f"there={tmp_path / 'there'}", "teacher", config, "run=r", "schedule.epochs=1", cwd=tmp_path)
    assert "differ about run runs/r: whether it is finished is true in process 0, false in process 1" in line
    assert "give run=FOLDER on a file system that they share" in line


def test_a_slow_disk_writes_why_it_has_stopped(tiny: Path, tmp_path: Path) -> None:
    """The others have left when it does, and the launcher ends what is still there."""
    folder = tmp_path / "runs/r"
    training = start(
        "slow_disk=0.4", "teacher", tiny_config(tmp_path, tiny), "schedule.epochs=2000", "run=r", cwd=tmp_path
    )
    while not (folder / "metrics.jsonl").exists():
        assert training.poll() is None, training.communicate()
        time.sleep(0.1)
    (folder / "stop").touch()
    done = finish(training)
    record = json.loads((folder / "run.json").read_text())
    assert done.returncode and record["status"] == "stopped", done.stderr
    assert record["sessions"][-1]["message"].startswith("stopped by the stop file after step")


def test_a_cache_is_written_by_processes_of_unlike_speed(tiny: Path, tmp_path: Path) -> None:
    """Its last process ends later than a collective of torch waits."""
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", cwd=tmp_path)
    student = tiny_config(tmp_path, tiny, "dive")
    done = finish(start("slow=3", "cache_logits", student, "distill.teacher=t", "data.views=4", cwd=tmp_path))
    assert done.returncode == 0 and "complete: cache.paths=[" in done.stdout, done.stderr


def test_other_records_are_another_cache(tiny: Path, tmp_path: Path) -> None:
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", cwd=tmp_path)
    other = other_records(tmp_path / "other.beton", tiny)
    student = tiny_config(tmp_path, tiny, "dive")
    line = said(f"more=data.train={other}", "cache_logits", student, "distill.teacher=t", cwd=tmp_path)
    assert "would write different caches: " in line and "all machines need the same records, the same teacher" in line


def test_an_image_that_arrives_is_predicted_once_or_not_at_all(tiny: Path, tmp_path: Path) -> None:
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", cwd=tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    late = f"late={images / '0.png'}={images / '00.png'}"
    done = finish(start(late, "predict", "t", images, "out=p.csv", cwd=tmp_path))
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "p.csv") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"{i}.png" for i in range(6)]
