"""--dry-run: what would be written, in words, and no file made, changed or removed, whatever the source."""

from pathlib import Path

import pytest
from helpers.image_sources import converted, imagenet, imagenet_row, refused, write_parquet, write_tar, write_tree

from tools import convert


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    capsys.readouterr()
    assert convert.main([str(word) for word in (*words, "--dry-run")]) == 0
    return capsys.readouterr()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_source_says_what_it_would_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = imagenet(), ["--out", tmp_path / "a.beton"]
    tree, archive = write_tree(tmp_path / "tree", images), write_tar(tmp_path / "a.tar", images)
    rows = [imagenet_row(*image) for image in images.items()]
    parquet = write_parquet(tmp_path / "a.parquet", rows, ["tench", "goldfish", "shark"])
    files = {f"{name.split('.')[0]}.jpg": data for name, data in images.items()}
    shard = write_tar(tmp_path / "b.tar", files | {name.replace("jpg", "cls"): b"2" for name in files})
    (tmp_path / "list.txt").write_text("".join(f"{name} 1\n" for name in list(images)[:3]))
    before = listing(tmp_path)
    for words, count, classes in (
        (["folder", "--images", tree], 12, 3),
        (["folder", "--images", archive], 12, 3),
        (["list", "--root", tree, "--list", tmp_path / "list.txt"], 3, 2),
        (["parquet", "--files", parquet], 12, 3),
        (["webdataset", "--shards", shard], 12, 3),
    ):
        text, notes = told(capsys, *words, *out)
        assert text.startswith(f"{tmp_path / 'a.beton'}: {count} images of {classes} classes would be written\n")
        assert f"sizes, from {count} images: median 30x24, stored as 30x24, " in text and " kB each; about " in text
        assert ("are in no line" in notes) == (words[0] == "list")
    assert "largest class: 12 images (2)\nsmallest class: 0 images (0)\nfirst classes: 0 0, 1 1, 2 2\n" in text
    assert listing(tmp_path) == before


def test_the_size_is_that_of_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["folder", "--images", write_tree(tmp_path / "tree", imagenet()), "--short-side", 12]
    text, _ = told(capsys, *words, "--out", tmp_path / "a.beton")
    records = converted(*words, tmp_path / "a.beton")
    assert f"stored as 15x12, {records.sizes.mean() / 1000:.1f} kB each" in text


def test_parts_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.beton").write_bytes(b"precious")
    words = [
        "folder",
        "--images",
        write_tree(tmp_path / "tree", imagenet()),
        "--out",
        tmp_path,
        "--val",
        0.25,
        "--force",
    ]
    text, _ = told(capsys, *words)
    assert "train.beton: 9 images of 3 classes" in text and "val.beton: 3 images of 3 classes" in text
    assert (tmp_path / "train.beton").read_bytes() == b"precious" and not (tmp_path / "val.beton").exists()


def test_what_would_fail_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that are not there, or not readable among those that are tried; and the list of unreadable ones stays away."""
    root, out = write_tree(tmp_path / "tree", imagenet() | {"n01440764/bad.jpg": b"no image"}), tmp_path / "a.beton"
    words = ["folder", "--images", root, "--out", out, "--dry-run"]
    assert "1 of 13 images cannot be read, first n01440764/bad.jpg" in refused(capsys, *words)
    assert convert.main([str(word) for word in (*words, "--skip-bad")]) == 0
    (tmp_path / "list.txt").write_text("".join(f"none/{number}.jpg 0\n" for number in range(30)))
    words = ["list", "--root", root, "--list", tmp_path / "list.txt", "--out", out, "--dry-run"]
    assert "30 of 30 images cannot be read, first none/0.jpg" in refused(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "tree"]


def test_labels_are_refused_as_by_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond the file's own classes, with and without a list, and beyond those given."""
    names, out = ["tench", "goldfish"], ["--out", tmp_path / "a.beton"]
    parquet = write_parquet(tmp_path / "a.parquet", [imagenet_row(*image) for image in imagenet().items()], names)
    shard = write_tar(tmp_path / "a.tar", {"a.jpg": b"", "a.cls": b"2"})
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "list.txt").write_text("n01484850/n01484850_10.JPEG 1\n")
    for words in (
        ["parquet", "--files", parquet],
        ["parquet", "--files", parquet, "--list", tmp_path / "list.txt"],
        ["webdataset", "--shards", shard, "--classes", tmp_path / "names.txt"],
    ):
        message = refused(capsys, *words, *out)
        assert "label 2 is not in 0..1" in message and refused(capsys, *words, *out, "--dry-run") == message
