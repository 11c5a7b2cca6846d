"""WebDataset shards: the records of the folder that they were made from, and what is refused in one line."""

import json
import tarfile
from pathlib import Path

import pytest
from helpers.image_sources import assert_same_records, converted, imagenet, picture, refused, write_tar, write_tree
from helpers.opened import opened_below

from pipelines.records.workers import Streamed
from tools.conversion.webdataset import read_shards

CLASSES = ["ant", "bee"]


def images() -> dict[str, bytes]:
    files = {
        f"{name}/{number}.{kind}": b"" for name in CLASSES for number, kind in enumerate(("jpg", "jpeg", "png", "webp"))
    }
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
    return {name: picture(seed, kinds[name.split(".")[1]]) for seed, name in enumerate(files)}


def shards(folder: Path, files: dict[str, bytes], label: str, mode: str = "w") -> list[Path]:
    """Two shards; label: cls, or the field of .json files that holds it."""
    parts: list[dict[str, bytes]] = [{}, {}]
    for number, (name, data) in enumerate(files.items()):
        key, value = name.split(".")[0], CLASSES.index(name.split("/")[0])
        text = {"cls": f"{value}\n"}.get(label, json.dumps({"width": 30, label: value}))
        part = parts[number * 2 // len(files)]
        part |= {name: data, f"{key}.{'cls' if label == 'cls' else 'json'}": text.encode(), f"{key}.txt": b"a caption"}
    return [write_tar(folder / f"train-{number:06d}.tar", part, mode) for number, part in enumerate(parts)]


@pytest.mark.parametrize(("label", "mode"), [("cls", "w"), ("label", "w"), ("species", "w"), ("cls", "w:gz")])
def test_shards_give_the_records_of_their_folder(tmp_path: Path, label: str, mode: str) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    words = ["webdataset", "--shards", *shards(tmp_path, images(), label, mode), "--classes", tmp_path / "names.txt"]
    words += [] if label in ("cls", "label") else ["--label-field", label]
    folder = converted("folder", "--images", write_tree(tmp_path / "tree", images()), tmp_path / "folder.beton")
    rows = converted(*words, "--workers", 2 if label == "species" else 0, tmp_path / "a.beton")
    assert_same_records(rows, folder)
    assert rows.class_names == CLASSES


def test_a_compressed_shard_is_read_a_few_times_however_many_labels_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its list of files, for the labels, for the images."""
    sample = {"jpg": picture(0), "json": b'{"label": 1}'}
    files = {f"{number}.{kind}": data for number in range(20) for kind, data in sample.items()}
    path = write_tar(tmp_path / "a.tar", files, "w:gz")
    opened: list[object] = []
    monkeypatch.setattr(
        tarfile, "open", lambda *words, real=tarfile.open, **more: opened.append(1) or real(*words, **more)
    )
    records = converted("webdataset", "--shards", path, tmp_path / "a.beton")
    assert records.labels.tolist() == [1] * 20 and len(opened) == 3


def test_compressed_shards_may_be_more_than_files_can_be_open(tmp_path: Path) -> None:
    """One is open at a time, whether for labels or for images."""
    paths = [
        write_tar(tmp_path / f"{number}.tar", {f"{number}.jpg": picture(0), f"{number}.cls": b"0"}, "w:gz")
        for number in range(20)
    ]
    images = read_shards(paths)
    assert opened_below(tmp_path) <= 1
    for image in images.found.values():
        assert isinstance(image, Streamed) and image.read() == picture(0)
    assert opened_below(tmp_path) <= 1


def test_a_list_names_images_whatever_their_suffix(tmp_path: Path) -> None:
    """The list's names and labels count; its order too, as plain shards can be read in any."""
    files = {name.split("/")[1].replace(".JPEG", ".jpg"): data for name, data in imagenet().items()}
    paths = [write_tar(tmp_path / "train-0.tar", files)]
    lines = [f"train/{name} {number // 4}" for number, name in enumerate(imagenet()) if number % 3][::-1]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    root = write_tree(tmp_path / "root", {f"train/{name}": data for name, data in imagenet().items()})
    listed = converted("list", "--root", root, "--list", tmp_path / "list.txt", tmp_path / "list.beton")
    rows = converted("webdataset", "--shards", *paths, "--list", tmp_path / "list.txt", tmp_path / "rows.beton")
    assert_same_records(rows, listed)


def test_labels_of_shards_without_names_of_classes_yield_to_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "a.tar", {"x.jpg": picture(0), "x.cls": b"3", "y.jpg": picture(1), "y.cls": b"4"})
    (tmp_path / "list.txt").write_text("a/x.JPEG 3\na/y.JPEG 0\n")
    records = converted("webdataset", "--shards", path, "--list", tmp_path / "list.txt", tmp_path / "a.beton")
    assert records.labels.tolist() == [3, 0]
    assert (
        f"a/y.JPEG has label 0 in the list and 4 in {path}, whose labels do not count here" in capsys.readouterr().err
    )


