"""The writer: byte-identity, atomicity, the copy of records, and how it fails (one image: test_encoding.py)."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from helpers.drawings import picture
from helpers.odd_files import odd_files, write_odd_files
from helpers.tar_members import TarSamples
from PIL import Image

from pipelines.errors import UserError
from pipelines.records import encoding, layout, writing
from pipelines.records.encoding import Encoding
from pipelines.records.marking import marked
from pipelines.records.reader import Records
from pipelines.records.workers import CHUNK, CHUNKS_PER_WORKER, Sample, Streamed
from pipelines.records.writing import UnreadableImages, write_records


def jpegs(folder: Path, count: int, side: int = 40) -> list[Path]:
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        picture(side + number % 7, side, number).save(path, quality=80)
    return paths


def samples_of(paths: list[Path]) -> list[Sample]:
    return [Sample(f"a/{path.name}", 0, path) for path in paths]


def tar_of(paths: list[Path], path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for one in paths:
            archive.add(one, f"a/{one.name}")
    return path


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_members_of_a_tar_are_stored_as_the_files_of_a_folder(tmp_path: Path, workers: int) -> None:
    """Byte for byte, read in the workers, from samples that are made as they are needed."""
    paths = jpegs(tmp_path, 3 * CHUNK + 1)
    write_records(tmp_path / "folder.beton", samples_of(paths), ["a"], kind="test")
    samples = TarSamples(tar_of(paths, tmp_path / "a.tar"))
    assert write_records(tmp_path / "tar.beton", samples, ["a"], kind="test", workers=workers) == []
    assert (tmp_path / "tar.beton").read_bytes() == (tmp_path / "folder.beton").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_member_that_cannot_be_read_is_unreadable_by_its_name(tmp_path: Path, workers: int) -> None:
    archive = tar_of(jpegs(tmp_path, 3), tmp_path / "a.tar")
    samples = TarSamples(archive)
    os.truncate(archive, samples._members[2][1] + 10)
    bad = write_records(tmp_path / "t.beton", samples, ["a"], kind="test", workers=workers, skip_bad=True)
    assert bad == [("a/0002.jpg", "the archive is truncated")]
    with pytest.raises(UnreadableImages, match="1 of 3 images cannot be read, first a/0002.jpg"):
        write_records(tmp_path / "u.beton", samples, ["a"], kind="test", workers=workers)


class Fed(Streamed):
    """One of the files that a source hands out in turn."""

    def __init__(self, source: "Source", number: int) -> None:
        self.source, self.number = source, number

    def read(self) -> bytes:
        return self.source.read(self.number)

    def __reduce__(self) -> str:
        raise AssertionError("it must not leave the process")


class Source:
    """Remembers in which order it was read; the last of its files may be damaged."""

    def __init__(self, paths: list[Path], damaged: bool = False) -> None:
        self.paths, self.damaged, self.asked = paths, damaged, []

    def read(self, number: int) -> bytes:
        self.asked.append(number)
        if self.damaged and number == len(self.paths) - 1:
            raise UserError("a.tar.gz: a damaged archive")
        return self.paths[number].read_bytes()

    def samples(self) -> list[Sample]:
        return [sample._replace(image=Fed(self, number)) for number, sample in enumerate(samples_of(self.paths))]


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_read_once_in_order_and_by_this_process(tmp_path: Path, workers: int) -> None:
    """They are stored as files are; images given as bytes too."""
    paths = jpegs(tmp_path, 3 * CHUNK + 1)
    source, held = Source(paths), [sample._replace(image=sample.image.read_bytes()) for sample in samples_of(paths)]
    write_records(tmp_path / "file.beton", samples_of(paths), ["a"], kind="test")
    for name, samples in {"stream": source.samples(), "bytes": held}.items():
        write_records(tmp_path / f"{name}.beton", samples, ["a"], kind="test", workers=workers)
        assert (tmp_path / f"{name}.beton").read_bytes() == (tmp_path / "file.beton").read_bytes()
    assert source.asked == list(range(len(paths)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_stream_ends_the_conversion(tmp_path: Path, workers: int) -> None:
    source = Source(jpegs(tmp_path, 2 * CHUNK), damaged=True)
    with pytest.raises(UserError, match=r"a\.tar\.gz: a damaged archive$"):
        write_records(tmp_path / "a.beton", source.samples(), ["a"], kind="test", workers=workers, skip_bad=True)
    assert not (tmp_path / "a.beton").exists()


def test_a_lazy_image_may_be_pixels(tmp_path: Path) -> None:
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    write_records(tmp_path / "a.beton", [Sample("x", 0, pixels)], ["a"], kind="test")
    write_records(tmp_path / "b.beton", [Sample("x", 0, lambda: pixels)], ["a"], kind="test")
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_an_iterator_which_ends_after_one_walk_is_refused(tmp_path: Path) -> None:
    class Once:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> "Once":
            return self

        def __next__(self) -> Sample:
            raise StopIteration

    with pytest.raises(ValueError, match="an iterator will not do"):
        write_records(tmp_path / "b.beton", Once(), ["a"], kind="test")


# Files that act when they are opened, in any process.


@dataclass
class Slow:
    path: str
    seconds: float

    def __fspath__(self) -> str:
        time.sleep(self.seconds)
        return self.path


@dataclass
class Noting:
    """Leaves a note that it was opened."""

    path: str
    note: str

    def __fspath__(self) -> str:
        Path(self.note).touch()
        return self.path


@dataclass
class Deadly:
    """Kills the process that opens it; with a note, only if the note is not there yet."""

    path: str
    note: str | None = None

    def __fspath__(self) -> str:
        if self.note is None or not os.path.exists(self.note):
            if self.note:
                Path(self.note).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.path


@dataclass
class Faulty:
    def __fspath__(self) -> str:
        raise RuntimeError("a bug")


# Unreadable images


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_fail_or_are_left_out(tmp_path: Path, workers: int) -> None:
    images, out = tmp_path / "images", tmp_path / "out" / "a.beton"
    images.mkdir()
    files = {name: file.words for name, file in write_odd_files(images).items() if file.fate == "reported"}
    files["missing.jpg"] = "no such file or directory"
    good = jpegs(images, len(files))
    mixed = samples_of([path for name, other in zip(files, good, strict=True) for path in (images / name, other)])
    words = f"^{len(files)} of {2 * len(files)} images cannot be read, first a/empty.jpg .*--skip-bad"
    with pytest.raises(UnreadableImages, match=words) as caught:
        write_records(out, mixed, ["a"], kind="test", workers=workers)
    reasons = {image.name: image.reason for image in caught.value.images}
    assert list(reasons) == [f"a/{name}" for name in files]
    assert all(files[name.removeprefix("a/")] in reason for name, reason in reasons.items())
    assert os.listdir(out.parent) == []

    skipped = write_records(out, mixed, ["a"], kind="test", skip_bad=True, workers=workers)
    assert skipped == caught.value.images
    opened = Records(out)
    assert [opened.name(position) for position in range(len(opened))] == [f"a/{path.name}" for path in good]
    assert opened.manifest["made"]["skipped"] == list(reasons)
    assert opened.payload(5).tobytes() == marked(good[5].read_bytes())


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    samples = [Sample("b.jpg", 0, tmp_path / "b.jpg"), Sample("c.jpg", 0, tmp_path / "c.jpg")]
    with pytest.raises(UnreadableImages, match="2 of 2 images cannot be read, .*check the folder"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test", skip_bad=True)


# Arrays


def test_arrays(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    with pytest.raises(UnreadableImages, match=r"first a \(1700x1700 raw pixels do not fit a page"):
        write_records(out, [Sample("a", 0, np.zeros((1700, 1700, 3), np.uint8))], ["a"], kind="test")
    with pytest.raises(RuntimeError, match="while converting a"):
        write_records(out, [Sample("a", 0, np.zeros((4, 4), np.uint8))], ["a"], kind="test")
    mixed = [Sample("a", 0, np.zeros((4, 4, 3), np.uint8)), Sample("b", 0, jpegs(tmp_path, 1)[0])]
    with pytest.raises(ValueError, match="either files or arrays"):
        write_records(out, mixed, ["a"], kind="test")
    assert os.listdir(tmp_path) == ["0000.jpg"]


@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_that_cannot_be_stored_are_left_out(tmp_path: Path, workers: int) -> None:
    samples = [Sample(str(side), 0, np.zeros((side, side, 3), np.uint8)) for side in (4, 1700, 5)]
    bad = write_records(tmp_path / "a.beton", samples, ["a"], kind="test", skip_bad=True, workers=workers)
    assert [image.name for image in bad] == ["1700"] and len(Records(tmp_path / "a.beton")) == 2


def test_the_manifest_says_how_files_are_stored(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    write_records(out, samples_of(jpegs(tmp_path, 1)), ["a"], kind="test", encoding=Encoding(short_side=30, quality=80))
    made = Records(out).manifest["made"]
    assert made["encoding"] == {"short_side": 30, "max_side": None, "quality": 80}
    assert made["decoder"] == encoding.decoder_name()
    write_records(out, [Sample("a", 0, np.zeros((2, 2, 3), np.uint8))], ["a"], kind="test", force=True)
    assert "encoding" not in Records(out).manifest["made"]


# Copies


def test_copied_records_keep_everything(tmp_path: Path) -> None:
    """Raw and JPEG alike: names, keys, labels, sizes, sources and bytes, in the requested order."""
    rng = np.random.default_rng(0)
    arrays = [Sample(f"r/\udcff{i}", i % 3, rng.integers(0, 256, (5, 6, 3), np.uint8)) for i in range(9)]
    write_records(tmp_path / "raw.beton", arrays, ["a", "b", "c"], kind="test")
    small = Encoding(short_side=20)
    write_records(tmp_path / "jpeg.beton", samples_of(jpegs(tmp_path, 9)), ["a"], kind="test", encoding=small)
    chosen = [7, 0, 3, 4]
    for name in ("raw", "jpeg"):
        source, made = Records(tmp_path / f"{name}.beton"), {"kind": "subset"}
        writing.copy_records(tmp_path / "copy.beton", source, chosen, made, force=True)
        copy = Records(tmp_path / "copy.beton")
        assert [copy.name(i) for i in range(4)] == [source.name(i) for i in chosen]
        for column in (
            "keys",
            "labels",
            "widths",
            "heights",
            "stored_widths",
            "stored_heights",
            "sources",
            "raw",
            "crcs",
        ):
            assert (getattr(copy, column) == getattr(source, column)[chosen]).all(), column
        assert [bytes(copy.payload(i)) for i in range(4)] == [bytes(source.payload(i)) for i in chosen]
        assert copy.class_names == source.class_names and copy.manifest["made"] == made
        assert copy.manifest.get("restarts") == (None if name == "raw" else 4)
    writing.copy_records(tmp_path / "all.beton", source, range(9), source.manifest["made"])
    assert (tmp_path / "all.beton").read_bytes() == (tmp_path / "jpeg.beton").read_bytes()


def test_a_damaged_record_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_records(path, samples_of(jpegs(tmp_path, 3)), ["a"], kind="test")
    data = bytearray(path.read_bytes())
    data[Records(path).offsets[1] + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"record 1 \(key \d+, a/0001\.jpg\) is damaged: CRC-32"):
        writing.copy_records(tmp_path / "copy.beton", Records(path), range(3), {})
    assert not list(tmp_path.glob("*copy*"))
    writing.copy_records(tmp_path / "copy.beton", Records(path), [0, 2], {})
    with pytest.raises(UserError, match=r"copy\.beton exists; add --force"):
        writing.copy_records(tmp_path / "copy.beton", Records(path), [0], {})


# Names and labels


def test_two_images_of_one_name_are_both_named(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    samples = [Sample(name, 0, pixels) for name in ("a/1", "a/2", "a/3", "a/2")]
    with pytest.raises(UserError, match=r"a/2 \(image 2\) and a/2 \(image 4\)"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test")


def test_two_names_of_one_key_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "sample_key", len)
    samples = [Sample(name, 0, np.zeros((2, 2, 3), np.uint8)) for name in ("one", "three", "two")]
    with pytest.raises(UserError, match=r"one \(image 1\) and two \(image 3\)"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test")


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_classes_are_named(tmp_path: Path, label: int) -> None:
    sample = Sample("x", label, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=rf"^x: label {label} is not in 0\.\.1"):
        write_records(tmp_path / "a.beton", [sample], ["a", "b"], kind="test")
    with pytest.raises(UserError, match="there are no images"):
        write_records(tmp_path / "a.beton", [], ["a", "b"], kind="test")


# The same bytes, whichever processes write them


def test_bytes_do_not_depend_on_the_workers_or_their_haste(tmp_path: Path) -> None:
    paths = jpegs(tmp_path, 70)
    (tmp_path / "0003.jpg").write_bytes(odd_files()["grey-16.png"].data)
    (tmp_path / "0068.jpg").write_bytes(b"no image")
    delays = np.random.default_rng(0).permutation(70) * 0.0002
    slow = [Sample(f"a/{path.name}", 0, Slow(str(path), delay)) for path, delay in zip(paths, delays, strict=True)]
    made = {}
    for workers, samples in ((0, samples_of(paths)), (1, slow), (2, slow), (3, slow[:])):
        out = tmp_path / f"{workers}.beton"
        write_records(out, samples, ["a"], kind="t", workers=workers, skip_bad=True, encoding=Encoding(short_side=38))
        made[workers] = out.read_bytes()
    assert made[0] == made[1] == made[2] == made[3]
    manifest = json.dumps(Records(out).manifest)
    assert str(tmp_path) not in manifest and "worker" not in manifest


def test_arrays_through_workers_give_the_same_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    samples = [Sample(str(number), number % 2, image) for number, image in enumerate(images)]
    for workers in (1, 2):
        write_records(tmp_path / f"{workers}.beton", samples, ["a", "b"], kind="test", workers=workers)
    assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()


def test_work_in_flight_is_bounded(tmp_path: Path) -> None:
    path, notes = str(jpegs(tmp_path, 1)[0]), tmp_path / "notes"
    notes.mkdir()
    samples = [Sample("0", 0, Slow(path, 1.5))]
    samples += [Sample(str(number), 0, Noting(path, str(notes / str(number)))) for number in range(1, 400)]
    opened_before_first: list[int] = []

    def progress() -> None:
        if not opened_before_first:
            opened_before_first.append(len(os.listdir(notes)))

    write_records(tmp_path / "a.beton", samples, ["a"], kind="test", workers=2, progress=progress)
    bound = 2 * CHUNKS_PER_WORKER * CHUNK
    assert CHUNK < opened_before_first[0] < bound < 400
    assert len(os.listdir(notes)) == 399


# Failures


@pytest.mark.parametrize("workers", [2, 3])
def test_a_file_that_kills_its_worker_is_named(tmp_path: Path, workers: int) -> None:
    paths = jpegs(tmp_path, 60)
    samples = samples_of(paths)
    samples[41] = Sample("a/culprit.jpg", 0, Deadly(str(paths[41])))
    with pytest.raises(UserError, match=r"^a/culprit\.jpg: the worker that converted it died"):
        write_records(tmp_path / "out" / "a.beton", samples, ["a"], kind="test", workers=workers)
    assert os.listdir(tmp_path / "out") == []


def test_after_a_worker_was_killed_the_same_command_works(tmp_path: Path) -> None:
    paths = jpegs(tmp_path, 40)
    samples = samples_of(paths)
    samples[20] = Sample("a/victim.jpg", 0, Deadly(str(paths[20]), str(tmp_path / "note")))
    with pytest.raises(UserError, match=r"^a/victim\.jpg: the worker that converted it died"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test", workers=2)
    assert not (tmp_path / "a.beton").exists()
    write_records(tmp_path / "a.beton", samples, ["a"], kind="test", workers=2)
    assert len(Records(tmp_path / "a.beton")) == 40


@dataclass
class DeadlyWhileSending(Noting):
    """Kills its process while it sends the answer, which does not fit into a pipe that is not being read."""

    def __fspath__(self) -> str:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return self.path


def test_a_worker_killed_in_the_middle_of_its_answer_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    path = str(tmp_path / "noise.jpg")
    assert os.path.getsize(path) > 300_000
    samples = [Sample("first", 0, path), Sample("culprit", 0, DeadlyWhileSending(path, ""))]
    samples += [Sample(str(number), 0, path) for number in range(60)]

    def slow_disk() -> None:
        time.sleep(1)

    with pytest.raises(UserError, match="^culprit: the worker that converted it died"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test", workers=2, progress=slow_disk)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_names_its_file(tmp_path: Path, workers: int) -> None:
    samples = samples_of(jpegs(tmp_path, 20))
    samples[17] = Sample("a/culprit.jpg", 0, Faulty())
    with pytest.raises(RuntimeError, match=r"while converting a/culprit\.jpg"):
        write_records(tmp_path / "out" / "a.beton", samples, ["a"], kind="test", workers=workers)
    assert os.listdir(tmp_path / "out") == []


def test_an_existing_file_is_kept_without_force_and_on_failure(tmp_path: Path) -> None:
    out, paths = tmp_path / "a.beton", jpegs(tmp_path, 3)
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"a\.beton exists; add --force"):
        write_records(out, samples_of(paths), ["a"], kind="test")
    broken = [*samples_of(paths), Sample("b", 0, tmp_path / "missing.jpg")]
    with pytest.raises(UnreadableImages):
        write_records(out, broken, ["a"], kind="test", force=True)
    assert out.read_bytes() == b"precious"
    write_records(out, samples_of(paths), ["a"], kind="test", force=True)
    assert len(Records(out)) == 3
    with pytest.raises(UserError, match=r"is a folder; name the file to write"):
        write_records(tmp_path, samples_of(paths), ["a"], kind="test", force=True)


def test_a_place_where_no_file_can_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """A pipe stays, with force too; a link to a file is followed."""
    file, link, pipe = tmp_path / "a.beton", tmp_path / "link.beton", tmp_path / "pipe.beton"
    file.write_bytes(b"")
    link.symlink_to(file)
    os.mkfifo(pipe)
    writing.check_output(link, force=True)
    with pytest.raises(UserError, match=r"pipe\.beton is a pipe, socket or device; name a file to write, such as "):
        writing.check_output(pipe, force=True)
    with pytest.raises(
        UserError, match=r"^\S+/b\.beton: cannot write in \S+a\.beton \(Not a directory\); give another"
    ):
        writing.check_output(file / "b.beton", force=False)
    writing.check_output(tmp_path / "new" / "folder" / "b.beton", force=False)
    assert sorted(os.listdir(tmp_path)) == ["a.beton", "link.beton", "pipe.beton"]


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    paths = jpegs(tmp_path, 3)
    write_records(tmp_path / "a.beton", samples_of(paths), ["a"], kind="test")
    (tmp_path / ".b.beton.partial").write_bytes(os.urandom(20_000_000))
    write_records(tmp_path / "b.beton", samples_of(paths), ["a"], kind="test")
    assert (tmp_path / "b.beton").read_bytes() == (tmp_path / "a.beton").read_bytes()
    assert sorted(os.listdir(tmp_path))[:1] == ["0000.jpg"], "no hidden file is left"


def test_a_second_conversion_to_one_file_is_refused(tmp_path: Path) -> None:
    samples = samples_of(jpegs(tmp_path, 3))
    with open(tmp_path / ".a.beton.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half")
        other.flush()
        with pytest.raises(UserError, match="another conversion is writing this file"):
            write_records(tmp_path / "a.beton", samples, ["a"], kind="test")
        assert (tmp_path / ".a.beton.partial").read_bytes() == b"half"


def test_a_conversion_does_not_replace_what_another_has_just_written(tmp_path: Path, monkeypatch) -> None:
    """The other one ends after this one has looked for the file, and before it begins to write."""
    samples, path, check = samples_of(jpegs(tmp_path, 2)), tmp_path / "a.beton", writing.check_samples
    monkeypatch.setattr(writing, "check_samples", lambda *given: path.write_bytes(b"theirs") and check(*given))
    with pytest.raises(UserError, match=r"a.beton exists; add --force"):
        write_records(path, samples, ["a"], kind="test")
    assert path.read_bytes() == b"theirs" and not (tmp_path / ".a.beton.partial").exists()


def test_an_interrupt_that_comes_after_the_file_has_its_name(tmp_path: Path, monkeypatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        os.replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.records.writing.os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "a.beton", samples_of(jpegs(tmp_path, 2)), ["a"], kind="test")
    assert len(Records(tmp_path / "a.beton")) == 2


def test_a_lock_on_a_file_that_was_published_meanwhile_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with open(path, "wb") as file:
        path.rename(tmp_path / "a")
        with pytest.raises(UserError, match="another conversion"):
            writing._lock(file, path)
        path.touch()
        with pytest.raises(UserError, match="another conversion"):
            writing._lock(file, path)


def test_the_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_records(tmp_path / "a.beton", samples_of(jpegs(tmp_path, 1)), ["a"], kind="test")
    (tmp_path / "usual").touch()
    assert (tmp_path / "a.beton").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_is_an_error_in_words(tmp_path: Path) -> None:
    code = (
        "import numpy as np, resource\n"
        "from pipelines.errors import UserError\n"
        "from pipelines.records import Sample, write_records\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))\n"
        "samples = [Sample(str(i), 0, np.zeros((500, 500, 3), np.uint8)) for i in range(4)]\n"
        "try:\n"
        f"    write_records({str(tmp_path / 'a.beton')!r}, samples, ['a'], kind='test')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a.beton cannot be written: File too large" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_process_that_cannot_be_started_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a file that cannot be written: for example a folder for temporary files whose name is too long for a socket."""

    def start(process: multiprocessing.Process) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(ForkServerProcess, "start", start)
    samples = [Sample(f"{i}", 0, np.zeros((8, 8, 3), np.uint8)) for i in range(4)]
    with pytest.raises(
        UserError, match=r"no process that reads images can be started \(AF_UNIX path too long\): set a folder"
    ):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test", workers=2)
    assert not list(tmp_path.iterdir())
