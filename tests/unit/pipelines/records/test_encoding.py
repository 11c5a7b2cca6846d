"""How one image is stored: every odd kind of file, what is kept, sizes and limits; and what counts as damage."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from helpers.drawings import drawings, picture
from helpers.odd_files import exif, jpeg, odd_files, packed, png, unpacked, write_odd_files
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from pipelines.augment.geometry import view_box
from pipelines.augment.recipe import Recipe, view_params
from pipelines.errors import UserError
from pipelines.records import encoding, layout, writing
from pipelines.records.encoding import AS_THEY_ARE, Encoding, Note, Stored, damage, jpeg_frame, store_file, stored_size
from pipelines.records.marking import marked
from pipelines.records.reader import Records
from pipelines.records.restarts import lists_segments
from pipelines.records.workers import Sample, Unreadable, encode_sample
from pipelines.records.writing import write_records

needs_libffcv = pytest.mark.skipif(encoding.decoder_name() != "libffcv", reason="FFCV is not installed")
both_decoders = pytest.mark.parametrize(
    "decoder", [pytest.param("libffcv", marks=needs_libffcv), "pillow"], indirect=True
)
BYTES = Encoding(restarts=False)
FILES = odd_files()
STORED = [name for name, file in FILES.items() if file.picture is not None]
PLAIN = FILES["plain.jpg"].data


def named(*fates: str) -> list[str]:
    return [name for name, file in FILES.items() if file.fate in fates]


@pytest.fixture
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with libffcv or, as on a machine without FFCV, with Pillow alone."""
    if request.param == "pillow":
        monkeypatch.setattr(encoding.libffcv, "decoder", lambda: None)
    return request.param


def layers(data: bytes | memoryview) -> set[tuple[int, int]]:
    """Sampling factors of a JPEG's components."""
    return {layer[1:3] for layer in Image.open(io.BytesIO(data)).layer}  # type: ignore[attr-defined]


def is_kept(stored: Stored, data: bytes) -> bool:
    """Whether a file's bytes are stored, with or without restart markers."""
    return stored.payload in (data, marked(data))


# The odd-file matrix


def test_the_matrix_holds_every_fate() -> None:
    counts = {fate: len(named(fate)) for fate in ("kept", "encoded", "reported", "shrunk")}
    assert min(counts.values()) > 0 and sum(counts.values()) == len(FILES) > 60
    pixels = {name: FILES[name].picture for name in STORED}
    turned = np.rot90(pixels["plain.jpg"], 2)  # type: ignore[arg-type]
    assert np.abs(turned.astype(int) - pixels["plain.jpg"]).mean() > 20, "a turned picture is another one"


@both_decoders
@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_shows_the_picture(name: str, decoder: str) -> None:
    """Kept, or a baseline 4:4:4 JPEG; mean difference from the picture drawn: measured at most 3.8 levels."""
    file = FILES[name]
    stored = store_file(file.data, AS_THEY_ARE)
    assert is_kept(stored, file.data) == (file.fate == "kept")
    assert stored._replace(payload=b"") == store_file(file.data, BYTES)._replace(payload=b"")
    assert file.fate != "kept" or store_file(file.data, BYTES).payload == file.data
    assert file.picture is not None and stored.source == layout.hash63(file.data)
    size = file.picture.shape[1], file.picture.shape[0]
    assert (stored.width, stored.height) == (stored.stored_width, stored.stored_height) == size
    found = unpacked(bytes(stored.payload))
    assert found.shape == file.picture.shape
    assert np.abs(found - file.picture).mean() < 4
    if file.fate == "encoded":
        frame = jpeg_frame(bytes(stored.payload))
        assert frame is not None and (frame.marker, frame.precision, frame.components, frame.rgb) == (0xC0, 8, 3, False)
        assert layers(stored.payload) == {(1, 1)} and len(stored.payload) < 5000, "no metadata comes along"


