"""Lists of `path label` lines: one name for each path however it is spelt, a line number for each mistake. Lists in other forms:
iNaturalist's JSON, that of the long-tail repositories, Kaggle's CSV, and lists for other copies of Places.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.image_sources import (
    WNIDS,
    assert_same_records,
    converted,
    imagenet,
    picture,
    refused,
    write_tar,
    write_tree,
)

from pipelines.errors import UserError
from tools.conversion.listing import read_list

NUMBERS = (0, 2, 10, 7291)  # of categories, which are folders


def samples(tmp_path: Path, text: str | bytes, prefix: str = "", classes: int | None = None) -> list[tuple[str, int]]:
    (tmp_path / "b").mkdir(exist_ok=True)
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(line.name, line.label) for line in read_list(path, prefix, classes, tmp_path).lines]


def test_spellings_of_one_path_have_one_name(tmp_path: Path) -> None:
    for spelling in ("a.jpg", "./a.jpg", "b/../a.jpg", ".//a.jpg", "b/.././a.jpg"):
        assert samples(tmp_path, f"{spelling} 1\n") == [("a.jpg", 1)]
        for label in (0, 1):
            with pytest.raises(UserError, match="line 3: a.jpg is in line 1 already"):
                samples(tmp_path, f"a.jpg 1\nc.jpg 0\n{spelling} {label}\n")


def test_plain_names_and_prefixes_stay(tmp_path: Path) -> None:
    assert samples(tmp_path, "a b/..c.jpg 0\n...d 1\n.e 2\n") == [("a b/..c.jpg", 0), ("...d", 1), (".e", 2)]
    assert samples(tmp_path, "./a.jpg 0\n", "./") == [("a.jpg", 0)]
    assert samples(tmp_path, "/data/images/a.jpg 0\n", "/data/images/") == [("a.jpg", 0)]
    assert samples(tmp_path, b"\xef\xbb\xbfa.jpg 007\r\n\r\ncaf\xe9.jpg\t1\r\n") == [("a.jpg", 7), ("caf\udce9.jpg", 1)]


@pytest.mark.parametrize("path", ["../a.jpg", "b/../../a.jpg", "..", ".", "b/.."])
def test_paths_out_of_the_root_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="line 1: .* names no file inside --root; give the folder above"):
        samples(tmp_path, f"{path} 0\n")


def test_absolute_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: .* is an absolute path, .* --strip-prefix"):
        samples(tmp_path, f"{tmp_path}/a.jpg 0\n")


def test_dots_after_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    with pytest.raises(UserError, match="after a symbolic link; write the path without"):
        samples(tmp_path, "link/../a.jpg 0\n")


def test_windows_separators_are_refused_where_they_name_no_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="line 1: .* has Windows' separators"):
        samples(tmp_path, "b\\a.jpg 0\n")
    (tmp_path / "b\\a.jpg").write_bytes(b"")
    assert samples(tmp_path, "b\\a.jpg 0\n") == [("b\\a.jpg", 0)]


@pytest.mark.parametrize("label", ["٣", "1e3", "+1", "-1", "²", "0x1", "1_0", "nan", "9" * 5000, "1000000"])
def test_odd_labels_are_refused_in_a_short_line(tmp_path: Path, label: str) -> None:
    with pytest.raises(UserError, match="line 1: ") as caught:
        samples(tmp_path, f"a.jpg {label}\n")
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a.jpg 0\nb\0.jpg 1\n", "line 2: a NUL byte found"),
        ("a.jpg 0\n".encode("utf-16"), "line 1: a NUL byte found"),
        (b"\x89PNG\x1b[31m\xff\xfe", "line 1: 'path label' expected"),
        (b"x\n" * 100_000, "line 1: 'path label' expected"),
        (b"x" * 100_000, "line 1: 'path label' expected"),
    ],
)
def test_what_is_no_list_is_told_in_one_printable_line(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        samples(tmp_path, data)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_root_or_list_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the list cannot be read: Is a directory"):
        read_list(tmp_path, "", None, tmp_path)
    for root in ("list.txt", "none"):
        with pytest.raises(UserError, match="no such folder; --root is"):
            (tmp_path / "list.txt").write_text("")
            read_list(tmp_path / "list.txt", "", None, tmp_path / root)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read_list(tmp_path / "list.txt", "", None, tmp_path / ("x" * 300))


# Other forms


def inaturalist() -> dict[str, bytes]:
    """train and val in one folder, under numbers of categories; the names do not tell which is which."""
    names = [f"train_val2018/Plantae/{number}/{image:032x}.jpg" for image in range(4) for number in NUMBERS]
    return {name: picture(seed) for seed, name in enumerate(names)}


def coco(names: list[str]) -> dict[str, Any]:
    """As iNaturalist publishes it, with annotations in another order than images."""
    images = [{"id": 1000 + 7 * i, "file_name": name, "width": 30, "height": 24} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": image["id"], "category_id": int(image["file_name"].split("/")[2])}
        for i, image in enumerate(images)
    ]
    random.Random(1).shuffle(annotations)
    categories = [
        {"id": number, "name": f"species {number}", "supercategory": "Plantae"} for number in reversed(NUMBERS)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "root", inaturalist())


def test_inaturalists_json_gives_the_records_of_its_list(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Joined by image id; labels are ranks of the ids as numbers; from the folder and from the tar."""
    chosen = list(inaturalist())[3:12]
    listed = save(tmp_path / "train2018.json", coco(chosen))
    lines = [f"{name} {NUMBERS.index(int(name.split('/')[2]))}" for name in chosen]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "names.txt").write_text("\n".join(f"species {number}" for number in NUMBERS))
    text = ["list", "--root", root, "--list", tmp_path / "train.txt", "--classes", tmp_path / "names.txt"]
    converted(*text, tmp_path / "text.beton")
    converted("list", "--root", root, "--list", listed, tmp_path / "json.beton")
    archive = write_tar(tmp_path / "train_val2018.tar", inaturalist())
    capsys.readouterr()
    converted("list", "--root", archive, "--list", listed, tmp_path / "tar.beton")
    for name in ("json", "tar"):
        assert (tmp_path / f"{name}.beton").read_bytes() == (tmp_path / "text.beton").read_bytes()
    assert f"note: 7 images of {archive} are in no line: {next(iter(inaturalist()))}, " in capsys.readouterr().err
    packed = write_tar(tmp_path / "train_val2018.tar.gz", inaturalist(), "w:gz")
    rows = converted("list", "--root", packed, "--list", listed, tmp_path / "packed.beton")
    folder = converted(*text, "--force", tmp_path / "text.beton")
    assert_same_records(rows, folder)


