"""Lists of `path label` lines: one name for each path however it is spelt, and a line number for each mistake."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from tools.conversion.listing import list_samples


def samples(tmp_path: Path, text: str | bytes, prefix: str = "", classes: int | None = None) -> list[tuple[str, int]]:
    (tmp_path / "b").mkdir(exist_ok=True)
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(sample.name, sample.label) for sample in list_samples(tmp_path, path, prefix, classes)]


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
        list_samples(tmp_path, tmp_path, "", None)
    for root in ("list.txt", "none"):
        with pytest.raises(UserError, match="no such folder; --root is"):
            (tmp_path / "list.txt").write_text("")
            list_samples(tmp_path / root, tmp_path / "list.txt", "", None)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        list_samples(tmp_path / ("x" * 300), tmp_path / "list.txt", "", None)