def test_running_numbers_cannot_be_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tar", {"000000.jpg": picture(0), "000000.cls": b"1"})
    (tmp_path / "list.txt").write_text("000000.jpg 0\n")
    records = converted("webdataset", "--shards", path, tmp_path / "a.beton")
    assert records.labels.tolist() == [1] and records.class_names == ["0", "1"]
    words = ["webdataset", "--shards", path, "--list", tmp_path / "list.txt", "--out", tmp_path / "b.beton"]
    assert "running numbers here, which no list can name; convert without --list" in refused(capsys, *words)


def test_shards_that_begin_with_zero_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their names begin with the shard's; one shard given twice is a mistake."""
    files = {"000.jpg": picture(0), "000.cls": b"0"}
    paths = [write_tar(tmp_path / f"part-{number}.tar", files) for number in range(2)]
    records = converted("webdataset", "--shards", *paths, tmp_path / "a.beton")
    assert [records.name(i) for i in range(2)] == ["part-0/000.jpg", "part-1/000.jpg"]
    assert "begin with the shard's name" in capsys.readouterr().err
    message = refused(capsys, "webdataset", "--shards", paths[0], *paths, "--out", tmp_path / "b.beton")
    assert f"{paths[0]} is given twice" in message


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        (["data-v1.0-0.tar", "data-v1.0-1.tar"], ["data-v1.0-0", "data-v1.0-1"]),
        (["a/train/0.tar.gz", "b/train/0.tgz", "b/1.TAR"], ["a/train/0", "b/train/0", "b/1"]),
        (["x/v1.0.tar", "x/w.1.tar.gz"], ["v1", "w"]),
    ],
)
def test_shards_are_told_apart_by_as_much_of_their_paths_as_that_needs(
    tmp_path: Path, shards: list[str], names: list[str]
) -> None:
    """Up to the first dot, where that is enough."""
    for number, name in enumerate(shards):
        write_tar(tmp_path / name, {"000.jpg": picture(number), "000.cls": b"0"}, "w:gz" if "gz" in name else "w")
    images = read_shards([tmp_path / name for name in shards])
    assert list(images.found) == [f"{name}/000.jpg" for name in names]
    assert images.labels == [0] * len(shards)


def test_one_shard_in_two_packings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"000.jpg": picture(0), "000.cls": b"0"}
    paths = [write_tar(tmp_path / "a.tar", files), write_tar(tmp_path / "a.tgz", files, "w:gz")]
    message = refused(capsys, "webdataset", "--shards", *paths, "--out", tmp_path / "a.beton")
    assert f"{paths[0]} and 1 more: two shards of one name have images of one name; give each shard once" in message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jpg": b"", "a.cls": b"x"}, "a.cls holds x; a label from 0 up expected"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "a.cls holds -1; a label from 0 up expected"),
        ({"a.jpg": b"", "a.json": b'{"label": "cat"}'}, "a label in the field 'label' from 0 up expected"),
        ({"a.jpg": b"", "a.json": b'{"other": 1}'}, "no labels in it; name the field of the .json files"),
        ({"a.jpg": b"", "a.cls": b"0", "b.jpg": b""}, "b.jpg has no label (-1)"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"0"}, "a.jpg and a.png have one key"),
        ({"a.cls": b"0"}, "no images in it; WebDataset shards of .jpeg, .jpg, .png, .webp files expected"),
    ],
)
def test_shards_that_say_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], words: str
) -> None:
    path = write_tar(tmp_path / "a.tar", files)
    assert words in refused(capsys, "webdataset", "--shards", path, "--out", tmp_path / "a.beton")
    folder = refused(capsys, "webdataset", "--shards", tmp_path, "--out", tmp_path / "a.beton")
    assert f"{tmp_path} is a folder; give the shards in it, such as {tmp_path}/*.tar" in folder


def test_keys_end_at_the_first_dot(tmp_path: Path) -> None:
    """Of the file's name, not of its folders; extensions may be in capitals."""
    path = write_tar(tmp_path / "a.tar", {"v1.0/x.JPG": picture(0), "v1.0/x.cls": b"3", "v1.0/x.seg.png": b"a mask"})
    records = converted("webdataset", "--shards", path, tmp_path / "a.beton")
    assert records.name(0) == "v1.0/x.JPG" and records.labels.tolist() == [3] and len(records) == 1


def test_a_damaged_shard_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut in an image, or in the last label."""
    path = write_tar(tmp_path / "a.tar", {"a.jpg": picture(0), "a.cls": b"0"})
    whole = path.read_bytes()
    for size, words in (
        (700, "not a readable archive, damaged or"),
        (whole.index(b"a.cls") + 512, "a.cls cannot be read"),
    ):
        path.write_bytes(whole[:size])
        message = refused(capsys, "webdataset", "--shards", path, "--out", tmp_path / "a.beton")
        assert f"{path}: {words}" in message
