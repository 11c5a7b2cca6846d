"""How a list's paths find images in other copies of a data set, and what is refused because it could be read in two ways."""

from pathlib import Path

import pytest
from helpers.image_sources import write_tree

from pipelines.errors import UserError
from pipelines.records.workers import Streamed
from tools.conversion.images import Images
from tools.conversion.joining import (
    Finder,
    Report,
    check_folders,
    check_range,
    edition,
    joined,
    joined_folder,
    show_report,
)
from tools.conversion.listing import Line


def lines(*files: str) -> list[Line]:
    return [Line(f"list.txt, line {number}", file, 0, file) for number, file in enumerate(files, 1)]


def found(file: str, *images: str) -> str | None:
    return Finder(images).find(lines(file)[0])


class Nothing(Streamed):
    def read(self) -> bytes:
        return b""


def archive(*names: str, streamed: bool = False) -> Images:
    return Images(where="a.tar", found={name: Nothing() if streamed else Nothing().read for name in names})


def test_a_line_names_the_image_whose_path_ends_as_its_own() -> None:
    assert found("train/n01/n01_1.JPEG", "n01/n01_1.JPEG") == "n01/n01_1.JPEG"
    assert found("n01/n01_1.JPEG", "ILSVRC/Data/train/n01/n01_1.JPEG") == "ILSVRC/Data/train/n01/n01_1.JPEG"
    assert found("a/b/1.jpg", "a/c/1.jpg", "x/a/b/1.jpg", "a/b/2.jpg") == "x/a/b/1.jpg"
    assert found("b/1.jpg", "ab/1.jpg") is None, "whole names of folders"
    assert found("./a//1.jpg", "a/1.jpg") == "a/1.jpg"


def test_other_copies_of_imagenet_and_places() -> None:
    """Kaggle's flat val; Places without letters and with hyphens, whose val has folders of classes."""
    assert found("val/n01/ILSVRC2012_val_00000007.JPEG", "val/ILSVRC2012_val_00000007.JPEG") is not None
    assert found("data_256/a/arch/1.jpg", "train/arch/1.jpg", "train/door/1.jpg") == "train/arch/1.jpg"
    image = "places365_standard/train/apartment_building-outdoor/00000001.jpg"
    assert found("data_256/a/apartment_building/outdoor/00000001.jpg", image) == image
    image = "places365_standard/val/arch/Places365_val_00000001.jpg"
    assert found("val_256/Places365_val_00000001.jpg", image) == image
    assert found("val/n01/0001.JPEG", "val/0001.JPEG") is None, "only names that the publisher gave once"


def test_a_file_name_of_every_class_is_found_at_once() -> None:
    """As in Places, where each of 365 classes has a 00000001.jpg."""
    images = [f"data_256/{kind}/{number:08d}.jpg" for kind in range(300) for number in range(100)]
    finder = Finder(images)
    assert [finder.find(line) for line in lines(*images)] == images
    assert max(len(finder._near(image)) for image in images) == 1


def test_what_could_mean_two_images_is_refused() -> None:
    with pytest.raises(UserError, match="line 1: 1.jpg may be a/1.jpg or b/1.jpg; give a --root that holds one"):
        found("1.jpg", "a/1.jpg", "b/1.jpg")
    assert found("a/1.jpg", "a/1.jpg", "x/a/1.jpg") == "a/1.jpg", "the very path goes first"
    with pytest.raises(UserError, match="line 1, and line 2: a/1.jpg and b/1.jpg both end as the image 1.jpg"):
        joined(lines("a/1.jpg", "b/1.jpg"), archive("1.jpg"))


@pytest.mark.parametrize("streamed", [False, True])
def test_samples_have_the_order_of_the_list_or_of_what_is_read_forward(streamed: bool) -> None:
    images = archive("1.jpg", "2.jpg", "3.jpg", streamed=streamed)
    samples, report = joined(lines("3.jpg", "0.jpg", "1.jpg"), images)
    wanted = ["1.jpg", "3.jpg", "0.jpg"] if streamed else ["3.jpg", "0.jpg", "1.jpg"]
    assert [sample.name for sample in samples] == wanted
    assert report == (["0.jpg"], ["2.jpg"])
    for sample in samples:
        if sample.name != "0.jpg":
            assert sample.image is images.found[sample.name]


def test_a_folder_is_looked_through_only_for_what_is_not_where_the_list_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(
        tmp_path, {name: b"" for name in ("val/ILSVRC2012_val_00000001.JPEG", "a/1.jpg", "a/2.jpg", "b/3.jpg")}
    )
    samples, report = joined_folder(lines("a/1.jpg"), root)
    assert [sample.image for sample in samples] == [f"{root}/a/1.jpg"] and report == ([], ["a/2.jpg"])
    assert capsys.readouterr().err == ""
    samples, report = joined_folder(lines("val/n01/ILSVRC2012_val_00000001.JPEG", "a/9.jpg"), root)
    assert [sample.image for sample in samples] == [f"{root}/val/ILSVRC2012_val_00000001.JPEG", f"{root}/a/9.jpg"]
    assert [sample.name for sample in samples] == ["val/n01/ILSVRC2012_val_00000001.JPEG", "a/9.jpg"]
    assert report == (["a/9.jpg"], []) and f"looking through {root} for 2 images" in capsys.readouterr().err


def test_editions_by_their_counts() -> None:
    assert edition(115_846, 1000) == ", as ImageNet-LT's training list has"
    assert edition(437_513, 8142) == ", as iNaturalist 2018's training list has"
    assert edition(62_499, 365) == "; Places-LT's training list has 62,500"
    assert edition(115_846, 999) == edition(100_000, 1000) == ""


def test_labels_that_contradict_their_folders_are_refused() -> None:
    check_folders([Line("w", "x/bee/1.jpg", 1), Line("w", "bee/val/2.jpg", 0)], ["ant", "bee"])
    with pytest.raises(UserError, match="label 0 is class ant, but the image lies in bee"):
        check_folders([Line("w", "x/bee/1.jpg", 0)], ["ant", "bee"])


def test_numbers_of_folders_that_were_sorted_as_strings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for labels, twisted in (((0, 1, 2), False), ((3, 4, 9), False), ((0, 2, 1), True)):
        some = [Line("w", f"x/{folder}/1.jpg", label) for folder, label in zip((0, 2, 10), labels, strict=True)]
        show_report(Path("list.txt"), some, "x", Report([], []))
        words = "as strings, such as 2 with label 2 and 10 with label 1; other lists may not"
        assert (words in capsys.readouterr().err) == twisted


@pytest.mark.parametrize(("names", "largest"), [(["ant", "bee"], 1), (None, 999_999)])
def test_labels_that_no_class_can_have_are_refused(names: list[str] | None, largest: int) -> None:
    """Of the images' own file; -1 stands for none."""

    def images(label: int) -> Images:
        found = archive("0.jpg", "1.jpg", "2.jpg").found
        return Images(where="a.parquet", found=found, labels=[0, label, -1], class_names=names)

    check_range(images(largest))
    for label in (largest + 1, 5_000_000_000):
        with pytest.raises(UserError, match=rf"^a\.parquet: 1\.jpg: label {label} is not in 0\.\.{largest}$"):
            check_range(images(label))