@needs_libffcv
@pytest.mark.parametrize("name", STORED)
def test_libffcv_and_pillow_show_the_same_picture(name: str) -> None:
    """To the bit: both decode with the exact inverse DCT."""
    stored = store_file(FILES[name].data, AS_THEY_ARE)
    found = encoding.libffcv.pixels(bytes(stored.payload), stored.stored_width, stored.stored_height)
    assert found is not None
    np.testing.assert_array_equal(found, unpacked(bytes(stored.payload)))


@pytest.mark.parametrize(("name", "drawing"), list(drawings()))
def test_a_drawing_is_stored_as_it_looks(name: str, drawing: Image.Image) -> None:
    """At quality 95: noise 3.2 levels off on average, all others 2.0 or less, and 20 in a pixel at most."""
    stored = store_file(packed(drawing, "PNG"), AS_THEY_ARE)
    difference = np.abs(unpacked(bytes(stored.payload)) - np.asarray(drawing))
    assert difference.mean() < 4 and difference.max() <= 32, name


@both_decoders
@pytest.mark.parametrize("name", named("reported"))
def test_what_cannot_be_read_is_reported_in_words(tmp_path: Path, name: str, decoder: str) -> None:
    (tmp_path / name).write_bytes(FILES[name].data)
    answer = encode_sample(Sample(name, 0, tmp_path / name), AS_THEY_ARE)
    assert isinstance(answer, Unreadable)
    assert FILES[name].words in answer.reason and "0x7f" not in answer.reason and "\n" not in answer.reason


def test_a_folder_of_odd_files(tmp_path: Path) -> None:
    """All at once, as with `convert.py folder --skip-bad`."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [name for name, file in write_odd_files(folder).items() if file.fate != "shrunk"]
    samples = [Sample(name, 0, folder / name) for name in names]
    skipped = write_records(tmp_path / "odd.beton", samples, ["a"], kind="test", skip_bad=True)
    opened = Records(tmp_path / "odd.beton")
    assert [image.name for image in skipped] == named("reported") == opened.manifest["made"]["skipped"]
    assert [opened.name(i) for i in range(len(opened))] == STORED
    for position, name in enumerate(STORED):
        payload = opened.payload(position).tobytes()
        assert (payload in (FILES[name].data, marked(FILES[name].data))) == (FILES[name].fate == "kept")
        assert damage(opened, position) is None


# What is kept


@needs_libffcv
def test_a_jpeg_with_warnings_is_kept_only_without_libffcv(monkeypatch: pytest.MonkeyPatch) -> None:
    data = PLAIN[:-2] + bytes(range(1, 40)) + PLAIN[-2:]  # extraneous bytes before the end marker
    assert not is_kept(store_file(data, AS_THEY_ARE), data)
    monkeypatch.setattr(encoding.libffcv, "decoder", lambda: None)
    assert store_file(data, AS_THEY_ARE).payload == data


@needs_libffcv
def test_libffcv_is_loaded_without_importing_ffcv() -> None:
    code = "import sys; from pipelines.records import encoding as e; print(e.decoder_name(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "libffcv False\n"


def test_jpeg_frame() -> None:
    assert jpeg_frame(PLAIN) == (0xC0, 8, 40, 60, 3, False)
    assert jpeg_frame(FILES["progressive.jpg"].data) == (0xC2, 8, 40, 60, 3, False)
    assert jpeg_frame(FILES["comment.jpg"].data) == jpeg_frame(PLAIN), "a marker inside a comment is none"
    assert jpeg_frame(b"\xff\xd8\xff\xff\xff" + PLAIN[3:]) == jpeg_frame(PLAIN), "fill bytes"
    for data in (b"", b"\xff\xd8", b"\x89PNG", b"\xff\xd8" + b"\xff" * 50, PLAIN[:160]):
        assert jpeg_frame(data) is None


def test_a_jpeg_marked_as_rgb_is_known() -> None:
    planes = np.moveaxis(np.asarray(picture(16, 16)), 2, 0)
    frames = {
        "adobe": jpeg_frame(jpeg(planes, adobe=0)),
        "names": jpeg_frame(jpeg(planes, names=b"RGB")),
        "ycbcr": jpeg_frame(jpeg(planes, adobe=1)),
        "grey": jpeg_frame(jpeg(planes[:1], adobe=0)),  # as Photoshop writes it: unambiguous
    }
    assert {name: frame is not None and frame.rgb for name, frame in frames.items()} == {
        "adobe": True,
        "names": True,
        "ycbcr": False,
        "grey": False,
    }
    assert store_file(jpeg(planes[:1], adobe=0), BYTES).payload == jpeg(planes[:1], adobe=0)


def test_quality_counts_for_new_encodings_alone() -> None:
    flat = FILES["png-named.JPEG"].data
    sizes = [len(store_file(flat, Encoding(quality=quality)).payload) for quality in (30, 95)]
    assert sizes[0] * 2 < sizes[1]
    assert store_file(PLAIN, Encoding(quality=30)).payload == marked(PLAIN)


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
        ((3, 2), {"short_side": 1}, (1, 1)),  # 1.5, truncated
        ((300, 257), {"short_side": 256}, (298, 256)),  # 298.83
        ((500, 375), {}, (500, 375)),
    ],
)
def test_stored_size(size: tuple[int, int], limits: dict[str, int], expected: tuple[int, int]) -> None:
    assert stored_size(*size, Encoding(**limits)) == expected


@pytest.mark.parametrize("crop", ["resize_crop", "center"])
def test_views_of_a_fixed_short_side_copy_what_is_stored_at_it(crop: Literal["resize_crop", "center"]) -> None:
    """No second resampling for any sides: torchvision's size, to the pixel."""
    params = view_params(Recipe(crop=crop), 0)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(256, 3000, (300, 2)).tolist():
        stored = stored_size(width, height, Encoding(short_side=256))
        x, y, w, h, _ = view_box(params, 1, 2, width, height, *stored)
        assert (w, h) == (224, 224) and 0 <= x <= stored[0] - 224 and 0 <= y <= stored[1] - 224


