"""Tar archives, packed or not: the records of the folder that they would unpack to, and damage that is never taken for an end."""

import io
import os
import random
import shutil
import tarfile
from pathlib import Path

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
from pipelines.records.workers import Streamed
from tools import convert
from tools.conversion.archives import entries, inside_archive, read_archives


def images() -> dict[str, bytes]:
    """In another order than a folder's, with folders in folders and files that are no images."""
    files = {f"{name}/{number}.jpg": picture(number) for number in (2, 0, 1) for name in ("bee", "ant")}
    files |= {
        "ant/more/x/9.PNG": picture(7, "PNG"),
        "ant/more/0.png": picture(8, "PNG"),
        "cat/0.webp": picture(9, "WEBP"),
    }
    return files | {"bee/notes.txt": b"no image", "README": b"", "bee/._0.jpg": b"", ".cache/x.jpg": b"junk"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The records of the folder, as bytes of a file."""
    converted("folder", "--images", write_tree(tmp_path / "tree", images()), tmp_path / "folder.beton")
    return tmp_path / "folder.beton"


def test_a_tar_of_class_folders_gives_the_very_file_of_its_folder(tmp_path: Path, folder: Path) -> None:
    """From any number of workers; members may be spelt ./ant/0.jpg, and lie in a folder inside."""
    plain = write_tar(tmp_path / "a.tar", {f"./{name}": data for name, data in images().items()})
    inner = write_tar(tmp_path / "b.tar", {f"all/images/{name}": data for name, data in images().items()})
    for number, (path, workers) in enumerate(((plain, 0), (plain, 2), (inner / "all" / "images", 0))):
        converted("folder", "--images", path, "--workers", workers, tmp_path / f"{number}.beton")
        assert (tmp_path / f"{number}.beton").read_bytes() == folder.read_bytes()


@pytest.mark.parametrize("packing", ["gz", "xz", "bz2"])
def test_a_compressed_tar_keeps_its_own_order(tmp_path: Path, packing: str) -> None:
    """The name does not tell how it is compressed, its bytes do."""
    files = {name: data for name, data in images().items() if name.count("/") == 1 and data}
    path = write_tar(tmp_path / "a.tar", files, f"w:{packing}")
    for workers in (0, 2 if packing == "gz" else 1):
        records = converted("folder", "--images", path, "--workers", workers, tmp_path / f"{workers > 0}.beton")
        wanted = [name for name in files if not name.startswith(".") and not name.endswith(".txt")]
        assert [records.name(i) for i in range(len(records))] == wanted
    assert (tmp_path / "False.beton").read_bytes() == (tmp_path / "True.beton").read_bytes()
    ordered = write_tar(tmp_path / "b.tar", dict(sorted(files.items())), f"w:{packing}")
    folder = converted("folder", "--images", write_tree(tmp_path / "tree", files), tmp_path / "folder.beton")
    assert_same_records(converted("folder", "--images", ordered, tmp_path / "b.beton"), folder)
    assert records.digest == folder.digest


def test_a_list_that_is_not_there_is_said_before_the_archive_is_gone_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "a.tar", images(), "w:gz")
    words = ["list", "--root", path, "--list", tmp_path / "none.txt", "--out", tmp_path / "a.beton"]
    assert convert.main([*map(str, words)]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: {tmp_path}/none.txt: the list cannot be read: No such file") and said.count("\n") == 1
    )


def test_splits_of_a_compressed_tar(tmp_path: Path) -> None:
    files = {f"ant/{number}.jpg": picture(number) for number in range(6)}
    path = write_tar(tmp_path / "a.tgz", files, "w:gz")
    words = ["folder", "--images", path, "--test", 0.5, "--workers", 0, "--out"]
    assert convert.main([str(word) for word in (*words, tmp_path / "a")]) == 0
    words[2] = write_tree(tmp_path / "tree", files)
    assert convert.main([str(word) for word in (*words, tmp_path / "b")]) == 0
    for part in ("train", "test"):
        assert (tmp_path / "a" / f"{part}.beton").read_bytes() == (tmp_path / "b" / f"{part}.beton").read_bytes()


def test_imagenets_own_tar_of_tars(tmp_path: Path) -> None:
    """The very file of the folder; with a list the very file of the list's route."""
    tars = {}
    for wnid in reversed(WNIDS):
        inner = {name.split("/")[1]: data for name, data in imagenet().items() if name.startswith(wnid)}
        tars[f"{wnid}.tar"] = write_tar(tmp_path / f"{wnid}.tar", inner).read_bytes()
    outer = write_tar(tmp_path / "ILSVRC2012_img_train.tar", tars)
    tree = write_tree(tmp_path / "root" / "train", imagenet())
    converted("folder", "--images", tree, tmp_path / "folder.beton")
    converted("folder", "--images", outer, tmp_path / "tar.beton")
    assert (tmp_path / "tar.beton").read_bytes() == (tmp_path / "folder.beton").read_bytes()
    chosen = [f"train/{name} {number % 4}" for number, name in enumerate(imagenet()) if number % 2]
    (tmp_path / "list.txt").write_text("\n".join(reversed(chosen)))
    converted("list", "--root", tmp_path / "root", "--list", tmp_path / "list.txt", tmp_path / "list.beton")
    converted("list", "--root", outer, "--list", tmp_path / "list.txt", tmp_path / "both.beton")
    assert (tmp_path / "both.beton").read_bytes() == (tmp_path / "list.beton").read_bytes()


def test_imagenets_flat_validation_tar_with_a_list_of_class_folders(tmp_path: Path) -> None:
    files = {f"ILSVRC2012_val_{number:08d}.JPEG": picture(number) for number in range(4)}
    archive = write_tar(tmp_path / "ILSVRC2012_img_val.tar", files)
    (tmp_path / "list.txt").write_text(
        "\n".join(f"val/n0{number}/{name} {number}" for number, name in enumerate(files))
    )
    tree = {f"val/n0{number}/{name}": data for number, (name, data) in enumerate(files.items())}
    converted("list", "--root", archive, "--list", tmp_path / "list.txt", tmp_path / "a.beton")
    root = write_tree(tmp_path / "root", tree)
    converted("list", "--root", root, "--list", tmp_path / "list.txt", tmp_path / "b.beton")
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_several_archives_are_read_as_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (write_tar(tmp_path / f"{number}.tar", {f"a/{number}.jpg": picture(number)}) for number in range(2))
    (tmp_path / "list.txt").write_text("a/1.jpg 1\na/0.jpg 0\n")
    common = ["list", "--list", tmp_path / "list.txt", "--root"]
    records = converted(*common, one, two, tmp_path / "a.beton")
    assert [records.name(i) for i in range(2)] == ["a/1.jpg", "a/0.jpg"]
    out = ["--out", tmp_path / "b.beton"]
    assert "a/0.jpg is in another of the archives too" in refused(capsys, *common, one, one, *out)
    for roots in ((one, tmp_path), (tmp_path, one), (tmp_path, tmp_path), (one, tmp_path / "2.tar")):
        other = next(root for root in roots if root != one)
        message = refused(capsys, *common, *roots, *out)
        assert f"--root {other}: no archive, tar or zip; give one folder, or archives alone" in message


def test_links_and_members_that_come_twice(tmp_path: Path) -> None:
    """A link shows what it leads to, and of two members with one name the later one counts, as after unpacking."""
    path = write_tar(tmp_path / "a.tar", {"a/0.jpg": b"old", "b/1.jpg": picture(1), "a/./0.jpg": picture(0)})
    with tarfile.open(path, "a") as archive:
        for name, target, kind in (
            ("b/2.jpg", "a/0.jpg", tarfile.LNKTYPE),
            ("b/3.jpg", "../a/0.jpg", tarfile.SYMTYPE),
            ("b/4.jpg", "nowhere.jpg", tarfile.SYMTYPE),
            ("b/5.jpg", "5.jpg", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.linkname, member.type = target, kind
            archive.addfile(member)
    records = converted("folder", "--images", path, "--skip-bad", "--workers", 0, tmp_path / "a.beton")
    payload = {records.name(i): records.payload(i).tobytes() for i in range(len(records))}
    assert payload["a/0.jpg"] == payload["b/2.jpg"] == payload["b/3.jpg"] != payload["b/1.jpg"]
    assert records.manifest["made"]["skipped"] == ["b/4.jpg", "b/5.jpg"]


def test_links_in_a_compressed_archive_are_unreadable_and_those_beside_it_are_not(tmp_path: Path) -> None:
    """What they lead to may have been passed already."""
    paths = []
    for mode in ("", "gz"):
        paths.append(tmp_path / f"a.tar.{mode}" if mode else tmp_path / "a.tar")
        with tarfile.open(paths[-1], f"w:{mode}") as archive:
            for name, data in ((f"{mode}/0.jpg", picture(0)), (f"{mode}/1.jpg", b""), (f"{mode}/2.jpg", b"")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if not data:
                    member.type, member.linkname = tarfile.SYMTYPE, "0.jpg" if "1" in name else "none.jpg"
                archive.addfile(member, io.BytesIO(data))
    found = read_archives(paths).found
    one = found["1.jpg"]
    assert callable(one) and one() == picture(0)
    for name, why in (("gz/1.jpg", "inside a compressed archive"), ("gz/2.jpg", "leads nowhere"), ("2.jpg", "nowhere")):
        image = found[name]
        with pytest.raises(OSError, match=why):
            assert callable(image) and image()


def test_a_compressed_archive_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", {f"a/{number}.jpg": b"x" for number in range(3)}, "w:gz")
    images = list(read_archives([path]).found.values())
    write_tar(path, {"a/0.jpg": b"x"}, "w:gz")
    assert isinstance(images[0], Streamed) and images[0].read() == b"x"
    with pytest.raises(UserError, match="holds fewer files than when they were listed; type the command again"):
        assert isinstance(images[2], Streamed) and images[2].read()


def test_folders_named_by_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    files = {f"{number}/0.jpg": picture(number) for number in (0, 1, 2, 10, 11)}
    folder = converted("folder", "--images", write_tree(tmp_path / "tree", files), tmp_path / "folder.beton")
    converted("folder", "--images", write_tar(tmp_path / "a.tar", files), tmp_path / "tar.beton")
    assert folder.class_names == ["0", "1", "2", "10", "11"] and folder.labels.tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "tar.beton").read_bytes() == (tmp_path / "folder.beton").read_bytes()


def test_inaturalists_folders_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two levels deep, numbers in their order wherever they lie; names keep both levels, and so do classes that share a name."""
    places = (("Aves", 3), ("Aves", 10), ("Plantae", 0), ("Plantae", 11), ("Aves", 2))
    files = {f"{kind}/{number}/0.jpg": picture(number) for kind, number in places}
    tree, archive = write_tree(tmp_path / "tree", files), write_tar(tmp_path / "a.tar", files)
    words = ["folder", "--depth", 2, "--images"]
    folder = converted(*words, tree, tmp_path / "folder.beton")
    assert folder.class_names == ["0", "2", "3", "10", "11"] and folder.name(1) == "Aves/2/0.jpg"
    converted(*words, archive, tmp_path / "tar.beton")
    assert (tmp_path / "tar.beton").read_bytes() == (tmp_path / "folder.beton").read_bytes()
    for source in (tree, archive):
        capsys.readouterr()
        records = converted("folder", "--images", source, "--force", tmp_path / "b.beton")
        assert records.class_names == ["Aves", "Plantae"]
        told = "all images lie in sub-folders of the classes, such as Aves/10/0.jpg; if these are the classes, add --depth 2"
        assert f"note: {told}\n" in capsys.readouterr().err
    write_tree(tree, {"Plantae/3/1.jpg": picture(5)})
    shared = converted(*words, tree, "--force", tmp_path / "folder.beton")
    assert shared.class_names == ["Aves/10", "Aves/2", "Aves/3", "Plantae/0", "Plantae/11", "Plantae/3"]
    write_tree(tree, {"Plantae/1.jpg": picture(5)})
    write_tar(archive, files | {"Plantae/1.jpg": b""})
    for source in (tree, archive):
        message = refused(capsys, *words, source, "--out", tmp_path / "c.beton")
        assert f"{source}/Plantae/1.jpg: lies above the class folders" in message
    assert "no sub-folders found" in refused(
        capsys, "folder", "--depth", 4, "--images", archive, "--out", tmp_path / "c.beton"
    )


@pytest.mark.parametrize("kind", ["folder", "tar", "tgz", "zip"])
@pytest.mark.parametrize("empty", ["cat/", "cat/inner/", "cat/notes.txt"])
def test_images_beside_the_classes_are_noted_and_classes_without_images_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, empty: str
) -> None:
    """In a folder and in every archive of it; what macOS adds to a zip is no class."""
    files = {"ant/0.jpg": picture(0), "bee/0.jpg": picture(1), "1.jpg": b"", "2.jpg": b"", "__MACOSX/ant/._0.jpg": b""}
    tree = write_tree(tmp_path / "tree", files)

    def source() -> Path:
        if kind == "folder":
            return tree
        formats = {"tar": "tar", "tgz": "gztar", "zip": "zip"}
        return Path(shutil.make_archive(str(tmp_path / "a"), formats[kind], tree))

    records = converted("folder", "--images", source(), tmp_path / "a.beton")
    assert records.class_names == ["ant", "bee"] and len(records) == 2
    assert "note: 2 images left out (beside the class folders), such as 1.jpg" in capsys.readouterr().err
    (tree / empty if empty.endswith("/") else (tree / empty).parent).mkdir(parents=True)
    if not empty.endswith("/"):
        (tree / empty).write_bytes(b"")
    message = refused(capsys, "folder", "--images", source(), "--out", tmp_path / "b.beton")
    assert "/cat: no images in this class; remove it, or list it with --classes" in message


def test_what_an_archive_holds_in_place_of_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.tar", ["--out", tmp_path / "a.beton"]
    for files, words in (
        ({"all/ant/0.jpg": b"", "all/bee/0.jpg": b""}, f"if its sub-folders are the classes, type {path}/all"),
        (
            {"train/ant/0.jpg": b"", "val/ant/0.jpg": b""},
            f"holds splits (train, val), .* such as --images {path}/train",
        ),
        ({"0.jpg": b""}, "no sub-folders found; every class needs its own"),
        ({"a/notes.txt": b""}, "no images in it; give an archive of images"),
    ):
        write_tar(path, files)
        message = refused(capsys, "folder", "--images", path, *out)
        assert all(part in message for part in words.split(" .* "))
    write_tar(path, {"ant/0.jpg": b"", "bee/0.jpg": b""})
    (tmp_path / "classes.txt").write_text("ant\n")
    message = refused(capsys, "folder", "--images", path, "--classes", tmp_path / "classes.txt", *out)
    assert f"{path}/bee: this class is not in the class list" in message
    assert "no images in it" in refused(capsys, "folder", "--images", path / "none", *out)


@pytest.mark.parametrize("packing", ["", "gz", "xz"])
def test_damage_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: str) -> None:
    """Cut anywhere, a header or packed bytes garbled, empty, not a tar at all: never fewer images without a word."""
    rng = random.Random(0)
    files = {f"a/{number}.jpg": rng.randbytes(700) for number in range(8)}
    path = write_tar(tmp_path / "a.tar", files, f"w:{packing}")
    whole = path.read_bytes()
    end = len(whole) if packing else 8 * 3 * 512
    cuts = [whole[:size] for size in (end // 3, end // 2 + 100, end - 700)]
    middle = end // 2 if packing else 4 * 3 * 512 + 4
    garbled = whole[:middle] + bytes(byte ^ 0x55 for byte in whole[middle : middle + 20]) + whole[middle + 20 :]
    for data in (*cuts, garbled, b"", b"no archive" * 200, bytes(300)):
        path.write_bytes(data)
        message = refused(capsys, "folder", "--images", path, "--out", tmp_path / "a.beton")
        assert f"{path}: not a readable archive, damaged or truncated (" in message, data[:20]
        assert message.endswith("; copy it again") and message.count("\n") == 0
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "type: git lfs pull" in refused(capsys, "folder", "--images", path, "--out", tmp_path / "a.beton")


def test_a_download_that_ends_in_zeros_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tar", {f"a/{number}.jpg": picture(number) for number in range(3)})
    os.truncate(path, 3 << 20)
    message = refused(capsys, "folder", "--images", path, "--out", tmp_path / "a.beton")
    assert "its end mark comes 3,1" in message and "bytes before its end" in message


def test_a_file_that_shrinks_meanwhile_is_an_unreadable_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a/0.jpg": picture(0)})
    image = read_archives([path]).found["a/0.jpg"]
    assert callable(image) and image() == picture(0)
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="the archive is truncated"):
        image()


def test_a_compressed_archive_of_archives_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tgz", {"n01440764.tar": b"x"}, "w:gz")
    message = refused(capsys, "folder", "--images", path, "--out", tmp_path / "a.beton")
    assert "holds the archive n01440764.tar and is compressed itself; decompress it first" in message


def test_paths_into_archives(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a/0.jpg": b""})
    assert inside_archive(path) == (path, "") and inside_archive(path / "b" / "c") == (path, "b/c")
    (tmp_path / "b.tar").mkdir()
    assert inside_archive(tmp_path / "b.tar") is None and inside_archive(tmp_path) is None


def test_thousands_of_members_are_not_kept_by_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names have headers of their own."""
    long = "d" * 150
    path = write_tar(tmp_path / "a.tar", {f"{long}/{number}.jpg": b"x" for number in range(50)})
    opened: list[tarfile.TarFile] = []
    real = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: opened.append(self) or real(self))
    assert [entry.name for entry in entries(path)] == [f"{long}/{number}.jpg" for number in range(50)]
    assert len(opened[-1].members) <= 1
