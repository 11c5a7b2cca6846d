"""Folders of class folders: every folder is read once, none is left out, and links that harm nothing work."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import UserError
from tools.conversion.folder import class_folders, folder_samples, refuse_splits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files named like images in a/, a/sub/ and b/; listing does not read them."""
    folder = tmp_path / "images"
    for name in ("a/0.jpg", "a/sub/1.jpg", "b/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def found(root: Path) -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in folder_samples(root, class_folders(root), "")]


AS_MADE = [("a/0.jpg", 0), ("a/sub/1.jpg", 0), ("b/2.jpg", 1)]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/loop", "."),
        ("b/up", ".."),
        ("b/other", "../a"),
        ("b/deep", "../a/sub"),
        ("c", "a"),
        ("0", "a/sub"),
        ("c", "."),
        ("c", ".."),
        ("a/sub/x", ".."),
    ],
)
def test_a_folder_reached_twice_is_refused(root: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target)
    with pytest.raises(UserError, match="again, whose images would count twice; remove the link"):
        found(root)


def test_two_links_to_one_folder_elsewhere_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("c", "d"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"d is the folder .*c again"):
        found(root)


def test_links_to_elsewhere_work(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    (elsewhere / "3.jpg").write_bytes(b"3")
    (elsewhere / "more" / "4.jpg").write_bytes(b"4")
    (root / "c").symlink_to(elsewhere)
    (root / "b" / "5.jpg").symlink_to(tmp_path / "5")
    (tmp_path / "5").write_bytes(b"5")
    (tmp_path / "root").symlink_to(root)
    expected = [*AS_MADE, ("b/5.jpg", 1), ("c/3.jpg", 2), ("c/more/4.jpg", 2)]
    assert found(root) == found(tmp_path / "root") == expected


def test_an_image_link_that_leads_nowhere_is_an_image(root: Path) -> None:
    """The conversion then lists it as unreadable."""
    (root / "b" / "3.jpg").symlink_to("nowhere")
    (root / "b" / "4.jpg").symlink_to("4.jpg")
    assert found(root) == [*AS_MADE, ("b/3.jpg", 1), ("b/4.jpg", 1)]


@pytest.mark.parametrize(("link", "target"), [("c", "nowhere"), ("c", "c"), ("a/more", "nowhere"), ("c", "x" * 300)])
def test_a_folder_link_that_leads_nowhere_is_refused(root: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target)
    with pytest.raises(UserError, match=f"{root / link}: this link leads nowhere: .*; mend or remove it"):
        found(root)


@pytest.mark.parametrize("folder", ["", "a", "a/sub", "b"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, folder: str, number: int
) -> None:
    scandir: Callable[..., object] = os.scandir

    def failing(path: object) -> object:
        if Path(str(path)) == root / folder:
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match=f"{root / folder}: this folder cannot be read: {os.strerror(number)}"):
        found(root)


def test_a_hidden_file_above_the_class_folders_is_no_image(tmp_path: Path) -> None:
    """As macOS writes them, and as in an archive."""
    (tmp_path / "Plantae" / "7").mkdir(parents=True)
    (tmp_path / "Plantae" / "7" / "0.jpg").write_bytes(b"")
    (tmp_path / "Plantae" / "._0.jpg").write_bytes(b"")
    assert class_folders(tmp_path, 2) == ["7"]
    (tmp_path / "Plantae" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="0.jpg: lies above the class folders"):
        class_folders(tmp_path, 2)


def test_a_file_in_two_classes_is_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.link(root / "a" / "0.jpg", root / "a" / "copy.jpg")
    assert len(found(root)) == 4 and capsys.readouterr().err == ""
    (root / "b" / "same.jpg").symlink_to("../a/sub/1.jpg")
    assert len(found(root)) == 5
    assert "note: 1 files lie in two classes, such as a/sub/1.jpg, which is b/same.jpg too" in capsys.readouterr().err


def test_a_folder_of_splits_is_refused(tmp_path: Path, root: Path) -> None:
    refuse_splits(root, class_folders(root))
    for split in ("train", "Val"):
        (tmp_path / "splits" / split / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds splits \(Val, train\), not classes; convert each, such as --images"):
        refuse_splits(tmp_path / "splits", ["Val", "train"])
    (tmp_path / "splits" / "bee").mkdir()
    refuse_splits(tmp_path / "splits", ["Val", "bee", "train"])


@pytest.mark.parametrize("name", ["a\nb", "a\r", " "])
def test_a_name_that_no_class_list_holds_is_refused(root: Path, name: str) -> None:
    (root / name).mkdir()
    with pytest.raises(UserError, match="cannot name a class"):
        class_folders(root)
