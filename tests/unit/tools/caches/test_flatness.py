"""tools/logits.py flatness: table, recommendation, picture and JSON, against sums by hand."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cache_damage import B00, Run, change, rows_of
from helpers.small_caches import CLASSES, identity_of, logits_of, make_records, prints_of, some_samples
from rich.console import Console

from pipelines.logits import CacheWriter, LogitCache
from pipelines.logits.flatness import TEMPERATURES, virtual_examples
from pipelines.records.reader import Records
from tools.caches.flatness import measure, show


@pytest.fixture(scope="module")
def tailed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """201 images, in classes of 120, 60, 12, 6 and 3."""
    labels = np.repeat(np.arange(5), [120, 60, 12, 6, 3])
    samples = [sample._replace(label=int(labels[i])) for i, sample in enumerate(some_samples(len(labels)))]
    return make_records(tmp_path_factory.mktemp("tailed") / "a.beton", samples)


def sharing(parent: Path, records: Records, own: float, codec: str = "f32", views: int = 2) -> Path:
    """A teacher whose largest class shares its images with the smallest one: own : 0; sure of the others. Views differ."""
    writer = CacheWriter(parent, "t", identity_of(records, codec=codec), records.rows())
    table = 200 * np.eye(5)
    table[0, 4], table[0, 0] = 200, 200 + own
    for view in range(views):
        logits = (table[writer.rows["label"]] + view).astype(np.float32)
        logits[: 60 * view] = 0
        writer.write((view, 0), logits, prints_of(writer.rows["key"], view))
    writer.finish(views, {})
    return writer.folder


def test_the_table_and_the_recommendation_in_both_spellings(tmp_path: Path, tailed: Records, run: Run) -> None:
    """120 s against 120 (1 - s) + 3 with s = sigmoid(0.4 / T): level at T = 0.4 / log(123 / 117) = 8; the grid has 9."""
    folder = sharing(tmp_path, tailed, 0.4)
    code, out, _ = run("flatness", folder, "--p", 0.5)
    virtual = virtual_examples(LogitCache(folder), tailed.keys)
    lines = {
        line.strip("│ ").split()[0]: [cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()[4:]
    }
    share = np.array([120, 60, 12, 6, 3]) / 201
    nats = -(share * np.log(share)).sum()
    assert lines["images"][2:8] == [
        *("120.0", "60.0", "7.0", f"{3 / 120:.3f}", f"{nats:.3f}", f"{nats / np.log(5):.1%}"),
    ]
    at_1 = virtual[0]
    assert lines["1"][1:6] == ["0.5", f"{at_1[0]:.1f}", "60.0", f"{at_1[2:].mean():.1f}", f"{at_1[4] / at_1[0]:.3f}"]
    assert lines["9"][1] == "4.5" and lines["9"][-1] == "0.000%"
    assert code == 0 and "many" in out and "201 images under 1 of 2 views" in out
    assert "recommended: T = 9, that is distill.tau=4.5 distill.p=0.5 or distill.tau=9 distill.p=1\n" in out
    out = run("flatness", folder)[1]
    assert "recommended: T = 9, that is distill.tau=9 distill.p=1\n" in out


def test_a_class_by_class_table(tmp_path: Path, tailed: Records, run: Run) -> None:
    out = run("flatness", sharing(tmp_path, tailed, 0.4), "--classes")[1]
    names = [line.split()[1] for line in out.splitlines() if any(f"│ {name} " in line for name in CLASSES)]
    assert names == CLASSES  # from frequent to rare
    (bee,) = [line for line in out.splitlines() if "│ bee " in line]
    assert bee.split("│")[2].strip() == "60" and bee.split("│")[3].strip() == "60.0"


@pytest.mark.parametrize("terminal", [False, True])
def test_numbers_are_never_cut(tmp_path: Path, tailed: Records, terminal: bool) -> None:
    """In a pipe, and in a terminal that is too narrow for them."""
    report = measure(LogitCache(sharing(tmp_path, tailed, 0.4)), None, 1.0, 1, torch.device("cpu"))
    report = report._replace(counts=1000 * report.counts, virtual=1000 * report.virtual)
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, no_color=True)
    show(report, True, console)
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert "│ 120000 │" in out and "…" not in out
    assert all(f" {value:.1f} │" in out for value in report.virtual.ravel())


def test_no_temperature_is_high_enough(tmp_path: Path, tailed: Records, run: Run) -> None:
    out = run("flatness", sharing(tmp_path, tailed, 3.0))[1]
    assert "recommended: T = 20, that is distill.tau=20" in out
    assert "no T up to 20 lifts the rarest third of classes to the most frequent third (0.9" in out


def test_more_views(tmp_path: Path, tailed: Records, run: Run) -> None:
    folder = sharing(tmp_path, tailed, 0.4)
    report = tmp_path / "f.json"
    code, out, _ = run("flatness", folder, "--views", 2, "--json", report)
    assert code == 0 and "under 2 of 2 views" in out
    found = [row["classes"] for row in json.loads(report.read_text())["distributions"]]
    assert np.array_equal(found, virtual_examples(LogitCache(folder), tailed.keys, views=2))
    code, _, err = run("flatness", folder, "--views", 3)
    assert code == 2 and f"--views 3: cache {folder} holds 2; give at most that" in err


def test_json(tmp_path: Path, tailed: Records, run: Run) -> None:
    folder, path = sharing(tmp_path, tailed, 0.4, codec="f16"), tmp_path / "f.json"
    assert run("flatness", folder, "--p", 0.5, "--json", path)[0] == 0
    report = json.loads(path.read_text())
    assert report["cache"] == folder.name and report["images"] == [120, 60, 12, 6, 3] and report["views"] == 1
    assert report["recommended"] == {"T": 9, "tau": 4.5, "p": 0.5, "flat": True}
    assert [(row["T"], row["tau"]) for row in report["distributions"]] == [(t, t / 2) for t in TEMPERATURES]
    for row in report["distributions"]:
        assert np.isclose(sum(row["classes"]), 201) and row["few"] == np.mean(row["classes"][2:])
        assert row["certified_loss"] > 0 and 0 < row["entropy_of_log_classes"] <= 1


def test_records_that_are_part_of_the_cache(tmp_path: Path, tailed: Records, run: Run) -> None:
    """A student without the largest class is told of its own images."""
    folder, path = sharing(tmp_path, tailed, 0.4), tmp_path / "f.json"
    rest = [s._replace(label=int(tailed.labels[i])) for i, s in enumerate(some_samples(201)) if tailed.labels[i]]
    part = make_records(tmp_path / "part.beton", rest)
    code, out, _ = run("flatness", folder, "--data", part.path, "--json", path)
    report = json.loads(path.read_text())
    assert code == 0 and "81 images under" in out and report["images"] == [0, 60, 12, 6, 3]
    assert np.allclose(report["distributions"][0]["classes"], [0, 60, 12, 6, 3], atol=1e-6)
    other = make_records(tmp_path / "classes.beton", rest, CLASSES[::-1])
    code, _, err = run("flatness", folder, "--data", other.path)
    assert code == 2 and "has other classes than cache" in err


def test_a_codec_that_loses_too_much_is_marked(tmp_path: Path, few: Records, run: Run) -> None:
    """One class far below the rest: 8 bits over that range leave nothing of the others."""
    writer = CacheWriter(tmp_path, "t", identity_of(few, codec="u8"), few.rows())
    logits = logits_of(writer.rows["key"], 0)
    logits[:, 1] = -8000
    writer.write((0, 0), logits, prints_of(writer.rows["key"], 0))
    writer.finish(1, {})
    code, out, _ = run("flatness", writer.folder)
    assert code == 0 and "% ! │" in out
    assert "codec u8 loses more than the 1% that training allows at T = 1, " in out and "cache.codec=f32" in out
    assert "(refused)" in rows_of(run("info", writer.folder)[1])["codec loses"]


def test_a_picture(tmp_path: Path, tailed: Records, run: Run) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")
    from matplotlib.image import imread

    folder, path = sharing(tmp_path, tailed, 0.4), tmp_path / "f.png"
    assert run("flatness", folder, "--png", path)[0] == 0
    image = imread(path)
    assert min(image.shape[:2]) > 300 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10
    code, _, err = run("flatness", folder, "--png", tmp_path / "nowhere/f.png")
    assert code == 2 and "--png: cannot write" in err and "No such file" in err


def test_without_matplotlib(tmp_path: Path, tailed: Records, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("flatness", sharing(tmp_path, tailed, 0.4), "--png", tmp_path / "f.png")
    assert code == 2 and err == "error: --png needs matplotlib; type: pip install matplotlib\n" and "recommended" in out


def test_a_damaged_or_unfinished_cache_has_no_distribution(cache: Path, run: Run) -> None:
    change(cache / B00, 3000)
    code, _, err = run("flatness", cache)
    assert code == 2 and B00 in err and "is damaged" in err
    (cache / "done.json").unlink()
    code, _, err = run("flatness", cache)
    assert code == 2 and "is unfinished" in err
