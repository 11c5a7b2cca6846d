"""train/predict.py: what an evaluation of the same images gives, image by image; what cannot be read is listed and left out."""

import csv
import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.launch import refused, run, tiny_config
from helpers.odd_files import odd_files, write_odd_files
from helpers.recipes import CLASSES, run_here, write_jpegs
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.records.reader import Records
from train.evaluation import predicting, unlabelled
from train.evaluation.predictions import read
from train.predict import main

BAD = sorted(name for name, file in odd_files().items() if file.fate == "reported")
PHOTOS = [f"{CLASSES[i % 5]}/deep/{i}.jpg" for i in range(40)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ of five classes, with odd files among those of the first; test.beton, made of them; runs of three methods.

    The run `t` with balanced softmax, and its export exports/t; `ce` and `ldam` with the losses of these names.
    """
    folder = tmp_path_factory.mktemp("work")
    write_jpegs(folder / "images", PHOTOS)
    write_odd_files(folder / "images/ant")
    (folder / "images/ant/notes.txt").write_text("no image")
    Image.open(folder / "images" / PHOTOS[0]).save(folder / "images/bee/grey.png")
    Image.fromarray(np.arange(1024, 4096, 3, np.uint16).reshape(32, 32)).save(folder / "images/bee/grey12.png")
    words = "--skip-bad --workers 0 --grey-bits 12"
    run_here(f"python tools/convert.py folder --images images {words} --out test.beton", folder)
    shutil.copy(folder / "test.beton", folder / "train.beton")
    settings = ["data.recipe.crop=random_resized_crop", "data.recipe.size=32", "schedule.epochs=1"]
    for method, name in (("bsce", "t"), ("ce", "ce"), ("ldam", "ldam")):
        run("teacher", tiny_config(folder, folder, method), *settings, f"run={name}", cwd=folder)
    run("evaluate", "t", "export=exports/t", "predictions=p.npz", cwd=folder)
    return folder


def rows(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))


def chances(found: list[dict[str, Any]], row: int) -> dict[str, float]:
    """{class: probability}"""
    one = found[row]
    return {one[f"class{end}"]: float(one[f"probability{end}"]) for end in ("", "_2", "_3", "_4", "_5")}


@pytest.mark.parametrize("arguments", [["--help"], ["t", "--help"], ["t", "images", "-h"]])
def test_the_help_names_what_is_given(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    shown = capsys.readouterr().out
    assert left.value.code == 0 and " RUN FOLDER|IMAGE|FILE.beton [KEY=VALUE ...] [--print-config]" in shown
    assert "\n  top: int = 5\n" in shown and "CONFIG.yaml" not in shown and "--dry-run" not in shown


def test_a_folder_is_answered_as_the_records_made_of_it(work: Path) -> None:
    done = run("predict", "t", "images", "out=folder.csv", cwd=work)
    run("predict", "exports/t", "test.beton", "out=records.csv", cwd=work)
    found, records = rows(work / "folder.csv"), Records(work / "test.beton")
    assert sorted(row["file"] for row in found) == sorted(map(records.name, range(len(records))))
    assert sorted(rows(work / "records.csv"), key=str) == sorted(found, key=str)
    assert f"folder.csv: {len(records)} images; {len(BAD)} cannot be read and are left out" in done.stdout
    assert re.search(r"note: \d+ files left out \(hidden, or not .bmp .*\), such as ant/", done.stderr)


def test_16_bits_that_were_not_those_of_the_training(work: Path, tmp_path: Path) -> None:
    Image.fromarray((np.arange(1024, dtype=np.uint16) // 8).reshape(32, 32)).save(tmp_path / "eight.png")
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(tmp_path / "sixteen.png")
    said = run("predict", "t", str(tmp_path), "out=notes.csv", cwd=work).stderr
    assert (
        "note: 1 image of 16-bit grey, of which at most 8 bits are used, such as eight.png, came to the network nearly"
        in said
    )
    assert (
        "note: 1 image of 16-bit grey, of which up to 16 bits are used, such as sixteen.png, came to the network partly"
        in said
    )
    assert "note: " not in run("predict", "t", "images/bee/grey12.png", "out=notes.csv", cwd=work).stderr


def test_the_classes_of_a_stated_distribution_are_those_of_the_network(work: Path, tmp_path: Path) -> None:
    for number, name in enumerate("vwxyz"):
        write_jpegs(tmp_path / "images", [f"{name}/{i}.jpg" for i in range(number + 1)])
    run_here(
        f"python tools/convert.py folder --images {tmp_path}/images --workers 0 --out {tmp_path}/other.beton", work
    )
    line = refused(work, "predict", "t", "images/bee", f"prior={tmp_path}/other.beton")
    assert f"prior={tmp_path}/other.beton: its classes are not those of the network, in their order" in line


def test_an_infinite_answer_is_told_of_what_was_given(work: Path) -> None:
    state = load_file(work / "runs/t/model.safetensors")
    shutil.copytree(work / "runs/t", work / "runs/inf")
    save_file(
        {name: value * 1e20 if value.is_floating_point() else value for name, value in state.items()},
        work / "runs/inf/model.safetensors",
    )
    model = json.loads((work / "runs/inf/model.json").read_text())
    digest = hashlib.sha256((work / "runs/inf/model.safetensors").read_bytes()).hexdigest()
    (work / "runs/inf/model.json").write_text(json.dumps(model | {"sha256": digest}))
    line = refused(work, "predict", "inf", f"images/{PHOTOS[0]}")
    assert f"logits for 1 of 1 images of images/{PHOTOS[0]}, first for 0.jpg" in line and "nothing is written" in line


def test_the_numbers_are_those_of_an_evaluation(work: Path) -> None:
    run("predict", "t", "images", "out=numbers.csv", "eval.batch=7", cwd=work)
    found, figures = rows(work / "numbers.csv"), json.loads((work / "runs/t/evaluation_test.json").read_text())
    labels = [row["file"].partition("/")[0] for row in found]
    nll = -np.mean([np.log(chances(found, i)[label]) for i, label in enumerate(labels)])
    assert nll == pytest.approx(figures["nll"], rel=1e-6)
    assert np.mean([row["class"] == label for row, label in zip(found, labels, strict=True)]) == figures["top1"]
    saved = read(work / "p.npz")
    by_name = dict(zip(saved.names, saved.answers, strict=True))
    assert [int(row["label"]) for row in found] == [by_name[row["file"]] for row in found]
    assert all(list(saved.class_names)[int(row["label"])] == row["class"] for row in found)
    for i in range(len(found)):
        values = list(chances(found, i).values())
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-7)


def test_what_cannot_be_read_is_listed(work: Path) -> None:
    done = run("predict", "t", "images/ant", "out=ant.csv", cwd=work)
    listed = (work / "ant.csv.unreadable.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == BAD
    assert done.returncode == 0 and f"unreadable: {listed[0]}" in done.stderr
    assert {row["file"] for row in rows(work / "ant.csv")}.isdisjoint({*BAD, "notes.txt"})
    run("predict", "t", "images/bee", "out=ant.csv", cwd=work)
    assert not (work / "ant.csv.unreadable.txt").exists()


def test_one_image_and_none(work: Path, tmp_path: Path) -> None:
    run("predict", "t", f"images/{PHOTOS[0]}", "out=one.csv", "top=2", cwd=work)
    (row,) = rows(work / "one.csv")
    assert row["file"] == "0.jpg" and list(row) == ["file", "label", "class", "probability", "class_2", "probability_2"]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    assert "none of the 1 images can be read, first bad.jpg: no image format" in refused(work, "predict", "t", tmp_path)
    assert "no images in this folder" in refused(work, "predict", "t", tmp_path / "empty")
    assert not (work / "predictions.csv").exists() and not list(work.glob(".*"))


def test_parts_and_processes_change_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("predict", "t", "images", "out=whole.csv", cwd=work)
    two = run("predict", "t", "images", "out=two.csv", cwd=work, ranks=2)
    assert two.stdout.count("two.csv: ") == 1
    monkeypatch.setattr(unlabelled, "_PART_IMAGES", 20)
    run("predict", "t", "images", "out=parts.csv", cwd=work)
    whole = rows(work / "whole.csv")
    for name in ("two.csv", "parts.csv"):
        found = rows(work / name)
        assert [row["file"] for row in found] == [row["file"] for row in whole]
        assert all(chances(found, i) == pytest.approx(chances(whole, i), abs=1e-6) for i in range(len(whole)))
        assert (work / f"{name}.unreadable.txt").read_text() == (work / "whole.csv.unreadable.txt").read_text()


def test_parts_are_small_in_number_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jpegs(tmp_path, ["a.jpg"])
    for name in ("b.jpg", "c.jpg", "d.jpg"):
        shutil.copy(tmp_path / "a.jpg", tmp_path / name)
    size = (tmp_path / "a.jpg").stat().st_size

    def parts(**limits: int) -> list[int]:
        for name, limit in limits.items():
            monkeypatch.setattr(unlabelled, f"_PART_{name}", limit)
        return [part.size for part in unlabelled.open_images(tmp_path).parts(0, 1)]

    assert parts() == [4] and parts(IMAGES=3) == [3, 1] and parts(BYTES=2 * size) == [2, 2]
    assert parts(BYTES=1) == [1, 1, 1, 1]  # an image larger than the limit is a part of its own


@pytest.mark.parametrize("run_name", ["t", "ce"])
def test_a_stated_prior_is_bayes_rule(work: Path, run_name: str) -> None:
    """Balanced softmax leaves the training prior out of the logits, plain softmax has it in them."""
    (work / "counts.txt").write_text("1\n2\n30\n4\n5\n")
    train = Records(work / "train.beton").class_counts
    stated = {"uniform": np.ones(5), "train": train, "counts.txt": np.array([1, 2, 30, 4, 5]), "train.beton": train}
    run("predict", run_name, "images/bee", "out=plain.csv", cwd=work)
    plain = rows(work / "plain.csv")
    for prior, counts in stated.items():
        run("predict", run_name, "images/bee", f"prior={prior}", "out=prior.csv", cwd=work)
        found = rows(work / "prior.csv")
        held = np.ones(5) if run_name == "t" else train
        for i in range(len(found)):
            before = chances(plain, i)
            expected = np.array([before[name] for name in CLASSES]) * counts / held
            after = chances(found, i)
            assert [after[name] for name in CLASSES] == pytest.approx(list(expected / expected.sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["t"], "the images are missing; type: python train/predict.py t FOLDER|IMAGE|FILE.beton"),
        (["t", "out=x.csv"], "the images are missing"),
        (["t", "nowhere"], "nowhere: no such file or folder"),
        (["t", "images", "out=x.txt"], "out=x.txt: a name that ends with .csv or .parquet expected"),
        (["t", "images", "out=none/x.csv"], "out=none/x.csv: cannot write"),
        (["t", "images", "top=0"], "top=0: must be at least 1"),
        (
            ["t", "images", "prior=flat"],
            "prior=flat: no such file; give uniform, train, records (.beton) or a text file",
        ),
        (
            ["t", "images", "prior=images"],
            "prior=images: a folder; give uniform, train, records (.beton) or a text file",
        ),
        ([], "the first argument must be a run: python train/predict.py RUN FOLDER|IMAGE|FILE.beton"),
        (["prior=train"], "no run 'prior=train'"),
        (["t", "images", "prior=short.txt"], "prior=short.txt has 2 classes, run runs/t has 5"),
        (["t", "images", "prior=zero.txt"], "class 0 has no images; its prior has no logarithm"),
        (["ldam", "images", "prior=uniform"], "not known which class distribution its logits hold"),
        (["t", "images", "optim.lr=1"], "without effect on a prediction (of the run -> given): optim.lr"),
        (["t", "images", "data.test=test.beton"], "without effect on a prediction"),
        (["t", "images", "--dry-run"], "leave it out"),
        (["nobody", "images"], "no run 'nobody'"),
    ],
)
def test_refusals(work: Path, arguments: list[str], words: str) -> None:
    (work / "short.txt").write_text("1\n2\n")
    (work / "zero.txt").write_text("0\n2\n3\n4\n5\n")
    assert words in refused(work, "predict", *arguments)


def test_a_failure_leaves_the_former_table(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("predict", "t", "images/bee", "out=kept.csv", cwd=work)
    before = (work / "kept.csv").read_bytes()
    monkeypatch.setattr(predicting, "rank", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("predict", "t", "images", "out=kept.csv", cwd=work, check=False).returncode == 130
    assert (work / "kept.csv").read_bytes() == before and not list(work.glob(".kept*"))


def test_parquet(work: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        assert "needs the pyarrow package; type: bash tools/setup.sh parquet, or out=x.csv" in refused(
            work, "predict", "t", "images", "out=x.parquet"
        )
        pytest.skip("pyarrow is not installed: it was refused in one line")
    run("predict", "t", "images", "out=x.parquet", cwd=work)
    run("predict", "t", "images", "out=x.csv", cwd=work)
    found = importlib.import_module("pyarrow.parquet").read_table(work / "x.parquet").to_pylist()
    for one, other in zip(found, rows(work / "x.csv"), strict=True):
        assert list(one) == list(other) and one["file"] == other["file"] and one["label"] == int(other["label"])
        assert one["probability_5"] == pytest.approx(float(other["probability_5"]), rel=1e-8)
