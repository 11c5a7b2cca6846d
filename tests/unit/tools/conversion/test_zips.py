"""Zip archives: the very file of the folder that they would unpack to, and damage in one line or one image."""

import zipfile
from pathlib import Path

import pytest
from helpers.image_sources import converted, imagenet, picture, refused, write_tree

from tools.conversion.archives import read_archives


def write_zip(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.mkdir("n01440764")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_gives_the_very_file_of_its_folder(tmp_path: Path, kind: int) -> None:
    """In the order of the folder, from any number of workers; what macOS adds does not count."""
    files = dict(reversed(imagenet().items()))
    inner = {f"all/{name}": data for name, data in files.items()} | {"__MACOSX/all/n01440764/._x.JPEG": b"junk"}
    path = write_zip(tmp_path / "a.zip", inner, kind)
    converted("folder", "--images", write_tree(tmp_path / "tree", files), tmp_path / "folder.beton")
    for workers in (0, 2 if kind == zipfile.ZIP_DEFLATED else 1):
        converted(
            "folder",
            "--images",
            path / "all",
            "--workers",
            workers,
            tmp_path / "zip.beton",
        )
        assert (tmp_path / "zip.beton").read_bytes() == (tmp_path / "folder.beton").read_bytes()
        (tmp_path / "zip.beton").unlink()


def test_a_list_on_kaggles_download(tmp_path: Path) -> None:
    files = {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{number:08d}.JPEG": picture(number) for number in range(3)}
    path = write_zip(tmp_path / "imagenet-object-localization-challenge.zip", files)
    (tmp_path / "list.txt").write_text("".join(f"val/n0{n}/{Path(name).name} {n}\n" for n, name in enumerate(files)))
    records = converted("list", "--root", path, "--list", tmp_path / "list.txt", tmp_path / "a.beton")
    assert records.labels.tolist() == [0, 1, 2] and records.name(2) == "val/n02/ILSVRC2012_val_00000002.JPEG"


def test_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its directory a zip is one line; with it, a garbled member is an image that cannot be read."""
    path, out = write_zip(tmp_path / "a.zip", imagenet(), zipfile.ZIP_STORED), ["--out", tmp_path / "a.beton"]
    whole = path.read_bytes()
    for data in (whole[:-30], whole[: len(whole) // 2], b"PK\3\4"):
        path.write_bytes(data)
        message = refused(capsys, "folder", "--images", path, *out)
        assert f"{path}: not a readable archive, damaged or truncated (" in message
    directory = whole.rindex(b"PK\1\2")
    # A version of the format to come; a name said to be UTF-8, which begins with 0xff.
    for at, byte in ((6, 99), (9, 8)):
        garbled = bytearray(whole)
        garbled[directory + at], garbled[directory + 46] = byte, 0xFF
        path.write_bytes(garbled)
        assert f"{path}: not a readable archive, damaged or" in refused(capsys, "folder", "--images", path, *out)
    middle = whole.index(imagenet()["n01443537/n01443537_12.JPEG"]) + 300
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    message = refused(capsys, "folder", "--images", path, *out)
    assert (
        "1 of 12 images cannot be read, first n01443537/n01443537_12.JPEG (its checksum in the archive differs)"
        in message
    )


def test_what_cannot_be_read_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_zip(tmp_path / "a.zip", {"a/0.jpg": b"x"}, zipfile.ZIP_LZMA), ["--out", tmp_path / "a.beton"]
    assert "a/0.jpg is compressed in an unusual way; unpack" in refused(capsys, "folder", "--images", path, *out)
    data = bytearray(write_zip(path, {"a/0.jpg": picture(0)}).read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "a/0.jpg is encrypted; unpack the archive with its password" in refused(
        capsys, "folder", "--images", path, *out
    )


def test_members_are_read_by_offset(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", imagenet())
    images = read_archives([path])
    assert not images.streamed
    for name in reversed(images.found):
        image = images.found[name]
        assert callable(image) and image() == imagenet()[name]
