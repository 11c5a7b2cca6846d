"""Parquet files of the Hugging Face hub: the records of the folder that they were made from, and one line for each fault."""

import random
import sys
from pathlib import Path

import pyarrow
import pytest
from helpers.image_sources import (
    WNIDS,
    assert_same_records,
    converted,
    imagenet,
    imagenet_row,
    picture,
    refused,
    write_parquet,
    write_tree,
)

from pipelines.errors import UserError
from pipelines.records.workers import Streamed
from tools.conversion import parquet
from tools.conversion.parquet import read_parquet, row_name

NAMES = list(WNIDS.values())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", imagenet())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The same images in the same order, in two files of row groups of three."""
    rows = [imagenet_row(name, data) for name, data in imagenet().items()]
    paths = [tmp_path / f"train-{number:05d}-of-00002.parquet" for number in range(2)]
    return [write_parquet(paths[0], rows[:7], NAMES), write_parquet(paths[1], rows[7:], NAMES)]


def test_imagenet_of_the_hub_gives_the_records_of_its_folder(tmp_path: Path, tree: Path, files: list[Path]) -> None:
    """Byte for byte, and from any number of workers; the classes have the hub's names."""
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    folder = converted("folder", "--images", tree, "--classes", tmp_path / "wnids.txt", tmp_path / "folder.beton")
    for workers in (0, 2):
        rows = converted("parquet", "--files", *files, "--workers", workers, tmp_path / f"{workers}.beton")
        assert_same_records(rows, folder)
        assert rows.class_names == NAMES and rows.name(0) == "n01440764/n01440764_10.JPEG"
    assert (tmp_path / "0.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()


def test_a_list_takes_its_images_and_gives_names_and_labels(
    tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records are those of the list route with the lines in the rows' order, whatever order the list has."""
    images = list(imagenet().items())
    random.Random(0).shuffle(images)
    files = [write_parquet(tmp_path / "a.parquet", [imagenet_row(*image) for image in images], NAMES)]
    chosen = [f"train/{name} {list(WNIDS).index(name.split('/')[0])}" for name, _ in images[2:9]]
    (tmp_path / "list.txt").write_text("\n".join(sorted(chosen)))
    (tmp_path / "ordered.txt").write_text("\n".join(chosen))
    rows = converted("parquet", "--files", *files, "--list", tmp_path / "list.txt", tmp_path / "rows.beton")
    told = capsys.readouterr().err
    assert f"note: {tmp_path / 'list.txt'}: 7 lines of 3 classes\n" in told
    assert f"note: 5 images of {files[0]} are in no line: {images[0][0]}, {images[1][0]}, {images[9][0]}, ..." in told
    tree = tree.rename(tmp_path / "train")
    listed = converted("list", "--root", tmp_path, "--list", tmp_path / "ordered.txt", tmp_path / "listed.beton")
    assert_same_records(rows, listed)
    assert rows.class_names == NAMES and rows.name(0) == f"train/{images[2][0]}"


def test_lines_without_an_image(tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["n01440764/n01440764_10.JPEG 0", *(f"n01443537/n01443537_{number}.JPEG 1" for number in range(98, 102))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    words = ["parquet", "--files", *files, "--list", tmp_path / "list.txt", "--out", tmp_path / "a.beton"]
    message = refused(capsys, *words)
    assert "4 of 5 images cannot be read, first n01443537/n01443537_98.JPEG (no such file" in message
    assert "--skip-bad" in message and not (tmp_path / "a.beton").exists()
    rows = converted("parquet", "--files", *files, "--list", tmp_path / "list.txt", "--skip-bad", tmp_path / "a.beton")
    told = capsys.readouterr().err
    assert "note: 4 lines have no image in " in told and ": n01443537/n01443537_98.JPEG, n01443537/n01443537_99" in told
    assert len(rows) == 1 and len(rows.manifest["made"]["skipped"]) == 4


def test_class_order_is_checked_against_the_list(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By label, or by name where the list's classes are given."""
    (tmp_path / "list.txt").write_text("n01440764/n01440764_10.JPEG 2\nn01484850/n01484850_10.JPEG 0\n")
    common = ["parquet", "--files", *files, "--list", tmp_path / "list.txt"]
    message = refused(capsys, *common, "--out", tmp_path / "a.beton")
    assert "n01440764/n01440764_10.JPEG has label 2 in the list, great white shark, and 0 in " in message
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))
    rows = converted(*common, "--classes", tmp_path / "names.txt", tmp_path / "a.beton")
    assert rows.class_names == NAMES[::-1] and rows.labels.tolist() == [2, 0]
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    message = refused(capsys, *common, "--classes", tmp_path / "names.txt", "--out", tmp_path / "b.beton")
    assert "label 2 in the list, great white shark, and 0 in " in message
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))
    words = ["parquet", "--files", *files, "--classes", tmp_path / "names.txt"]
    assert "class 0 is great white shark in " in refused(capsys, *words, "--out", tmp_path / "b.beton")
    (tmp_path / "names.txt").write_text("\n".join(WNIDS))
    assert converted(*words, tmp_path / "b.beton").class_names == list(WNIDS), "other names for the same classes"


def test_a_folder_of_images_uploaded_to_the_hub(tmp_path: Path) -> None:
    """Files have the same names in every class there, and the hub keeps no more than these; PNG too, and odd column names."""
    images = {f"{name}/{number}.png": picture(number, "PNG") for name in ("ant", "bee") for number in range(3)}
    rows = [(data, name.split("/")[1], ["ant", "bee"].index(name.split("/")[0])) for name, data in images.items()]
    file = write_parquet(tmp_path / "a.parquet", rows, ["ant", "bee"], image="img", label="kind")
    folder = converted("folder", "--images", write_tree(tmp_path / "tree", images), tmp_path / "folder.beton")
    rows = converted("parquet", "--files", file, tmp_path / "rows.beton")
    assert_same_records(rows, folder)
    assert rows.class_names == folder.class_names


def test_rows_without_names_are_numbered_and_no_list_can_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, rows in enumerate(
        ([(picture(i), None, i) for i in range(3)], [(picture(i), "x.jpg", 0) for i in range(3)])
    ):
        file = write_parquet(tmp_path / f"{number}.parquet", rows, NAMES)
        records = converted("parquet", "--files", file, tmp_path / f"{number}.beton")
        assert [records.name(i) for i in range(3)] == ["00000000", "00000001", "00000002"]
        assert "note: rows have no file names of their own" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("0.jpg 0\n")
    words = ["parquet", "--files", file, "--list", tmp_path / "list.txt", "--out", tmp_path / "c.beton"]
    assert "known by running numbers here, which no list can name" in refused(capsys, *words)


def test_paths_and_bytes_may_be_of_pyarrows_large_types(tmp_path: Path) -> None:
    """As polars writes them."""
    kind = pyarrow.struct([("bytes", pyarrow.large_binary()), ("path", pyarrow.large_string())])
    rows = [{"bytes": data, "path": name} for name, data in imagenet().items()]
    table = pyarrow.table({"image": pyarrow.array(rows, kind), "label": [0] * len(rows)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_parquet([tmp_path / "a.parquet"], None, None).found) == list(imagenet())


@pytest.mark.parametrize("label", [-1, None])
def test_a_split_without_labels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: int | None
) -> None:
    file = write_parquet(tmp_path / "a.parquet", [(picture(0), "0.jpg", 0), (picture(1), "1.jpg", label)], NAMES)
    message = refused(capsys, "parquet", "--files", file, "--out", tmp_path / "a.beton")
    assert (
        ": 1.jpg has no label (-1), as in test sets whose labels are kept secret; give the files of another" in message
    )


def test_a_row_without_bytes_is_an_unreadable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(picture(0), "0.jpg", 0), (None, "1.jpg", 0), (b"no image", "2.jpg", 1)]
    file = write_parquet(tmp_path / "a.parquet", rows, NAMES)
    message = refused(capsys, "parquet", "--files", file, "--out", tmp_path / "a.beton")
    assert "2 of 3 images cannot be read, first tench, Tinca tinca/1.jpg" in message


