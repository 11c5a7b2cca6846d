"""The command line of tools/convert.py: every subcommand, what it writes, and one line for each mistake."""

import errno
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import warm
from helpers.cifar_archives import cifar10, cifar100, pack
from helpers.odd_files import png
from PIL import Image

from pipelines.augment.recipe import Recipe
from pipelines.errors import UserError
from pipelines.files import alone_in
from pipelines.logits.identity import view_identity
from pipelines.records.encoding import Encoding
from pipelines.records.layout import TABLE_START, sample_key
from pipelines.records.marking import marked
from pipelines.records.reader import Records
from pipelines.records.workers import CHUNK, CHUNKS_PER_WORKER
from tools import convert
from tools.conversion import demo_images
from tools.conversion.cifar import read_cifar
from tools.conversion.names import stripped
from tools.conversion.storage import RECIPES
from train.config import Config
from train.settings import load

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ["ant", "bee", "cat"]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, from any folder."""
    command = [warm.python(), str(ROOT / "tools" / "convert.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def save(path: Path, seed: int, size: tuple[int, int] = (30, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    small.resize(size, Image.Resampling.BILINEAR).save(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders with five images each, and the other files found in such folders."""
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(reversed(CLASSES)):
        for number in range(4):
            save(root / name / f"{number}.jpg", 10 * label + number)
        save(root / name / "more" / "odd name.PNG", 10 * label + 9)
    (root / "README").write_text("not a class")
    (root / "bee" / "notes.txt").write_text("not an image")
    for junk in (root / ".cache" / "x.jpg", root / "bee" / ".cache" / "x.jpg", root / "bee" / "._0.jpg"):
        junk.parent.mkdir(exist_ok=True)
        junk.write_bytes(b"junk")
    return root


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("ant/0.jpg 0\r\nbee/more/odd name.PNG 1\n\ncat/1.jpg\t3\nant/1.jpg   0\n")
    return path


def names(records: Records) -> list[str]:
    return [records.name(position) for position in range(len(records))]


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a failing command prints; checks exit code 2."""
    capsys.readouterr()
    assert convert.main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and output.err.endswith(lines[0] + "\n") and output.out == ""
    return lines[0]


# What the commands write


def test_folder(tmp_path: Path, tree: Path) -> None:
    done = run("folder", "--images", tree, "--out", "new/a.beton", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: 2 files left out" in done.stderr and "bee/._0.jpg" in done.stderr
    assert "a.beton: 15/15" in done.stderr, "plain progress lines where there is no terminal"
    records = Records(tmp_path / "new" / "a.beton")
    assert done.stdout.startswith("new/a.beton: 15 images, 3 classes, ") and records.digest in done.stdout
    assert records.class_names == CLASSES and records.class_counts.tolist() == [5, 5, 5]
    images = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "more/odd name.PNG"]
    assert names(records) == [f"{name}/{image}" for name in CLASSES for image in images]
    assert records.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert records.keys[4] == sample_key("ant/more/odd name.PNG")
    assert records.payload(6).tobytes() == marked((tree / "bee" / "1.jpg").read_bytes())
    assert os.listdir(tmp_path / "new") == ["a.beton"]


def test_bytes_depend_neither_on_the_place_nor_on_workers(tmp_path: Path, tree: Path) -> None:
    shutil.copytree(tree, tmp_path / "elsewhere")
    for number, root in enumerate((tree, tmp_path / "elsewhere")):
        out = tmp_path / f"{number}.beton"
        arguments = ["folder", "--images", root, "--out", out, "--workers", number * 2, "--max-side", 20]
        assert convert.main([str(argument) for argument in arguments]) == 0
    assert (tmp_path / "0.beton").read_bytes() == (tmp_path / "1.beton").read_bytes()


def test_options_reach_the_images(tmp_path: Path, tree: Path) -> None:
    out = tmp_path / "a.beton"
    common = ["folder", "--images", str(tree), "--out", str(out), "--workers", "1", "--force"]
    sizes = {}
    for quality in ("40", "95"):
        assert convert.main([*common, "--short-side", "12", "--quality", quality]) == 0
        records = Records(out)
        assert set(records.stored_heights) == {12} and set(records.stored_widths) == {15}
        assert set(records.heights) == {24} and set(records.widths) == {30}
        sizes[quality] = records.sizes.sum()
    assert sizes["40"] < sizes["95"]
    assert convert.main([*common, "--max-side", "10"]) == 0
    assert set(Records(out).stored_widths) == {10}
    encoding = {"short_side": None, "max_side": 10, "quality": 95}
    assert Records(out).manifest["made"]["encoding"] == encoding


# Recipes


def test_recipes_store_what_the_configurations_need() -> None:
    """A random resized crop needs the original files; a fixed short side needs images of that side and no more."""
    seen = set()
    for path in [*ROOT.glob("configs/imagenet_lt/*.yaml"), *ROOT.glob("configs/inat18/*.yaml")]:
        recipe = load(Config, path).data.recipe
        name = path.parent.name
        if recipe.crop == "resize_crop":
            name += "_resize"
        short_side = recipe.resolved_short_side() if recipe.crop == "resize_crop" else None
        assert RECIPES[name].encoding == Encoding(short_side=short_side)
        assert RECIPES["evaluation"].encoding == Encoding(short_side=recipe.evaluation().resolved_short_side())
        seen.add(name)
    assert {"imagenet_lt", "inat18"} <= seen
    resize = Recipe(crop="resize_crop").resolved_short_side()
    assert RECIPES["imagenet_lt_resize"].encoding == Encoding(short_side=resize)


def test_the_documentation_lists_every_recipe() -> None:
    text = (ROOT / "docs" / "storage.md").read_text()
    for name, storage in RECIPES.items():
        short = storage.encoding.short_side
        assert f"| `{name}` | {f'short side {short}' if short else 'files as they are'} |" in text


def test_a_recipe_stores_what_its_options_would(tmp_path: Path, tree: Path, listing: Path) -> None:
    """Equal to the byte, and equal for a cache; only the manifest says how it was requested."""
    root = tmp_path / "large"
    for name in ("ant/0.jpg", "bee/more/odd name.PNG", "cat/1.jpg", "ant/1.jpg"):
        save(root / name, 1, (400, 300))
    common = ["list", "--root", str(root), "--list", str(listing), "--workers", "1", "--out"]
    options = {"recipe": ["--recipe", "evaluation"], "sides": ["--short-side", "256"], "whole": []}
    for name, option in options.items():
        assert convert.main([*common, str(tmp_path / f"{name}.beton"), *option]) == 0
    recipe, sides, whole = (Records(tmp_path / f"{name}.beton") for name in options)
    assert set(recipe.stored_heights) == {256} and set(recipe.stored_widths) == {341}
    assert (recipe.crcs == sides.crcs).all() and recipe.digest == sides.digest == whole.digest
    views = [view_identity(records, Recipe(), 0, "reference") for records in (recipe, sides, whole)]
    assert views[0] == views[1] and views[0]["size_rule"] != views[2]["size_rule"]
    assert recipe.manifest["made"]["options"]["recipe"] == "evaluation"
    assert sides.manifest["made"]["options"]["recipe"] is None


def test_recipes_are_explained_and_exclude_sizes(
    tmp_path: Path, tree: Path, listing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("folder", "list"):
        with pytest.raises(SystemExit, match="0"):
            convert.main([command, "--help"])
        text = capsys.readouterr().out
        for name, storage in RECIPES.items():
            assert any(
                line.split()[:1] == [name] and str(storage.encoding) in line and line.endswith(storage.use)
                for line in text.splitlines()
            )
    out = ["--out", tmp_path / "a.beton", "--recipe", "evaluation"]
    words = "--recipe evaluation means: short side at most 256; give either --recipe, or --short-side and --max-side"
    assert words in failure(capsys, "folder", "--images", tree, *out, "--short-side", 256)
    assert words in failure(capsys, "list", "--root", tree, "--list", listing, *out, "--max-side", 500)
    assert os.listdir(tmp_path) == ["list.txt"]


# Splits


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of 20, 10 and 1 images of 320 x 300."""
    root = tmp_path_factory.mktemp("large")
    save(root / "ant" / "00.jpg", 0, (320, 300))
    for name, count in (("ant", 20), ("bee", 10), ("cat", 1)):
        (root / name).mkdir(exist_ok=True)
        for number in range(count):
            if not (root / name / f"{number:02d}.jpg").exists():
                os.link(root / "ant" / "00.jpg", root / name / f"{number:02d}.jpg")
    return root