def test_resizing_keeps_the_original_size_and_ignores_orientation() -> None:
    for name in ("exif-rotated.jpg", "exif-rotated.png"):
        stored = store_file(FILES[name].data, Encoding(short_side=20))
        assert (stored.width, stored.height, stored.stored_width, stored.stored_height) == (60, 40, 30, 20)
        pixels = Image.open(io.BytesIO(FILES[name].data)).resize((30, 20), Image.Resampling.BILINEAR)
        found = Image.open(io.BytesIO(stored.payload))
        assert found.size == (30, 20) and "exif" not in found.info
        assert np.abs(np.asarray(found).astype(int) - np.asarray(pixels)).mean() < 2.5


def test_images_are_shrunk_with_the_filter_of_the_views() -> None:
    """On noise, where filters differ most: Pillow's BILINEAR up to the JPEG coding, bicubic 3 levels off."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 180, 3), np.uint8))
    found = unpacked(bytes(store_file(packed(noise, "PNG"), Encoding(short_side=40, quality=100)).payload))
    off = {
        kind: np.abs(found - np.asarray(noise.resize((60, 40), kind))).mean()
        for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    }
    assert off.pop(Image.Resampling.BILINEAR) < 1.5 and min(off.values()) > 2.5


def test_an_image_within_the_limit_is_kept() -> None:
    assert store_file(PLAIN, Encoding(short_side=40, max_side=60)).payload == marked(PLAIN)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_kept_bytes_keep_their_orientation_tag(orientation: int) -> None:
    data = packed(picture(60, 40), "JPEG", exif=exif(orientation))
    stored = store_file(data, AS_THEY_ARE)
    assert stored.payload == marked(data) and Image.open(io.BytesIO(stored.payload)).getexif() == exif(orientation)
    assert (stored.width, stored.height) == (60, 40)


# Restart markers


@both_decoders
def test_restart_markers_that_change_a_pixel_are_not_stored(monkeypatch: pytest.MonkeyPatch, decoder: str) -> None:
    """Whatever the writer of markers does: its work is decoded and compared, for kept files and for new encodings."""
    other = packed(picture(60, 40, 1), "JPEG")
    png = FILES["png-named.JPEG"].data
    encoded = store_file(png, BYTES).payload
    for wrong in (other, PLAIN[: len(PLAIN) // 2] + PLAIN[-2:], b"no image", None):
        if decoder == "pillow" and wrong == b"no image":
            continue  # Pillow raises, as on a damaged file
        monkeypatch.setattr(encoding, "marked", lambda _, wrong=wrong: wrong)
        assert store_file(PLAIN, AS_THEY_ARE).payload == PLAIN
        assert store_file(png, AS_THEY_ARE).payload == encoded
    monkeypatch.undo()
    assert store_file(png, AS_THEY_ARE).payload == marked(bytes(encoded)) is not None


def test_restart_markers_that_make_a_file_too_large_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PAGE_SIZE", len(PLAIN))
    assert store_file(PLAIN, AS_THEY_ARE).payload == PLAIN


def test_a_list_of_segments_from_elsewhere_is_not_kept() -> None:
    """Another program may have changed the segments since. The source hash is that of the file."""
    data = marked(PLAIN)
    assert data is not None
    for how in (AS_THEY_ARE, BYTES):
        stored = store_file(data, how)
        assert not lists_segments(np.frombuffer(stored.payload, np.uint8)) and stored.source == layout.hash63(data)
        np.testing.assert_array_equal(unpacked(bytes(stored.payload)), unpacked(PLAIN))


# Images that are too large


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_what_fits_no_page_is_stored_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first of 7/8, 49/64 and so on that fits, with the sides of the original kept; at its own size where that fits."""
    monkeypatch.setattr(encoding.layout, "PAGE_SIZE", 20_000)
    image = noise(200, 120)
    for data in (packed(image, "PNG"), packed(image, "JPEG", quality=100, subsampling=0)):
        assert len(data) > 20_000
        stored = store_file(data, AS_THEY_ARE)
        size = (stored.stored_width, stored.stored_height)
        assert (stored.width, stored.height) == (200, 120) and size in [
            (200 * 7**k // 8**k, 120 * 7**k // 8**k) for k in range(1, 5)
        ]
        assert stored.notes == (Note("shrunk"),) and len(stored.payload) <= 20_000
        shown = np.asarray(Image.open(io.BytesIO(data)).resize(size, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(unpacked(bytes(stored.payload)) - shown).mean() < 5
        larger = tuple(side * 8 // 7 for side in size)
        assert len(packed(image.resize(larger), "JPEG", quality=95, subsampling=0)) > 20_000, "no larger than need be"
    smooth = packed(picture(200, 120), "PNG") + bytes(30_000)
    stored = store_file(smooth, AS_THEY_ARE)
    assert (stored.stored_width, stored.stored_height, stored.notes) == (200, 120, ())


def test_an_image_beyond_a_page_of_8_mib(tmp_path: Path) -> None:
    """A real one, with both limits and the backends' decoders as they are."""
    data = packed(noise(2400, 1600), "JPEG", quality=100, subsampling=0)
    assert len(data) > 8_400_000
    (tmp_path / "a.jpg").write_bytes(data)
    write_records(tmp_path / "a.beton", [Sample("a", 0, tmp_path / "a.jpg")], ["any"], kind="test")
    opened = Records(tmp_path / "a.beton")
    assert (opened.widths[0], opened.heights[0]) == (2400, 1600) and damage(opened, 0) is None
    assert opened.sizes[0] <= 8_388_608 and opened.stored_widths[0] == 7 * 2400 // 8


def test_sides_and_pixels_beyond_the_decoders_are_stored_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limits do not refuse an image that becomes small, and do not change for other code."""
    stored = store_file(FILES["wider-than-jpeg.png"].data, AS_THEY_ARE)
    assert (stored.width, stored.stored_width, stored.stored_height) == (66_000, 57_750, 1)
    assert unpacked(bytes(stored.payload)).shape == (1, 57_750, 3)
    monkeypatch.setattr(encoding, "MAX_STORED_PIXELS", 60 * 40 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("plain.jpg", "png-named.JPEG"):
        stored = store_file(FILES[name].data, AS_THEY_ARE)
        assert (stored.stored_width, stored.stored_height, stored.notes) == (52, 35, (Note("shrunk"),))
        stored = store_file(FILES[name].data, Encoding(max_side=59))
        assert (stored.stored_width, stored.notes) == (59, ())
    tiff = packed(picture(60, 40), "TIFF", compression="tiff_lzw")  # Pillow asks again when it decodes one
    assert store_file(tiff, Encoding(max_side=59)).stored_width == 59
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.undo()
    assert (Image.MAX_IMAGE_PIXELS or 0) >= encoding.MAX_STORED_PIXELS, "what is stored, the reference backend opens"


def lying_bmp(width: int, height: int) -> bytes:
    """57 bytes."""
    body = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(3)
    return b"BM" + struct.pack("<IHHI", 57, 0, 0, 54) + body


def test_small_files_with_lying_headers_are_unreadable() -> None:
    wide = png(np.zeros((1, 1), np.uint8), 0, (70_000, 20))
    for data in (lying_bmp(20_000, 20_000), lying_bmp(70_000, 1), wide, b"P6 20000 20000 255\n123"):
        for limits in (AS_THEY_ARE, Encoding(short_side=256)):
            with pytest.raises(encoding.Broken):
                store_file(data, limits)


@pytest.mark.parametrize("stage", ["open", "load", "convert", "resize", "save"])
def test_nothing_that_pillow_raises_ends_a_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whichever step of Pillow raises it, for one image among others; but a fault of the machine does end it."""
    errors = [
        kind("some")
        for kind in (AssertionError, AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError)
        + (OverflowError, RecursionError, RuntimeError, StopIteration, SyntaxError, TypeError, ValueError)
        + (ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)
    ]
    errors.append(UnicodeDecodeError("ascii", b"", 0, 1, "some"))
    where = Image if stage == "open" else PngImageFile if stage == "load" else Image.Image
    original, raised = getattr(where, stage), [OSError(), *errors, MemoryError(), OSError(errno.ENOMEM, "no memory")]

    def failing(*args: object, **options: object) -> object:
        if turn[0] % 2:
            raise raised[turn[0] // 2]
        return original(*args, **options)

    turn = [0]
    (tmp_path / "a.png").write_bytes(packed(picture(30, 20), "PNG"))
    samples = [Sample(str(number), 0, tmp_path / "a.png") for number in range(2 * len(raised))]
    monkeypatch.setattr(where, stage, failing)

    def write(count: int) -> list[Unreadable]:
        turn[0] = 0
        return write_records(
            tmp_path / "a.beton",
            samples[:count],
            ["any"],
            kind="test",
            encoding=Encoding(max_side=25),
            skip_bad=True,
            force=True,
            progress=lambda: turn.__setitem__(0, turn[0] + 1),
        )

    assert [image.name for image in write(2 * len(errors) + 2)] == [
        str(2 * number + 1) for number in range(len(errors) + 1)
    ]
    raised = raised[-2:]
    for _ in range(2):
        with pytest.raises(UserError, match="memory"):
            write(4)
        raised.reverse()


def test_an_image_of_no_pixels_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Image.new("RGB", (0, 5))
    monkeypatch.setattr(Image, "open", lambda _: empty)
    with pytest.raises(encoding.Broken, match="^0x5 pixels$"):
        store_file(b"any", Encoding(short_side=256))


def test_a_forged_size_costs_no_memory() -> None:
    """It is refused by its header, before Pillow or libffcv could reserve 11 GB."""
    frame = PLAIN.index(b"\xff\xc0")
    forged = PLAIN[: frame + 5] + b"\xea\x60\xea\x60" + PLAIN[frame + 9 :]
    for data in (forged, png(np.zeros((1, 1), np.uint8), 0, (60_000, 60_000))):
        with pytest.raises(encoding.Broken, match="60000x60000 pixels, more than the 536870912 that are read"):
            store_file(data, Encoding(short_side=256))


# 16-bit grey


def grey_files(values: np.ndarray) -> dict[str, bytes]:
    """Every form in which Pillow reads 16-bit grey; uint16 values."""
    height, width = values.shape
    big, text = values.astype(">u2"), " ".join(map(str, values.ravel().tolist()))
    return {
        "png": png(values, 0),
        "tiff": packed(Image.fromarray(values), "TIFF"),
        "tiff-big-endian": packed(Image.frombytes("I;16B", (width, height), big.tobytes()), "TIFF"),
        "tiff-compressed": packed(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
        "pgm": b"P5 %d %d 65535\n" % (width, height) + big.tobytes(),
        "pgm-text": f"P2 {width} {height} 65535\n{text}\n".encode(),
    }


RAMP = np.repeat(np.linspace(0, 1, 64), 32).reshape(64, 32)


@pytest.mark.parametrize("bits", [8, 9, 12, 16])
@pytest.mark.parametrize("form", grey_files(RAMP.astype(np.uint16)))
def test_grey_bits_scale_16_bit_grey(form: str, bits: int) -> None:
    values = np.rint(RAMP * ((1 << bits) - 1)).astype(np.uint16)
    data = grey_files(values)[form]
    stored = store_file(data, Encoding(grey_bits=bits))
    assert stored.notes == ()
    assert np.abs(unpacked(bytes(stored.payload))[..., 1] - (values >> (bits - 8))).max() <= 6
    plain = store_file(data, AS_THEY_ARE)
    assert plain.notes == ((Note("dark", bits),) if bits <= 12 else ())
    assert np.abs(unpacked(bytes(plain.payload))[..., 1] - (values >> 8)).max() <= 6
    if bits > 9:
        clipped = store_file(data, Encoding(grey_bits=9))
        assert clipped.notes == (Note("clipped", bits),)
        assert np.abs(unpacked(bytes(clipped.payload))[20:, :, 1] - 255).max() <= 1


@pytest.mark.parametrize("kind", ["P5", "P2"])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_a_pgm_says_its_own_range(kind: str, bits: int) -> None:
    values = np.rint(RAMP * 4095).astype(int)
    body = values.astype(">u2").tobytes() if kind == "P5" else " ".join(map(str, values.ravel().tolist())).encode()
    stored = store_file(f"{kind} 32 64 4095\n".encode() + body, Encoding(grey_bits=bits))
    assert stored.notes == () and np.abs(unpacked(bytes(stored.payload))[..., 1] - (values >> 4)).max() <= 6


def test_only_dark_grey_is_noted() -> None:
    for largest, noted in ((0, False), (1, True), (4095, True), (4096, False), (65535, False)):
        values = np.zeros((4, 4), np.uint16)
        values[1, 2] = largest
        assert bool(store_file(png(values, 0), AS_THEY_ARE).notes) == noted, largest
    deep = np.full((4, 4, 3), 4096, np.uint16)
    for data in (png(deep, 2), png(deep[..., :2], 4), png(np.full((4, 4), 3, np.uint8), 0), PLAIN):
        assert store_file(data, Encoding(grey_bits=9)).notes == store_file(data, AS_THEY_ARE).notes == ()
        assert store_file(data, Encoding(grey_bits=9)).payload == store_file(data, AS_THEY_ARE).payload


def colour_tiff(rgb: np.ndarray) -> bytes:
    """Pillow writes no colour of 16 bits: tags up to byte 98, then the bits of each channel, then uint16[height, width, 3]."""
    height, width = rgb.shape[:2]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 98), (262, 3, 1, 2), (273, 4, 1, 104), (277, 3, 1, 3)]
    tags.append((279, 4, 1, rgb.nbytes))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return head + struct.pack("<HHH", 16, 16, 16) + rgb.astype("<u2").tobytes()


def colour_files(values: np.ndarray) -> dict[str, bytes]:
    """16 bits per channel that Pillow reads as 8; uint16 values[height, width]."""
    rgb, opaque = np.dstack([values] * 3), np.full_like(values, 65535)
    return {
        "png": png(rgb, 2),
        "png-grey-alpha": png(np.dstack([values, opaque]), 4),
        "png-alpha": png(np.dstack([rgb, opaque]), 6),
        "tiff": colour_tiff(rgb),
    }


@pytest.mark.parametrize("bits", [8, 12, 13, 16])
@pytest.mark.parametrize("form", colour_files(RAMP.astype(np.uint16)))
def test_dark_16_bit_colour_is_noted(form: str, bits: int) -> None:
    """Pillow decodes its upper 8 bits alone, so that no option can scale it."""
    values = np.rint(RAMP * ((1 << bits) - 1)).astype(np.uint16)
    stored = store_file(colour_files(values)[form], AS_THEY_ARE)
    assert stored.notes == ((Note("dark colour", bits),) if bits <= 12 else ())
    assert np.abs(unpacked(bytes(stored.payload))[..., 1] - (values >> 8)).max() <= 6


# Damage


def one_record(path: Path, payload: bytes, width: int = 60, height: int = 40, mode: int = layout.MODE_JPEG) -> Records:
    """A record file of one image with right checksums, for any bytes."""
    with writing._new_file(path, 1, force=True) as writer:
        writer.add("a", 0, layout.sample_key("a"), Stored(payload, mode, width, height, width, height, 0))
        writer.finish(["any"], {"kind": "test"})
    return Records(path)


@both_decoders
def test_damage(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "a.beton"
    assert damage(one_record(path, PLAIN), 0) is None
    assert damage(one_record(path, bytes(60 * 40 * 3), mode=layout.MODE_RAW), 0) is None
    for payload in (PLAIN[: len(PLAIN) // 2], b"no image", FILES["12-bit.jpg"].data):
        assert "does not decode it" in (damage(one_record(path, payload), 0) or "")
    opened = one_record(path, PLAIN, width=61)
    assert (damage(opened, 0) or "") in ("libffcv does not decode it", "it decodes to 60x40 pixels, not 61x40")
    data = bytearray(path.read_bytes())
    data[opened.offsets[0] + 300] ^= 4
    path.write_bytes(data)
    assert damage(Records(path), 0) == "its CRC-32 differs"


@needs_libffcv
def test_what_only_pillow_decodes_is_damaged_where_ffcv_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = one_record(tmp_path / "a.beton", PLAIN[:-2] + bytes(range(1, 40)) + PLAIN[-2:])
    assert damage(opened, 0) == "libffcv does not decode it"
    monkeypatch.setattr(encoding.libffcv, "decoder", lambda: None)
    assert damage(opened, 0) is None


# Real images


def test_every_imagenet_sample_is_kept(shared_data: Path) -> None:
    paths = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))[::6]
    assert len(paths) > 40
    for path in paths:
        data = path.read_bytes()
        assert store_file(data, AS_THEY_ARE).payload == marked(data) is not None, os.path.basename(path)