def test_files_of_two_splits_or_not_all_of_one(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "a.beton"]
    other = write_parquet(tmp_path / "validation-00000-of-00001.parquet", [(picture(0), "0.jpg", 0)], NAMES)
    message = refused(capsys, "parquet", "--files", *files, other, *out)
    assert "files of the splits train and validation are given; convert each split by itself" in message
    assert "is given twice" in refused(capsys, "parquet", "--files", *files, files[0], *out)
    strange = write_parquet(tmp_path / "strange.parquet", [(picture(0), "0.jpg", 0)], ["a", "b"])
    assert "not those of" in refused(capsys, "parquet", "--files", files[0], strange, *out)
    converted("parquet", "--files", files[1], tmp_path / "b.beton")
    assert "note: 1 of the 2 files of train are given" in capsys.readouterr().err


def test_columns_that_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.parquet", ["--out", tmp_path / "a.beton"]
    columns = {"one": [picture(0)], "two": [picture(1)], "labels": [1], "text": ["cat"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert "one and two may be meant; say which with --image-column" in refused(
        capsys, "parquet", "--files", path, *out
    )
    words = ["parquet", "--files", path, "--image-column", "two"]
    assert "holds string; labels must be whole numbers" in refused(capsys, *words, "--label-column", "text", *out)
    assert "--label-column no: " in refused(capsys, *words, "--label-column", "no", *out)
    records = converted(*words, out[1])
    assert records.labels.tolist() == [1] and records.class_names == ["0", "1"] and records.name(0) == "00000000"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["cat"]}), path)
    words = ["parquet", "--files", path, "--force", *out]
    assert "a column of image bytes expected; its columns are text" in refused(capsys, *words)