def split_of(folder: Path) -> dict[str, Records]:
    return {path.stem: Records(path) for path in sorted(folder.glob("*.beton"))}


def test_folder_in_three_parts(tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "parts"
    command = ["folder", "--images", str(large_tree), "--workers", "1", "--val", "0.1", "--test", "0.2", "--out"]
    assert convert.main([*command, str(out)]) == 0
    assert f"1 of 3 classes have no image in {out / 'val.beton'}" in capsys.readouterr().err
    parts = split_of(out)
    counts = {part: records.class_counts.tolist() for part, records in parts.items()}
    assert counts == {"test": [4, 2, 0], "train": [14, 7, 1], "val": [2, 1, 0]}
    assert all(records.class_names == CLASSES for records in parts.values())
    everything = sorted(name for records in parts.values() for name in names(records))
    assert everything == sorted(str(path.relative_to(large_tree)) for path in large_tree.rglob("*.jpg"))
    for part, records in parts.items():
        options = {"strip_prefix": "", "recipe": None, "split": part, "val": 0.1, "test": 0.2, "split_seed": 0}
        assert records.manifest["made"]["options"] == options and records.manifest["made"]["kind"] == "folder"

    shutil.copytree(large_tree, tmp_path / "elsewhere")
    command[2] = str(tmp_path / "elsewhere")
    assert convert.main([*command, str(tmp_path / "again")]) == 0
    for part in parts:
        assert (tmp_path / "again" / f"{part}.beton").read_bytes() == (out / f"{part}.beton").read_bytes()
    assert convert.main([*command, str(tmp_path / "other"), "--split-seed", "1"]) == 0
    assert names(split_of(tmp_path / "other")["test"]) != names(parts["test"])


def test_parts_are_stored_for_what_they_do(tmp_path: Path, large_tree: Path) -> None:
    """Under a training recipe the other parts hold the evaluation view; explicit sizes apply to all parts."""
    command = ["folder", "--images", str(large_tree), "--workers", "1", "--test", "0.2"]
    assert convert.main([*command, "--out", str(tmp_path / "a"), "--recipe", "inat18", "--quality", "90"]) == 0
    assert convert.main([*command, "--out", str(tmp_path / "b"), "--short-side", "100"]) == 0
    parts = split_of(tmp_path / "a")
    assert list(parts) == ["test", "train"]
    assert set(parts["train"].stored_heights) == {300} and set(parts["test"].stored_heights) == {256}
    encoding = {"short_side": 256, "max_side": None, "quality": 90}
    assert parts["test"].manifest["made"]["encoding"] == encoding
    assert {int(side) for records in split_of(tmp_path / "b").values() for side in records.stored_heights} == {100}


def test_bad_splits(tmp_path: Path, large_tree: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common, out = ["folder", "--workers", 1, "--images", large_tree], tmp_path / "parts"
    message = failure(capsys, *common, "--out", out, "--val", 0.5, "--test", 0.5)
    assert "--val 0.5 and --test 0.5 leave nothing to train; give less than 1 in all" in message
    message = failure(capsys, *common, "--out", tmp_path / "a.beton", "--val", 0.1)
    assert "a.beton: with --val or --test give a folder, for train.beton and the others" in message
    message = failure(capsys, *common, "--out", out, "--val", 0.01, "--test", 0.1)
    assert "--val 0.01 of classes of at most 20 images is none; give a larger share" in message
    assert os.listdir(tmp_path) == []
    for text in ("1", "-0.1", "nan", "x"):
        assert convert.main(["folder", "--images", str(tree), "--out", str(out), "--val", text]) == 2
    assert os.listdir(tmp_path) == []


def test_existing_parts_need_force_and_leave_together(
    tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["folder", "--workers", 1, "--images", large_tree, "--out", tmp_path]
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.beton").write_bytes(b"precious")
        message = failure(capsys, *common, "--val", 0.1, "--test", 0.1)
        assert f"{part}.beton exists; add --force to overwrite it" in message
        if part != "test":
            (tmp_path / f"{part}.beton").unlink()
    message = failure(capsys, *common, "--val", 0.1, "--force")
    assert f"{tmp_path / 'test'}.beton exists, of another split; remove it, or give --test a share" in message
    assert (tmp_path / "test.beton").read_bytes() == b"precious"
    assert convert.main([str(argument) for argument in [*common, "--test", 0.1, "--force"]]) == 0
    before = {part: records.digest for part, records in split_of(tmp_path).items()}
    assert list(before) == ["test", "train"]

    bad = large_tree / "bee" / "bad5.jpg"  # an image of test, which is written last
    bad.write_bytes(b"no image")
    try:
        assert "1 of 9 images cannot be read, first bee/bad5" in failure(capsys, *common, "--test", 0.3, "--force")
    finally:
        bad.unlink()
    assert {part: records.digest for part, records in split_of(tmp_path).items()} == before
    assert sorted(os.listdir(tmp_path)) == ["test.beton", "train.beton"]


@pytest.mark.parametrize("way", ["out", "into"])
def test_a_part_that_cannot_be_moved_leaves_all_old_ones(
    tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Such as an immutable file, or a disk with an error."""
    common = ["folder", "--workers", 0, "--images", large_tree, "--out", tmp_path, "--force"]
    assert convert.main([str(argument) for argument in [*common, "--test", 0.3]]) == 0
    before = {part: records.digest for part, records in split_of(tmp_path).items()}
    moved, last = os.rename, tmp_path / "test.beton"

    def rename(source: Path, target: Path) -> None:
        if not moves and last == (source if way == "out" else target):
            moves.append(source)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        moved(source, target)

    moves: list[Path] = []
    monkeypatch.setattr(os, "rename", rename)
    message = failure(capsys, *common, "--test", 0.5)
    assert f"{last} cannot be overwritten: Operation not permitted; the old files are still there" in message and moves
    assert {part: records.digest for part, records in split_of(tmp_path).items()} == before
    assert sorted(os.listdir(tmp_path)) == ["test.beton", "train.beton"]


def test_parts_that_a_killed_run_left_are_removed_and_a_second_run_is_refused(
    tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["folder", "--workers", 0, "--images", large_tree, "--out", tmp_path, "--test", 0.3]
    (tmp_path / ".parts.partial").mkdir()
    (tmp_path / ".parts.partial" / "val.beton").write_bytes(b"left")
    with alone_in(tmp_path):
        assert "another conversion is writing parts in this folder; wait for its end" in failure(capsys, *common)
    assert (tmp_path / ".parts.partial" / "val.beton").exists()
    assert convert.main([str(argument) for argument in common]) == 0
    assert sorted(os.listdir(tmp_path)) == ["test.beton", "train.beton"]
    assert capsys.readouterr().out.startswith(f"{tmp_path}/train.beton: 22 images, 3 classes, ")


# Classes and lists


def test_folder_with_a_class_list(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes, out = tmp_path / "classes.txt", tmp_path / "a.beton"
    classes.write_text("dog\nbee\ncat\nant\n\n")
    arguments = [
        "folder",
        "--images",
        str(tree),
        "--out",
        str(out),
        "--classes",
        str(classes),
        "--workers",
        "1",
    ]
    assert convert.main(arguments) == 0
    assert "note: 1 of 4 classes have no image" in capsys.readouterr().err
    records = Records(out)
    assert records.class_names == ["dog", "bee", "cat", "ant"]
    assert records.class_counts.tolist() == [0, 5, 5, 5] and records.labels[0] == 3


def test_list(tmp_path: Path, tree: Path, listing: Path) -> None:
    done = run("list", "--root", tree, "--list", listing, "--out", tmp_path / "a.beton")
    assert done.returncode == 0, done.stderr
    records = Records(tmp_path / "a.beton")
    assert names(records) == ["ant/0.jpg", "bee/more/odd name.PNG", "cat/1.jpg", "ant/1.jpg"]
    assert records.labels.tolist() == [0, 1, 3, 0]
    assert records.class_names == ["0", "1", "2", "3"] and records.class_counts.tolist() == [2, 1, 0, 1]


def test_list_with_classes_and_prefix(tmp_path: Path, tree: Path) -> None:
    listing, classes, out = tmp_path / "list.txt", tmp_path / "classes.txt", tmp_path / "a.beton"
    listing.write_text("bee/0.jpg 1\nbee/1.jpg 1")
    classes.write_text("ant\nbee\ncrane\ncrane\n")
    arguments = [
        "list",
        "--root",
        tree,
        "--list",
        listing,
        "--out",
        out,
        "--classes",
        classes,
        "--workers",
        1,
    ]
    assert convert.main([str(argument) for argument in [*arguments, "--strip-prefix", "bee/"]]) == 0
    records = Records(out)
    assert records.class_names == ["ant", "bee", "crane", "crane"] and names(records) == ["0.jpg", "1.jpg"]
    assert records.keys[0] == sample_key("0.jpg")
    assert records.manifest["made"]["options"] == {"strip_prefix": "bee/", "recipe": None}


def test_cifar100_lt(tmp_path: Path) -> None:
    archive = pack(tmp_path / "cifar.tar.gz", cifar100(), "w:gz")
    done = run("cifar100-lt", "--archive", archive, "--imbalance", 3, "--out", tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    train, test = (Records(tmp_path / "out" / f"{split}.beton") for split in ("train", "test"))
    assert train.class_counts.tolist() == [int(3 * (1 / 3) ** (label / 99)) for label in range(100)]
    assert len(test) == 200 and (test.class_counts == 2).all()
    assert train.class_names == test.class_names == [f"kind_{label}" for label in range(100)]
    assert train.raw.all() and train.payload(0).size == 3072 and train.name(0).startswith("train/kind_")
    assert train.manifest["made"]["kind"] == "cifar100-lt"
    md5 = hashlib.md5(cifar100()["train"]).hexdigest()
    assert train.manifest["made"]["options"] == {"split": "train", "imbalance": 3, "train_md5": md5}
    again = run("cifar100-lt", "--archive", archive, "--imbalance", 3, "--out", tmp_path / "b", "--workers", 1)
    assert again.returncode == 0
    for name in ("train.beton", "test.beton"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_pair_of_cifar10s_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Head 0 and tail 1 whatever their labels were; the images of a pair are among those of a larger one; all test images."""
    archive = pack(tmp_path / "cifar.tar", cifar10())
    common = ["cifar10-pair", "--archive", archive, "--workers", 0, "--head", "kind_7", "--tail", "kind_2"]

    def made(name: str, *counts: int) -> tuple[Records, Records]:
        given = [*common, "--counts", *counts, "--out", tmp_path / name]
        assert convert.main([str(argument) for argument in given]) == 0
        return Records(tmp_path / name / "train.beton"), Records(tmp_path / name / "test.beton")

    (train, test), (small, same) = made("large", 10, 4), made("small", 5, 2)
    assert train.class_names == test.class_names == ["kind_7", "kind_2"] and test.class_counts.tolist() == [3, 3]
    assert (train.class_counts.tolist(), small.class_counts.tolist()) == ([10, 4], [5, 2])
    assert set(small.keys) < set(train.keys) and same.digest == test.digest
    whole = read_cifar(archive)
    images = dict(zip(whole.train.names, whole.train.images, strict=True))
    for i in range(len(train)):
        kind = train.class_names[train.labels[i]]
        assert (
            train.name(i).startswith(f"train/{kind}/") and train.payload(i).tobytes() == images[train.name(i)].tobytes()
        )
    md5 = hashlib.md5(b"".join(cifar10()[f"data_batch_{part}"] for part in range(1, 6))).hexdigest()
    chosen = {"head": "kind_7", "tail": "kind_2"}
    expected = {"split": "train", **chosen, "counts": [10, 4], "train_md5": md5}
    assert train.manifest["made"] == train.manifest["made"] | {"kind": "cifar10-pair", "options": expected}
    assert test.manifest["made"]["options"] == {"split": "test", **chosen}
    place = ["--out", tmp_path / "none"]
    for changed, words in (
        (["--counts", 11, 4], "--counts 11 4: .* has 10 images of kind_7"),
        (["--counts", 10, 0], "--counts: 0 given, 1.. allowed"),
        (["--counts", 1, 1, "--tail", "kind_7"], "is the same class twice"),
        (
            ["--counts", 1, 1, "--head", "dog"],
            "--head dog: no class of the archive; give one of kind_0, kind_1, .*kind_9",
        ),
        (["--counts", 1, 1, "--archive", pack(tmp_path / "100.tar", cifar100())], "is a cifar100 archive"),
    ):
        assert re.search(words, failure(capsys, *common, *place, *changed))
    assert not (tmp_path / "none").exists()


def test_cifar10_lt_and_the_wrong_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(tmp_path / "cifar.tar", cifar10())
    common = ["--archive", archive, "--out", tmp_path / "out", "--workers", 1]
    arguments = [str(argument) for argument in ["cifar10-lt", *common, "--imbalance", 2.5]]
    assert convert.main(arguments) == 0
    train = Records(tmp_path / "out" / "train.beton")
    assert train.class_counts[[0, -1]].tolist() == [10, 4]
    assert train.manifest["made"]["options"]["imbalance"] == 2.5
    message = failure(capsys, "cifar100-lt", *common, "--imbalance", 2, "--force")
    assert "is a cifar10 archive; type cifar10-lt" in message
    message = failure(capsys, "cifar10-lt", *common, "--imbalance", 11, "--force")
    assert "--imbalance 11 leaves a class without images; give at most 10" in message


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_images, "HEAD_IMAGES", 6)
    monkeypatch.setattr(demo_images, "TAIL_IMAGES", 2)
    monkeypatch.setattr(demo_images, "TEST_IMAGES", 1)
    out = tmp_path / "demo"
    assert convert.main(["demo", "--out", str(out), "--workers", "1", "--seed", "3"]) == 0
    train, test = Records(out / "train.beton"), Records(out / "test.beton")
    assert train.class_names == test.class_names == sorted(os.listdir(out / "train"))
    assert train.class_counts.max() == 6 and train.class_counts.min() == 2 and (test.class_counts == 1).all()
    assert train.manifest["made"]["options"] == {"split": "train", "seed": 3}
    assert not train.raw.any()


def test_info(tmp_path: Path, tree: Path) -> None:
    out = tmp_path / "a.beton"
    assert convert.main(["folder", "--images", str(tree), "--out", str(out), "--workers", "1"]) == 0
    done = run("info", out, "--check")
    assert done.returncode == 0, done.stderr
    words = ["15", "5 (ant)", "JPEG, files as they are; quality 95", " kB each", "30x24", Records(out).digest]
    words += ["made: kind", "folder"]
    for word in words:
        assert word in done.stdout
    assert "all 15 images are intact" in done.stdout
    assert "made: recipe" not in done.stdout and "dropped" not in done.stdout
    data = bytearray(out.read_bytes())
    data[Records(out).offsets[4] + 30] ^= 1
    out.write_bytes(data)
    assert run("info", out).returncode == 0
    broken = run("info", out, "--check")
    assert broken.returncode == 2
    key, last = Records(out).keys[4], broken.stderr.splitlines()[-1]
    assert f"\ndamaged: ant/more/odd name.PNG (key {key}): its CRC-32 differs\n" in broken.stderr
    assert last.startswith(f"error: {out}: the image of record 4 (key {key}, ant/more/odd name.PNG) is damaged")
    assert "python tools/convert.py repair" in last


def test_info_tells_recipe_and_split(tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["folder", "--images", large_tree, "--out", tmp_path, "--recipe", "imagenet_lt", "--test", 0.2]
    assert convert.main([str(argument) for argument in [*command, "--workers", 1]]) == 0
    capsys.readouterr()
    assert convert.main(["info", str(tmp_path / "test.beton")]) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = dict(row for row in rows if len(row) == 2)
    assert found["stored as"].startswith("JPEG, short side at most 256; quality 95")
    assert (found["stored size"], found["original size"]) == ("273x256", "320x300")
    expected = {"made: recipe": "imagenet_lt", "made: split": "test", "made: test": "0.2", "made: split_seed": "0"}
    assert expected.items() <= found.items()
    images = Records(tmp_path / "test.beton")
    assert found["decoded in part"] == f"{len(images)} of {len(images)} images: those with restart markers"


@pytest.mark.parametrize("recipe", [[], ["--recipe", "imagenet_lt"]])
def test_no_restarts_keeps_the_very_bytes(
    tmp_path: Path, large_tree: Path, capsys: pytest.CaptureFixture[str], recipe: list[str]
) -> None:
    """Of the same samples: a cache of one file serves the other."""
    command = ["folder", "--images", str(large_tree), "--workers", "1", *recipe]
    plain, other = tmp_path / "plain.beton", tmp_path / "marked.beton"
    assert convert.main([*command, "--out", str(plain), "--no-restarts"]) == 0
    assert convert.main([*command, "--out", str(other)]) == 0
    ours, others = Records(plain), Records(other)
    assert ours.digest == others.digest and ours.manifest["made"] == others.manifest["made"]
    files = {path.relative_to(large_tree).as_posix(): path.read_bytes() for path in large_tree.rglob("*.*")}
    for position in range(len(ours)):
        data = files[ours.name(position)]
        assert ours.payload(position).tobytes() == data != others.payload(position).tobytes()
    capsys.readouterr()
    assert convert.main(["info", str(plain)]) == 0
    assert f"0 of {len(ours)} images: those with restart markers" in capsys.readouterr().out


# Repair


@pytest.fixture
def damaged(tmp_path: Path, tree: Path) -> Path:
    """Both of the two images of class ant are damaged, and one of the three of bee."""
    path, listing = tmp_path / "a.beton", tmp_path / "list.txt"
    listing.write_text("ant/0.jpg 0\nbee/0.jpg 1\nbee/1.jpg 1\nant/1.jpg 0\nbee/2.jpg 1\n")
    command = ["list", "--root", tree, "--list", listing, "--out", path, "--workers", 1]
    assert convert.main([str(argument) for argument in command]) == 0
    data, opened = bytearray(path.read_bytes()), Records(path)
    for position in (0, 2, 3):
        data[opened.offsets[position] + 50] ^= 1
    path.write_bytes(data)
    return path


def test_repair(tmp_path: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the command that the error names; then the file is intact and says what it lost."""
    before, old = damaged.read_bytes(), Records(damaged)
    command = shlex.split(str(old.damaged(0, "is damaged")).split(" type: ")[1])
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    new = Records(tmp_path / "a-repaired.beton")
    lines = done.stderr.splitlines()
    for position in (0, 2, 3):
        assert f"damaged: {old.name(position)} (key {old.keys[position]}): its CRC-32 differs" in lines
    assert "note: class 0 has lost all its images" in lines
    assert done.stdout.startswith(f"{new.path}: 2 images, 2 classes, ")
    assert done.stdout.endswith(f"digest {new.digest}, 3 damaged images dropped\n")
    assert names(new) == ["bee/0.jpg", "bee/2.jpg"] and new.class_counts.tolist() == [0, 2]
    assert damaged.read_bytes() == before
    capsys.readouterr()
    assert convert.main(["info", str(new.path), "--check"]) == 0
    text = capsys.readouterr().out
    assert "3 damaged images, such as ant/0.jpg (its CRC-32 differs)" in " ".join(text.replace("│", " ").split())
    assert "all 2 images are intact" in text


def test_nothing_is_written_where_nothing_is_damaged(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.beton"
    assert convert.main(["folder", "--images", str(tree), "--out", str(path), "--workers", "1"]) == 0
    capsys.readouterr()
    assert convert.main(["repair", str(path), "--out", str(tmp_path / "b.beton"), "--workers", "2"]) == 0
    words = f"{path}: all 15 images are intact; nothing to repair, nothing was written\n"
    assert capsys.readouterr().out == words and os.listdir(tmp_path) == ["a.beton"]


def test_bad_repairs(tmp_path: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.beton"
    same = tmp_path / "folder" / ".." / damaged.name
    (tmp_path / "folder").mkdir()
    assert "is the file to repair, which stays as it is" in failure(capsys, "repair", damaged, "--out", same, "--force")
    assert "no such record file" in failure(capsys, "repair", tmp_path / "none.beton", "--out", new)
    new.write_bytes(b"precious")
    assert "new.beton exists; add --force" in failure(capsys, "repair", damaged, "--out", new)
    assert new.read_bytes() == b"precious"
    data = bytearray(damaged.read_bytes())
    data[TABLE_START + 30] ^= 1
    damaged.write_bytes(data)
    message = failure(capsys, "repair", damaged, "--out", new, "--force")
    assert "damaged (CRC-32 differs); convert it again with tools/convert.py, or copy it again" in message


# Mistakes


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run("info", tmp_path / "none.beton")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'none.beton'}: no such record file; write it with tools/convert.py\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ant/0.jpg 0\nant/1.jpg\n", "line 2: 'path label' expected, a label from 0 up, found: ant/1.jpg"),
        ("ant/0.jpg 0\n\nant/1.jpg one\n", "line 3: 'path label' expected"),
        ("ant/0.jpg -1\n", "line 1: 'path label' expected"),
        ("ant/0.jpg 1.0\n", "line 1: 'path label' expected"),
        ("ant/0.jpg 99999999999\n", "line 1: label 99999999999 is not in 0..999999"),
        ("\n\n", "the list has no lines"),
        ("", "the list has no lines"),
        ("ant/0.jpg 0\nant/0.jpg 0\n", "line 2: ant/0.jpg is in line 1 already"),
        ("ant/0.jpg 0\nant/none.jpg 0\n", "1 of 2 images cannot be read, first ant/none.jpg (no such file"),
    ],
)
def test_bad_lists(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(text)
    arguments = ["--root", tree, "--list", listing, "--out", tmp_path / "a.beton", "--workers", 1]
    assert words in failure(capsys, "list", *arguments)
    assert os.listdir(tmp_path) == ["list.txt"]


def test_bad_list_options(tmp_path: Path, tree: Path, listing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, classes = tmp_path / "a.beton", tmp_path / "classes.txt"
    common = ["list", "--list", listing, "--out", out, "--workers", 1]
    assert "none: no such folder; --root is" in failure(capsys, *common, "--root", tmp_path / "none")
    common += ["--root", tree]
    message = failure(capsys, *common, "--strip-prefix", "ant/")
    assert f"{listing}, line 2: bee/more/odd name.PNG does not start with ant/" in message
    classes.write_text("ant\nbee\ncat\n")
    assert "line 4: label 3 is not in 0..2" in failure(capsys, *common, "--classes", classes)
    classes.write_text("ant\n\ncat\n")
    assert "line 2: a class name expected" in failure(capsys, *common, "--classes", classes)
    classes.write_text("\n")
    assert "class names expected, one per line" in failure(capsys, *common, "--classes", classes)
    message = failure(capsys, *common, "--classes", tmp_path / "none.txt")
    assert "none.txt: the class list cannot be read: No such file" in message
    listing.unlink()
    assert f"{listing}: the list cannot be read: No such file" in failure(capsys, *common)


def test_bad_folders(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty, classes = tmp_path / "a.beton", tmp_path / "empty", tmp_path / "classes.txt"
    common = ["folder", "--out", out, "--workers", 1, "--images"]
    assert "no such folder; give the folder whose" in failure(capsys, *common, tmp_path / "none")
    empty.mkdir()
    said = failure(capsys, *common, empty)
    assert "no sub-folders found" in said and "train/predict.py takes images without classes as they are" in said
    save(empty / "ant" / "0.jpg", 0)
    (empty / "bee").mkdir()
    assert f"{empty / 'bee'}: no images in this class" in failure(capsys, *common, empty)
    classes.write_text("ant\nbee\n")
    assert f"{tree / 'cat'}: this class is not in" in failure(capsys, *common, tree, "--classes", classes)
    classes.write_text("ant\nbee\ncat\nbee\n")
    assert "names a class twice" in failure(capsys, *common, tree, "--classes", classes)
    message = failure(capsys, *common, tree, "--strip-prefix", "ant/")
    assert "bee/0.jpg does not start with ant/" in message
    assert not out.exists()


def test_unreadable_images_are_listed(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "images", tmp_path / "a.beton"
    shutil.copytree(tree, root)
    for number in range(25):
        (root / "bee" / f"bad{number:02d}.jpg").write_bytes(b"no image")
    common = ["folder", "--images", root, "--out", out, "--workers", 1]
    capsys.readouterr()
    assert convert.main([str(argument) for argument in common]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("unreadable", "error"))]
    assert lines[0] == "unreadable: bee/bad00.jpg: no image format that Pillow knows"
    assert len(lines) == 22 and lines[20] == "unreadable: and 5 more"
    assert lines[21].startswith("error: 25 of 40 images cannot be read, first bee/bad00.jpg")
    assert not out.exists()
    assert convert.main([str(argument) for argument in [*common, "--skip-bad"]]) == 0
    assert "25 unreadable images left out" in capsys.readouterr().out
    assert len(Records(out)) == 15 and len(Records(out).manifest["made"]["skipped"]) == 25
    assert convert.main(["info", str(out)]) == 0
    assert "25 unreadable images" in capsys.readouterr().out


def test_a_file_lists_all_unreadable_images_of_the_last_run(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out, listed = tmp_path / "images", tmp_path / "a.beton", tmp_path / "a.beton.unreadable.txt"
    shutil.copytree(tree, root)
    for number in range(25):
        (root / "bee" / f"bad{number:02d}.jpg").write_bytes(b"no image")
    common = [*map(str, ["folder", "--images", root, "--out", out, "--workers", 1, "--force"])]
    for more, code in (([], 2), (["--skip-bad"], 0)):
        capsys.readouterr()
        listed.write_text("of an earlier run")
        assert convert.main([*common, *more]) == code
        assert f"note: {listed} lists all 25" in capsys.readouterr().err
        lines = [f"bee/bad{number:02d}.jpg: no image format that Pillow knows" for number in range(25)]
        assert listed.read_text().splitlines() == lines
    for number in range(20):
        (root / "bee" / f"bad{number:02d}.jpg").unlink()
    assert convert.main(common) == 2 and not listed.exists(), "what is shown needs no list"
    listed.mkdir()
    assert convert.main([*common, "--skip-bad"]) == 0 and len(Records(out)) == 15


@pytest.mark.parametrize("recipe", [[], ["--recipe", "imagenet_lt"], ["--recipe", "evaluation"]])
def test_large_photos_and_lying_headers_end_no_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: list[str]
) -> None:
    """With any options, and the same bytes from any number of workers."""
    folder, noise = tmp_path / "images" / "a", np.random.default_rng(0).integers(0, 256, (1600, 2400, 3), np.uint8)
    folder.mkdir(parents=True)
    Image.fromarray(noise).save(folder / "large.jpg", quality=100, subsampling=0)
    (folder / "lying.bmp").write_bytes(b"BM9\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0 N\0\0 N\0\0\1\0\x18" + bytes(28))
    save(folder / "small.jpg", 1)
    common = ["folder", "--images", str(tmp_path / "images"), *recipe, "--skip-bad"]
    for workers in ("1", "2"):
        capsys.readouterr()
        assert convert.main([*common, "--out", str(tmp_path / f"{workers}.beton"), "--workers", workers]) == 0
        message = capsys.readouterr().err
        assert "unreadable: a/lying.bmp: image file is truncated" in message
        large = "note: 1 images do not fit a record at their size and are stored smaller, such as a/large.jpg"
        assert (f"{large} (2400x1600 as 2100x1400)" in message) == ("evaluation" not in recipe)
    assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()


def test_dark_16_bit_grey_is_noted_and_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    values = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    for number, scale in enumerate((1, 2, 16)):
        Image.fromarray(values // 2 * scale).save(folder / f"{number}.png")
    common, made = ["folder", "--images", str(tmp_path / "images"), "--force"], {}
    for name, more in {
        "plain": [],
        "16": ["--grey-bits", "16"],
        "12": ["--grey-bits", "12", "--recipe", "inat18"],
    }.items():
        messages = []
        for workers in ("1", "2"):
            capsys.readouterr()
            out = tmp_path / f"{name}-{workers}.beton"
            assert convert.main([*common, "--out", str(out), "--workers", workers, *more]) == 0
            messages.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")])
        assert messages[0] == messages[1] and out.read_bytes() == (tmp_path / f"{name}-1.beton").read_bytes()
        made[name] = Records(out).manifest["made"]["encoding"], messages[0]
    plain = {"short_side": None, "max_side": None, "quality": 95}
    dark = "2 images of 16-bit grey use at most 12 of their bits, such as a/0.png, and are stored nearly black"
    assert made["plain"] == made["16"] == (plain, [f"note: {dark}; --grey-bits 12 scales them"])
    clipped = "1 images of 16-bit grey use up to 15 bits, such as a/2.png; what --grey-bits 12 cannot hold is white"
    assert made["12"] == (plain | {"grey_bits": 12}, [f"note: {clipped}"])
    assert convert.main(["info", str(tmp_path / "12-1.beton")]) == 0
    assert "16-bit grey from 12 bits" in " ".join(capsys.readouterr().out.split())
    assert convert.main([*common, "--out", str(out), "--grey-bits", "17"]) == 2
    assert "17" in capsys.readouterr().err


def test_dark_16_bit_colour_is_noted_without_the_option_that_cannot_scale_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "0.png").write_bytes(png(np.full((4, 4, 3), 2047, np.uint16), 2))
    command = ["folder", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "a.beton"), "--workers", "1"]
    assert convert.main(command) == 0
    message = capsys.readouterr().err
    assert (
        "note: 1 images of 16-bit colour, or of grey with alpha, use at most 11 of their bits, such as a/0.png"
        in message
    )
    assert "save them with 8 bits" in message


def test_a_named_pipe_is_an_unreadable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "ant" / "0.jpg", 0)
    os.mkfifo(tmp_path / "ant" / "pipe.jpg")
    (tmp_path / "ant" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "list.txt").write_text("ant/0.jpg 0\nant/pipe.jpg 0\nant/zero.jpg 0\n")
    words = "2 of 3 images cannot be read, first ant/pipe.jpg (not a regular file, but a pipe, socket or device)"
    out = ["--out", tmp_path / "a.beton", "--workers", 1]
    assert words in failure(capsys, "folder", "--images", tmp_path, *out)
    assert words in failure(capsys, "list", "--root", tmp_path, "--list", tmp_path / "list.txt", *out)


def test_a_folder_reached_twice_and_a_folder_of_splits(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "a.beton", "--workers", 1]
    for split in ("train", "val"):
        save(tmp_path / "splits" / split / "ant" / "0.jpg", 0)
    command = ["folder", "--images", tmp_path / "splits", *out]
    assert f"convert each, such as --images {tmp_path / 'splits' / 'train'}" in failure(capsys, *command)
    (tmp_path / "classes.txt").write_text("train\nval\n")
    assert convert.main([str(word) for word in (*command, "--classes", tmp_path / "classes.txt")]) == 0
    (tmp_path / "splits" / "val" / "up").symlink_to("../train")
    message = failure(capsys, *command, "--force", "--classes", tmp_path / "classes.txt")
    assert "remove the link" in message


@pytest.mark.parametrize("place", ["x" * 300, "x" * 300 + "/a.beton", "file/a.beton", "caf\udce9\x1b[31m/" + "x" * 300])
def test_a_place_that_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, tree: Path, listing: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("")
    path, out = tmp_path / place, tmp_path / "a.beton"
    for command in (
        ["folder", "--images", tree, "--out", path],
        ["folder", "--images", tree, "--out", path, "--val", 0.2],
        ["folder", "--images", path, "--out", out],
        ["folder", "--images", tree, "--classes", path, "--out", out],
        ["list", "--root", tree, "--list", listing, "--out", path],
        ["list", "--root", path, "--list", listing, "--out", out],
        ["list", "--root", tree, "--list", path, "--out", out],
        ["cifar10-lt", "--imbalance", 10, "--archive", path, "--out", out],
        ["cifar10-lt", "--imbalance", 10, "--archive", tree, "--out", path],
        ["info", path],
        ["repair", path, "--out", out],
        ["demo", "--out", path],
    ):
        assert failure(capsys, *command).isprintable()
    assert not out.exists()


def test_existing_files_need_force(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.beton").write_bytes(b"precious")
    out = tmp_path / "test.beton"
    words = "test.beton exists; add --force"
    assert words in failure(capsys, "folder", "--images", tree, "--out", out)
    assert words in failure(capsys, "list", "--root", tree, "--list", tree / "none", "--out", out)
    assert words in failure(capsys, "demo", "--out", tmp_path)
    assert words in failure(capsys, "cifar100-lt", "--archive", "none", "--imbalance", 10, "--out", tmp_path)
    assert os.listdir(tmp_path) == ["test.beton"] and out.read_bytes() == b"precious"
    assert "is a folder" in failure(capsys, "folder", "--images", tree, "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        "folder --images . --out a --quality 0",
        "folder --images . --out a --quality 101",
        "folder --images . --out a --short-side 0",
        "folder --images . --out a --max-side x",
        "folder --images . --out a --workers -1",
        "cifar100-lt --archive a --out b --imbalance 0.5",
        "cifar100-lt --archive a --out b --imbalance nan",
        "cifar100-lt --archive a --out b --imbalance inf",
        "cifar100-lt --archive a --out b",
        "list --root . --out a",
        "unknown",
        "",
    ],
)
def test_bad_arguments(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(arguments.split()) == 2
    assert "error: " in capsys.readouterr().err


def test_prefixes_are_prefixes_not_sets_of_letters() -> None:
    assert stripped("train/rain.jpg", "train/", "") == "rain.jpg"
    assert stripped("a.jpg", "", "") == "a.jpg"
    with pytest.raises(UserError):
        stripped("rain/train.jpg", "train/", "")


def test_a_foreign_module_beside_the_script_is_not_imported(tmp_path: Path) -> None:
    """`python tools/convert.py` puts tools/ first on the path; the repository's root must take its place."""
    (tmp_path / "pipelines.py").write_text("raise SystemExit('the wrong module')")
    done = run("info", "none.beton", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: none.beton: no such record file")


# Interruptions


@pytest.fixture
def slow_folder(tmp_path: Path) -> Path:
    """Images that together take seconds to convert: noise, which is slow to encode."""
    root = tmp_path / "slow"
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), np.uint8)
    (root / "a").mkdir(parents=True)
    Image.fromarray(noise).save(root / "a" / "000.bmp")
    for number in range(1, 300):
        os.link(root / "a" / "000.bmp", root / "a" / f"{number:03d}.bmp")
    return root


def processes() -> Iterator[tuple[int, int]]:
    """(process, parent) of all running processes, without zombies."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # ended meanwhile
            if state != "Z":
                yield int(entry), int(parent)


def descendants(root: int) -> set[int]:
    parents, found = dict(processes()), {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def wait_until(condition: object, seconds: float = 180.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def mind_ctrl_c() -> None:
    """A shell starts background jobs, such as CI's, with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("sign", "code"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_conversion_leaves_nothing_and_starts_again(
    tmp_path: Path, slow_folder: Path, sign: str, code: int
) -> None:
    folder, out = tmp_path / "out", tmp_path / "out" / "a.beton"
    arguments = ["folder", "--images", slow_folder, "--out", out, "--workers", "2"]
    command = [sys.executable, ROOT / "tools" / "convert.py", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=mind_ctrl_c)
    partial = folder / ".a.beton.partial"
    # Beyond the 8 MiB before the first image: the file is half written and the workers are busy.
    wait_until(lambda: partial.exists() and partial.stat().st_size > 12_000_000)
    workers = descendants(process.pid)
    assert len(workers) >= 3, "a server and two workers"
    if sign == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # to the workers as well, as a terminal does
    else:
        process.send_signal(signal.Signals[sign])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    wait_until(lambda: not workers & dict(processes()).keys())
    assert not out.exists() and b"Traceback" not in errors
    assert os.listdir(folder) == ([".a.beton.partial"] if sign == "SIGKILL" else [])

    for path in sorted((slow_folder / "a").iterdir())[8:]:
        path.unlink()
    assert convert.main([str(argument) for argument in arguments]) == 0
    assert len(Records(out)) == 8 and os.listdir(folder) == ["a.beton"]


def test_a_killed_worker_is_told_in_one_line(tmp_path: Path, slow_folder: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "convert.py", "folder", "--images", slow_folder]
    command += ["--out", tmp_path / "a.beton", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / ".a.beton.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 12_000_000)
    parents = dict(processes())
    children = descendants(process.pid)
    workers = [child for child in children if parents.get(child) in children]  # children of the server
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: a/") and ".bmp: the worker that converted it died" in last
    assert not list(tmp_path.glob("*.beton")) and not partial.exists()


def test_chunks_are_smaller_than_the_interrupted_conversion() -> None:
    """The two tests above need workers that are busy when the signal comes."""
    assert 2 * CHUNK * CHUNKS_PER_WORKER < 300