def test_paths_of_another_machine_are_read_below_root(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON of the long-tail repositories has the absolute paths of its author."""
    chosen = list(inaturalist())[:5]
    annotations = [
        {"image_id": i, "fpath": f"/data/Dataset/{name}", "category_id": int(name.split("/")[2]), "im_height": 24}
        for i, name in enumerate(chosen)
    ]
    listed = save(tmp_path / "iNat18_train.json", {"annotations": annotations, "num_classes": 8142})
    (tmp_path / "train.txt").write_text("\n".join(f"{name} {name.split('/')[2]}" for name in chosen))
    text = converted("list", "--root", root, "--list", tmp_path / "train.txt", tmp_path / "text.beton")
    common = ["list", "--root", root, "--list", listed]
    converted(*common, "--list-prefix", "/data/Dataset/", tmp_path / "json.beton")
    archive = write_tar(tmp_path / "a.tar", inaturalist())
    tar = converted("list", "--root", archive, *common[3:], "--strip-prefix", "/data/Dataset/", tmp_path / "tar.beton")
    assert (tmp_path / "json.beton").read_bytes() == (tmp_path / "text.beton").read_bytes()
    assert_same_records(tar, text)
    out = ["--out", tmp_path / "no.beton"]
    assert "annotation 1: /data/Dataset/train_val2018" in refused(capsys, *common, *out)
    assert "--list-prefix with the folder that --root stands for" in refused(capsys, *common, *out)
    message = refused(capsys, *common, "--list-prefix", "/data/other/", *out)
    assert "does not start with /data/other/, the --list-prefix given" in message


def changed(**parts: Any) -> dict[str, Any]:
    return coco(list(inaturalist())[:3]) | parts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}, "no annotations in it, so no labels"),
        (changed(annotations=[{"image_id": 1000, "category_id": 0}]), "2 images have no annotation, such as train_val"),
        (changed(images=[]), "3 annotations are of images that it does not list"),
        (changed(annotations=[{"image_id": 1000, "category_id": n} for n in (0, 2)]), "has the categories 0 and 2"),
        (
            changed(annotations=[{"image_id": 1000, "category_id": 9}]),
            "has category 9, which is not among its categories",
        ),
        (changed(images=[{"id": 1000, "path": "a.jpg"}]), "expected, or annotations with fpath and category_id"),
        ({"annotations": [{"fpath": "a.jpg", "category_id": -1}]}, "annotation 1: label -1 is not in 0..999999"),
        ({"annotations": [{"fpath": 3, "category_id": 1}]}, "found otherwise (TypeError"),
        ({"annotations": [{"fpath": "a.jpg", "category_id": "x"}]}, "found otherwise (ValueError"),
        (
            {"annotations": [{"fpath": "a.jpg", "category_id": float("inf")}]},
            "and category_id expected, or annotations with fpath and category_id; found otherwise (OverflowError",
        ),
        ({"annotations": [{"fpath": "a.jpg", "category_id": 1}] * 2}, "annotation 2: a.jpg is in annotation 1 already"),
        ("no", None),
    ],
)
def test_json_that_says_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: str | None
) -> None:
    listed = save(tmp_path / "list.json", content)
    if words is None:
        listed.write_text('{"images": [')
        words = "not readable as JSON ("
    message = refused(capsys, "list", "--root", tmp_path, "--list", listed, "--out", tmp_path / "a.beton")
    assert words in message and not (tmp_path / "a.beton").exists()


def test_class_names_must_be_those_of_the_json(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = save(tmp_path / "train.json", coco(list(inaturalist())))
    (tmp_path / "names.txt").write_text("species 0\nspecies 10\nspecies 2\nspecies 7291\n")
    words = [
        "list",
        "--root",
        root,
        "--list",
        listed,
        "--classes",
        tmp_path / "names.txt",
        "--out",
        tmp_path / "a.beton",
    ]
    message = refused(capsys, *words)
    assert "class 1 is species 10 in " in message and "and species 2 in " in message
    (tmp_path / "names.txt").write_text("species 0\nspecies 2\nspecies 10\nspecies 7291\nmore\n")
    assert "names.txt has 5 classes, " in refused(capsys, *words)


def kaggle(root: Path) -> Path:
    """The layout of Kaggle's download: train in class folders, val flat, labels in CSV files beside."""
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    write_tree(data / "train", imagenet())
    write_tree(data / "val", {f"ILSVRC2012_val_{number:08d}.JPEG": picture(number) for number in range(6)})
    mapping = "".join(f"{wnid} {names}\n" for wnid, names in WNIDS.items())
    (root / "LOC_synset_mapping.txt").write_text(mapping)
    rows = [f"ILSVRC2012_val_{number:08d},{list(WNIDS)[number % 3]} 85 1 499 272 " for number in (4, 2, 0, 5, 1, 3)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    rows = [
        f"{name.split('/')[1][:-5]},{name.split('/')[0]} 1 2 3 4 {name.split('/')[0]} 5 6 7 8" for name in imagenet()
    ]
    (root / "LOC_train_solution.csv").write_text("\r\n".join(["ImageId,PredictionString", *rows]))
    return data


def test_kaggles_layout_of_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train as a folder and by its CSV, val by its CSV, ImageNet-LT's lists on top; class lists in either form."""
    data = kaggle(tmp_path)
    mapping = ["--classes", tmp_path / "LOC_synset_mapping.txt"]
    train = converted("folder", "--images", data / "train", *mapping, tmp_path / "train.beton")
    assert train.class_names == list(WNIDS)
    words = ["list", "--root", data / "train", "--list", tmp_path / "LOC_train_solution.csv", *mapping]
    assert_same_records(converted(*words, tmp_path / "csv.beton"), train)
    words = ["list", "--root", data / "val", "--list", tmp_path / "LOC_val_solution.csv"]
    val = converted(*words, *mapping, tmp_path / "val.beton")
    assert val.class_names == list(WNIDS) and val.labels.tolist() == [1, 2, 0, 2, 1, 0]
    assert val.name(0) == "ILSVRC2012_val_00000004.JPEG"
    alone = converted(*words, tmp_path / "alone.beton")
    assert alone.class_names == sorted(WNIDS), "without a class list WordNet ids are sorted"
    assert alone.labels.tolist() == [sorted(WNIDS).index(list(WNIDS)[label]) for label in val.labels]
    lines = [f"val/{list(WNIDS)[label]}/{val.name(i)} {label}" for i, label in enumerate(val.labels)]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    test = converted("list", "--root", data, "--list", tmp_path / "test.txt", *mapping, tmp_path / "test.beton")
    assert test.crcs.tolist() == val.crcs.tolist() and test.labels.tolist() == val.labels.tolist()
    assert f"looking through {data} for 6 images" in capsys.readouterr().err
    (tmp_path / "test.txt").write_text(lines[0].replace(" 1", " 2"))
    words = ["list", "--root", data, "--list", tmp_path / "test.txt", *mapping, "--out", tmp_path / "no.beton"]
    assert "label 2 is class n01484850, but the image lies in n01443537" in refused(capsys, *words)


def test_bad_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "LOC_sample_submission.csv"
    words = ["list", "--root", tmp_path, "--list", path, "--out", tmp_path / "a.beton"]
    for text, told in (
        ("ILSVRC2012_test_00000001,\n", "line 2: 'ImageId,class x y x y ...' expected, found: ILSVRC2012_test"),
        ("a,n01440764 1 2,3\n", "line 2: 'ImageId,class"),
        ("", "the list has no lines"),
        ("x" * 200_000, f"{path}: not readable as CSV (field larger than field limit (131072)); copy the file again"),
    ):
        path.write_text("ImageId,PredictionString\n" + text)
        assert told in refused(capsys, *words)
    path.write_text("ImageId,PredictionString\n\na,n01440764 1 2 3 4\n")
    (tmp_path / "names.txt").write_text("n01443537\n")
    assert "line 3: class n01440764 is not in the class list" in refused(
        capsys, *words, "--classes", tmp_path / "names.txt"
    )


def test_lists_of_places_fit_both_of_its_copies(tmp_path: Path) -> None:
    """data_256, as the lists have it, and easyformat; lists and records are the same."""
    letters = {"a/arch": "arch", "a/apartment_building/outdoor": "apartment_building-outdoor"}
    plain: dict[str, bytes] = {}
    easy: dict[str, bytes] = {}
    lines = []
    for label, (path, folder) in enumerate(letters.items()):
        for number in range(2):
            plain[f"data_256/{path}/{number:08d}.jpg"] = picture(label + 3 * number)
            easy[f"places365_standard/train/{folder}/{number:08d}.jpg"] = picture(label + 3 * number)
            lines.append(f"data_256/{path}/{number:08d}.jpg {label}")
        name = f"Places365_val_{label:08d}.jpg"
        plain[f"val_256/{name}"] = easy[f"places365_standard/val/{folder}/{name}"] = picture(20 + label)
        lines.append(f"val_256/{name} {label}")
    (tmp_path / "Places_LT_train.txt").write_text("\n".join(lines))
    made = []
    for number, files in enumerate((plain, easy)):
        for root in (write_tree(tmp_path / f"root{number}", files), write_tar(tmp_path / f"{number}.tar", files)):
            out = tmp_path / f"{len(made)}.beton"
            converted("list", "--root", root, "--list", tmp_path / "Places_LT_train.txt", out)
            made.append(out.read_bytes())
    assert len(made) == 4 and len(set(made)) == 1