def test_damaged_files_are_told_in_one_line(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = ["--out", tmp_path / "a.beton"], files[0]
    data = file.read_bytes()
    for damage in (data[:-20], b"", data[:40] + bytes(2000) + data[2040:]):
        file.write_bytes(damage)
        message = refused(capsys, "parquet", "--files", *files, *out)
        assert f"{file}: not a readable Parquet file, or damaged (" in message and message.endswith("download it again")
        assert not (tmp_path / "a.beton").exists()
    for name in (b"n01440764_10", b"image"):  # no UTF-8: a file's name, a column's
        file.write_bytes(data.replace(name, b"\xff" + name[1:]))
        assert "or damaged ('utf-8' codec can't decode byte 0xff" in refused(capsys, "parquet", "--files", *files, *out)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "type: git lfs pull" in refused(capsys, "parquet", "--files", *files, *out)
    assert "no such file; give Parquet files" in refused(capsys, "parquet", "--files", tmp_path / "none", *out)
    assert f"is a folder; give the files in it, such as {tmp_path}/" in refused(
        capsys, "parquet", "--files", tmp_path, *out
    )


def test_without_pyarrow_the_line_says_what_to_type(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="need pyarrow; type: bash tools/setup.sh parquet"):
        read_parquet(files, None, None)


def test_a_row_group_larger_than_the_memory_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, and each row once, though rows are asked for one by one."""
    random_bytes = random.Random(0).randbytes
    rows = [(random_bytes(5_000), f"{number}.jpg", 0) for number in range(6 * 1024)]
    images = read_parquet([write_parquet(tmp_path / "a.parquet", rows, NAMES, group=len(rows))], None, None)
    opened, held, before = [], 0, pyarrow.total_allocated_bytes()
    monkeypatch.setattr(parquet, "_opened", lambda path, real=parquet._opened: opened.append(path) or real(path))
    for image, (data, *_) in zip(images.found.values(), rows, strict=True):
        assert isinstance(image, Streamed) and image.read() == data
        held = max(held, pyarrow.total_allocated_bytes() - before)
    assert 0 < held < 5_000 * len(rows) / 2 and len(opened) == 1


def test_names_of_rows() -> None:
    assert row_name("n01440764_10026_n01440764.JPEG", "tench") == "n01440764/n01440764_10026.JPEG"
    assert row_name("ILSVRC2012_val_00000293_n01530575.JPEG", "x") == "n01530575/ILSVRC2012_val_00000293.JPEG"
    assert row_name("n01440764_10026.JPEG", "tench") == "tench/n01440764_10026.JPEG"
    assert row_name("/root/.cache/0.jpg", "ant") == "ant/0.jpg" and row_name("a/./0.jpg", "b") == "a/0.jpg"
    assert row_name("0.jpg", None) == "0.jpg" and row_name("0.jpg", "/a/arch") == "a/arch/0.jpg"
