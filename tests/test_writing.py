"""The writer: what is kept and what encoded anew, byte-identity, atomicity, and how it fails."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines import records, writing
from pipelines.errors import UserError
from pipelines.records import Records
from pipelines.writing import Encoding, Sample, UnreadableImages, jpeg_frame, stored_size, write_records

DEFAULT = Encoding()
needs_libffcv = pytest.mark.skipif(writing.decoder_name() != "libffcv", reason="FFCV is not installed")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with a few shapes, so that JPEG comes close to it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(0.02, 0.1, (3, 3))]
    image = Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(200, 30, 60))
    return image


def packed(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def unpacked(data: bytes | np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB")).astype(int)


def write_one(tmp_path: Path, data: bytes, name: str = "x.jpg", encoding: Encoding = DEFAULT) -> Records:
    """A record file of one image file."""
    source, out = tmp_path / name, tmp_path / "one.beton"
    source.write_bytes(data)
    write_records(out, [Sample(name, 0, source)], ["a"], kind="test", encoding=encoding, force=True)
    opened = Records(out)
    opened.verify(0)
    assert opened.sources[0] == records.hash63(data) and not opened.raw[0]
    return opened


def jpegs(folder: Path, count: int, side: int = 40) -> list[Path]:
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        picture(side + number % 7, side, number).save(path, quality=80)
    return paths


def samples_of(paths: list[Path]) -> list[Sample]:
    return [Sample(f"a/{path.name}", 0, path) for path in paths]


# Files that act when they are opened, in whatever process that is.


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


# Kept or encoded anew


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


KEPT = {
    "plain.jpg": packed(picture(60, 40), "JPEG", quality=70),
    "subsampled.JPEG": packed(picture(61, 39), "JPEG", quality=70, subsampling=2),
    "grey.jpg": packed(picture(60, 40).convert("L"), "JPEG"),
    "exif.jpg": packed(picture(60, 40), "JPEG", exif=exif(6)),
    "one-high.jpg": packed(picture(300, 1), "JPEG"),
    "one-pixel.jpg": packed(picture(1, 1), "JPEG"),
    "trailing.jpg": packed(picture(60, 40), "JPEG") + b"and a note",
    "jpeg.png": packed(picture(60, 40), "JPEG"),
    "comment.jpg": packed(picture(60, 40), "JPEG", comment=b"\xff\xc2\x00\x11 no frame header"),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("decoder", [pytest.param("libffcv", marks=needs_libffcv), "pillow"])
def test_plain_jpegs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoder: str) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(writing, "_libffcv", lambda: None)
    opened = write_one(tmp_path, KEPT[name], name)
    assert opened.payload(0).tobytes() == KEPT[name]
    assert opened.manifest["made"]["decoder"] == decoder
    size = Image.open(io.BytesIO(KEPT[name])).size
    assert (opened.widths[0], opened.heights[0]) == (opened.stored_widths[0], opened.stored_heights[0]) == size


def odd(name: str) -> tuple[bytes, np.ndarray]:
    """File bytes that must be encoded anew, and the RGB pixels they stand for."""
    image = picture(60, 40)
    rgb = np.asarray(image).astype(int)
    if name == "progressive.jpg":
        data = packed(image, "JPEG", progressive=True)
        return data, unpacked(data)
    if name == "cmyk.jpg":
        data = packed(image.convert("CMYK"), "JPEG")
        return data, unpacked(data)
    if name == "png.JPEG":
        return packed(image, "PNG"), rgb
    if name == "rgba.png":
        transparent = image.copy()
        transparent.putalpha(Image.linear_gradient("L").resize(image.size))
        return packed(transparent, "PNG"), rgb
    if name == "palette.png":
        data = packed(image.quantize(256, dither=Image.Dither.NONE), "PNG", transparency=3)
        return data, unpacked(data)
    grey = np.asarray(image.convert("L"))
    if name == "16bit.png":
        deep = grey.astype(np.uint16) * 256 + 99
        return packed(Image.fromarray(deep), "PNG"), np.stack([grey] * 3, -1).astype(int)
    if name == "16bit.tif":
        deep = grey.astype(np.uint16) * 256 + 99
        return packed(Image.fromarray(deep), "TIFF"), np.stack([grey] * 3, -1).astype(int)
    if name == "one-high.png":
        return packed(picture(300, 1), "PNG"), np.asarray(picture(300, 1)).astype(int)
    assert name == "animated.gif"
    data = packed(
        image.quantize(256, dither=Image.Dither.NONE), "GIF", save_all=True, append_images=[image.rotate(180)]
    )
    return data, unpacked(data)


ODD = "progressive.jpg cmyk.jpg png.JPEG rgba.png palette.png 16bit.png 16bit.tif one-high.png animated.gif"


@pytest.mark.parametrize("name", ODD.split())
def test_odd_images_are_encoded_anew(tmp_path: Path, name: str) -> None:
    data, pixels = odd(name)
    opened = write_one(tmp_path, data, name)
    stored = opened.payload(0).tobytes()
    assert stored != data
    frame = jpeg_frame(stored)
    assert frame is not None and (frame.marker, frame.precision, frame.components) == (0xC0, 8, 3)
    assert {layer[1:3] for layer in Image.open(io.BytesIO(stored)).layer} == {(1, 1)}, "4:4:4"  # type: ignore
    assert unpacked(stored).shape == pixels.shape
    assert np.abs(unpacked(stored) - pixels).mean() < 2.5
    assert (opened.widths[0], opened.heights[0]) == (opened.stored_widths[0], opened.stored_heights[0])


@needs_libffcv
def test_a_jpeg_with_warnings_is_kept_only_without_libffcv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(picture(60, 40), "JPEG")
    data = data[:-2] + bytes(range(1, 40)) + data[-2:]  # extraneous bytes before the end marker
    assert write_one(tmp_path, data).payload(0).tobytes() != data
    monkeypatch.setattr(writing, "_libffcv", lambda: None)
    assert write_one(tmp_path, data).payload(0).tobytes() == data


@needs_libffcv
def test_libffcv_is_loaded_without_importing_ffcv() -> None:
    code = "import sys; from pipelines import writing as w; print(w.decoder_name(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "libffcv False\n"


def test_jpeg_frame() -> None:
    plain, progressive = jpeg_frame(KEPT["plain.jpg"]), jpeg_frame(odd("progressive.jpg")[0])
    assert plain == (0xC0, 8, 40, 60, 3)
    assert progressive == (0xC2, 8, 40, 60, 3)
    assert jpeg_frame(KEPT["comment.jpg"]) == plain, "a marker inside a comment is none"
    assert jpeg_frame(b"\xff\xd8\xff\xff\xff" + KEPT["plain.jpg"][3:]) == plain, "fill bytes"
    for data in (b"", b"\xff\xd8", b"\x89PNG", b"\xff\xd8" + b"\xff" * 50, KEPT["plain.jpg"][:160]):
        assert jpeg_frame(data) is None


def test_quality_counts_for_new_encodings_alone(tmp_path: Path) -> None:
    png = odd("png.JPEG")[0]
    sizes = [int(write_one(tmp_path, png, encoding=Encoding(quality=q)).sizes[0]) for q in (30, 95)]
    assert sizes[0] * 2 < sizes[1]
    kept = write_one(tmp_path, KEPT["plain.jpg"], encoding=Encoding(quality=30))
    assert kept.payload(0).tobytes() == KEPT["plain.jpg"]
    assert kept.manifest["made"]["encoding"] == {"short_side": None, "max_side": None, "quality": 30}


# Sizes


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((500, 375), {"short_side": 256}, (341, 256)),
        ((375, 500), {"short_side": 256}, (256, 341)),
        ((500, 375), {"short_side": 400}, (500, 375)),
        ((500, 375), {"max_side": 256}, (256, 192)),
        ((500, 375), {"short_side": 256, "max_side": 300}, (300, 225)),
        ((500, 375), {"short_side": 100, "max_side": 300}, (133, 100)),
        ((1000, 1), {"max_side": 10}, (10, 1)),
        ((1000, 1), {"short_side": 256}, (1000, 1)),
        ((3, 2), {"short_side": 1}, (2, 1)),  # 1.5 rounds up
        ((500, 375), {}, (500, 375)),
    ],
)
def test_stored_size(size: tuple[int, int], limits: dict[str, int], expected: tuple[int, int]) -> None:
    assert stored_size(*size, Encoding(**limits)) == expected


def test_resizing_keeps_the_original_size_and_ignores_orientation(tmp_path: Path) -> None:
    opened = write_one(tmp_path, KEPT["exif.jpg"], encoding=Encoding(short_side=20))
    assert (opened.widths[0], opened.heights[0]) == (60, 40)
    assert (opened.stored_widths[0], opened.stored_heights[0]) == (30, 20)
    pixels = Image.open(io.BytesIO(KEPT["exif.jpg"])).resize((30, 20), Image.Resampling.BICUBIC)
    stored = Image.open(io.BytesIO(opened.payload(0).tobytes()))
    assert stored.size == (30, 20) and "exif" not in stored.info
    assert np.abs(np.asarray(stored).astype(int) - np.asarray(pixels)).mean() < 2.5


def test_an_image_within_the_limit_is_kept(tmp_path: Path) -> None:
    opened = write_one(tmp_path, KEPT["plain.jpg"], encoding=Encoding(short_side=40, max_side=60))
    assert opened.payload(0).tobytes() == KEPT["plain.jpg"]


def test_images_that_fit_no_page_ask_for_max_side(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2100, 2100, 3), np.uint8)
    wide = packed(Image.new("RGB", (66_000, 1)), "PNG")
    for data in (packed(Image.fromarray(noise), "BMP"), wide):
        with pytest.raises(UserError, match=r"^x\.jpg: .*--max-side"):
            write_one(tmp_path, data)
        assert os.listdir(tmp_path) == ["x.jpg"]
    assert write_one(tmp_path, wide, encoding=Encoding(max_side=660)).stored_widths[0] == 660


def test_arrays(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    with pytest.raises(UserError, match="a: 1700x1700 raw pixels do not fit a page"):
        write_records(out, [Sample("a", 0, np.zeros((1700, 1700, 3), np.uint8))], ["a"], kind="test")
    with pytest.raises(RuntimeError, match="while converting a"):
        write_records(out, [Sample("a", 0, np.zeros((4, 4), np.uint8))], ["a"], kind="test")
    mixed = [Sample("a", 0, np.zeros((4, 4, 3), np.uint8)), Sample("b", 0, "b.jpg")]
    with pytest.raises(ValueError, match="either files or arrays"):
        write_records(out, mixed, ["a"], kind="test")
    assert os.listdir(tmp_path) == []


# Unreadable images


def bad_files(folder: Path) -> list[Path]:
    plain, png = KEPT["plain.jpg"], packed(picture(60, 40), "PNG")
    contents = {
        "bad-empty.jpg": b"",
        "bad-text.jpg": b"this is no image",
        "bad-truncated.jpg": plain[: len(plain) // 2],
        "bad-truncated.png": png[: len(png) // 2],
        "bad-float.tif": packed(Image.new("F", (5, 5)), "TIFF"),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents] + [folder / "bad-missing.jpg"]


@pytest.mark.parametrize("decoder", [pytest.param("libffcv", marks=needs_libffcv), "pillow"])
def test_unreadable_images_fail_or_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(writing, "_libffcv", lambda: None)
    images, out = tmp_path / "images", tmp_path / "out" / "a.beton"
    images.mkdir()
    bad = bad_files(images)
    good = jpegs(images, 6)
    mixed = samples_of([path for pair in zip(bad, good, strict=True) for path in pair])
    with pytest.raises(UnreadableImages, match=r"^6 of 12 images cannot be read, first a/bad-.*--skip-bad") as caught:
        write_records(out, mixed, ["a"], kind="test")
    reasons = {image.name: image.reason for image in caught.value.images}
    assert list(reasons) == [f"a/{path.name}" for path in bad]
    assert reasons["a/bad-empty.jpg"] == "empty file"
    assert reasons["a/bad-text.jpg"] == "no image format that Pillow knows"
    assert "truncated" in reasons["a/bad-truncated.jpg"].lower() and "mode F" in reasons["a/bad-float.tif"]
    assert reasons["a/bad-missing.jpg"] == "no such file or directory"
    assert os.listdir(out.parent) == []

    skipped = write_records(out, mixed, ["a"], kind="test", skip_bad=True)
    assert skipped == caught.value.images
    opened = Records(out)
    assert [opened.name(position) for position in range(6)] == [f"a/{path.name}" for path in good]
    assert opened.manifest["made"]["skipped"] == list(reasons)
    assert opened.payload(5).tobytes() == good[5].read_bytes()


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    samples = [Sample("b.jpg", 0, tmp_path / "b.jpg"), Sample("c.jpg", 0, tmp_path / "c.jpg")]
    with pytest.raises(UnreadableImages, match="2 of 2 images cannot be read, .*check the folder"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test", skip_bad=True)


# Names and labels


def test_two_images_of_one_name_are_both_named(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    samples = [Sample(name, 0, pixels) for name in ("a/1", "a/2", "a/3", "a/2")]
    with pytest.raises(UserError, match=r"a/2 \(image 2\) and a/2 \(image 4\)"):
        write_records(tmp_path / "a.beton", samples, ["a"], kind="test")


def test_two_names_of_one_key_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "sample_key", len)
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


# The same bytes, whoever writes them


def test_bytes_do_not_depend_on_the_workers_or_their_haste(tmp_path: Path) -> None:
    paths = jpegs(tmp_path, 70)
    (tmp_path / "0003.jpg").write_bytes(odd("16bit.png")[0])
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
    bound = 2 * writing.CHUNKS_PER_WORKER * writing.CHUNK
    assert writing.CHUNK < opened_before_first[0] < bound < 400
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
    """Kills its process in the middle of the answer, which is larger than a pipe while nobody reads."""

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
    with pytest.raises(UserError, match=r"0000\.jpg/b\.beton cannot be written: "):
        write_records(paths[0] / "b.beton", samples_of(paths), ["a"], kind="test")


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
        "from pipelines.writing import Sample, write_records\n"
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


# The stock FFCV Loader

STOCK_LOADER = """
import sys
import numpy as np
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption

raw, jpeg, out = sys.argv[1:]
found = {}
for os_cache in (True, False):
    loaders = {
        "raw": Loader(raw, 5, 1, os_cache, drop_last=False),
        "jpeg": Loader(
            jpeg, 5, 1, os_cache, drop_last=False,
            pipelines={"image": [CenterCropRGBImageDecoder((48, 48), ratio=1.0)],
                       "key": None, "width": None, "height": None, "source": None, "crc": None},
        ),
    }
    for kind, loader in loaders.items():
        batches = [[np.array(column) for column in batch] for batch in loader]
        names = loader.reader.field_names if kind == "raw" else ["image", "label"]
        for name, column in zip(names, zip(*batches)):
            found[f"{kind}-{os_cache}-{name}"] = np.concatenate(column)
np.savez(out, **found)
"""


@needs_libffcv
def test_the_stock_ffcv_loader_reads_our_files(tmp_path: Path) -> None:
    """In a process of its own: FFCV sets torch to one thread, and a fault in its threads hangs the caller."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (13, 800, 900, 3), np.uint8)  # 2 MB each, three fit a page
    samples = [Sample(f"r{number}", number % 4, array) for number, array in enumerate(arrays)]
    write_records(tmp_path / "raw.beton", samples, list("abcd"), kind="test")
    files = [tmp_path / f"{number}.jpg" for number in range(13)]
    for number, file in enumerate(files):
        image = picture(48, 48, number)
        (image.convert("L") if number == 4 else image).save(file, quality=90)
    samples = [Sample(file.name, number % 4, file) for number, file in enumerate(files)]
    write_records(tmp_path / "jpeg.beton", samples, list("abcd"), kind="test")

    paths = [str(tmp_path / name) for name in ("raw.beton", "jpeg.beton", "found.npz")]
    subprocess.run([sys.executable, "-c", STOCK_LOADER, *paths], check=True, timeout=300)
    found = np.load(tmp_path / "found.npz")
    raw, jpeg = Records(tmp_path / "raw.beton"), Records(tmp_path / "jpeg.beton")
    assert len(set(raw.offsets // records.PAGE_SIZE)) == 5
    for os_cache in (True, False):
        assert (found[f"raw-{os_cache}-image"] == arrays).all()
        columns = {"label": raw.labels, "key": raw.keys, "width": raw.widths, "height": raw.heights}
        columns |= {"source": raw.sources, "crc": raw.crcs}
        for name, column in columns.items():
            assert (found[f"raw-{os_cache}-{name}"].squeeze(1) == column).all(), name
        assert (found[f"jpeg-{os_cache}-label"].squeeze(1) == jpeg.labels).all()
        for position, pixels in enumerate(found[f"jpeg-{os_cache}-image"]):
            assert np.abs(pixels - unpacked(jpeg.payload(position))).mean() < 2, position
