"""One image file of every odd kind found in real data sets, generated here, and what conversion must do with each.

`write_odd_files(folder)` writes them all. Every picture is known without decoding the file, so a decoder that turns, inverts
or mixes up something is caught. Pillow writes what it can; the JPEGs that it cannot write come from the small encoder below
(baseline, extended and lossless; any components, sampling factors and precision).

`many_odd_files()` has over 200 more, whose fate is what Pillow makes of them: drawings that JPEG finds hard, at every quality and
sampling, every mode of the other formats, cut and lying files. Line art and halftones show what smooth pictures hide.
"""

import base64
import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from helpers.drawings import checkerboard, halftone, line_art, noise, picture, text
from PIL import Image


class OddFile(NamedTuple):
    """A file's bytes and its fate.

    kept: stored as it is, but for restart markers. encoded: decoded, and stored as a new JPEG. reported: cannot be read, listed
    with a reason. shrunk: too large for a record or for decoders, stored smaller.
    """

    data: bytes
    fate: Literal["kept", "encoded", "reported", "shrunk"]
    picture: np.ndarray | None = (
        None  # uint8[height, width, 3] that the stored image must show, within a few grey levels
    )
    words: str = ""  # of the reason, for files that cannot be read


def packed(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def unpacked(data: bytes | np.ndarray) -> np.ndarray:
    """RGB as Pillow decodes it, int[height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB")).astype(int)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# A JPEG encoder (ITU T.81). One table of each kind, with codes of one length: 5 bits for DC, 8 for AC.

DCT = np.array(
    [[math.sqrt((1 if u else 0.5) / 4) * math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
)
ZIGZAG = sorted(np.ndindex(8, 8), key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]))
AC_SYMBOLS = [0x00, 0xF0] + [run << 4 | size for run in range(16) for size in range(1, 15)]
HUFFMAN = (
    bytes([0, 0, 0, 0, 0, 16, *[0] * 11, *range(16)]),
    bytes([0x10, *[0] * 7, len(AC_SYMBOLS), *[0] * 8, *AC_SYMBOLS]),
)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def entropy_coded(bits: str) -> bytes:
    """Bytes of the bits: padded with ones, and a 0 byte stuffed after each 255."""
    bits += "1" * (-len(bits) % 8)
    return int("1" + bits, 2).to_bytes(len(bits) // 8 + 1)[1:].replace(b"\xff", b"\xff\0")


def number_bits(value: int) -> tuple[int, str]:
    """The category of a value, and the bits that follow its code."""
    size = abs(value).bit_length()
    return size, format(value if value > 0 else value + (1 << size) - 1, f"0{size}b") if size else ""


def difference_bits(value: int) -> str:
    size, bits = number_bits(value)
    return format(size, "05b") + bits


def block_bits(coefficients: Sequence[int], before: int) -> str:
    """One 8 x 8 block in zigzag order; `before` is the DC coefficient of the component's last block."""
    parts, run = [difference_bits(coefficients[0] - before)], 0
    for value in coefficients[1:]:
        if not value:
            run += 1
            continue
        parts += [format(AC_SYMBOLS.index(0xF0), "08b")] * (run // 16)
        size, bits = number_bits(value)
        parts.append(format(AC_SYMBOLS.index(run % 16 << 4 | size), "08b") + bits)
        run = 0
    return "".join(parts) + (format(AC_SYMBOLS.index(0x00), "08b") if run else "")


def quantised(
    plane: np.ndarray, across: int, down: int, repeat: tuple[int, int], precision: int, step: int
) -> np.ndarray:
    """Coefficients int[blocks down, blocks across, 64] of a plane made smaller by `repeat` (down, across)."""
    height, width = down * 8 * repeat[0], across * 8 * repeat[1]
    padded = np.pad(plane.astype(float), ((0, height - plane.shape[0]), (0, width - plane.shape[1])), "edge")
    small = padded.reshape(down * 8, repeat[0], across * 8, repeat[1]).mean((1, 3)) - (1 << precision - 1)
    blocks = small.reshape(down, 8, across, 8).swapaxes(1, 2)
    coefficients = np.rint(DCT @ blocks @ DCT.T / step).astype(int)
    return np.stack([coefficients[..., row, column] for row, column in ZIGZAG], -1)


def jpeg(
    planes: Sequence[np.ndarray] | np.ndarray,
    factors: Sequence[tuple[int, int]] | None = None,
    *,
    marker: int = 0xC0,
    precision: int = 8,
    restart: int = 0,
    names: bytes = b"\1\2\3\4",
    adobe: int | None = None,
) -> bytes:
    """A JPEG of full-size planes [height, width].

    factors: (horizontal, vertical) sampling of each. restart: blocks of the scan (MCUs) between restart markers.
    names: the components' identifiers. adobe: the colour transform of an Adobe segment (0 none, 1 YCbCr, 2 YCCK).
    """
    factors, step = factors or [(1, 1)] * len(planes), 4 << precision - 8
    height, width = planes[0].shape
    across_max, down_max = (max(side) for side in zip(*factors, strict=True))
    across, down = -(-width // (8 * across_max)), -(-height // (8 * down_max))
    blocks = [
        quantised(plane, across * h, down * v, (down_max // v, across_max // h), precision, step)
        for plane, (h, v) in zip(planes, factors, strict=True)
    ]
    frame = struct.pack(">BHHB", precision, height, width, len(planes))
    frame += b"".join(bytes([name, h << 4 | v, 0]) for name, (h, v) in zip(names, factors, strict=False))
    scan = bytes([len(planes)]) + b"".join(bytes([name, 0]) for name in names[: len(planes)]) + bytes([0, 63, 0])
    head = b"\xff\xd8" + (b"" if adobe is None else segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([adobe])))
    head += (
        segment(0xDB, bytes([0] + [step] * 64)) + segment(marker, frame) + b"".join(segment(0xC4, h) for h in HUFFMAN)
    )
    head += segment(0xDD, struct.pack(">H", restart)) + segment(0xDA, scan)
    parts, bits, before = [head], "", [0] * len(planes)
    for number, (row, column) in enumerate(np.ndindex(down, across)):
        if restart and number and number % restart == 0:
            parts += [entropy_coded(bits), bytes([0xFF, 0xD0 + (number // restart - 1) % 8])]
            bits, before = "", [0] * len(planes)
        for component, (h, v) in enumerate(factors):
            for y, x in np.ndindex(v, h):
                coefficients = blocks[component][row * v + y, column * h + x].tolist()
                bits += block_bits(coefficients, before[component])
                before[component] = coefficients[0]
    return b"".join(parts) + entropy_coded(bits) + b"\xff\xd9"


def lossless_jpeg(plane: np.ndarray) -> bytes:
    """A lossless grey JPEG (SOF3), each pixel from its left neighbour."""
    height, width = plane.shape
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    scan = bytes([1, 1, 0, 1, 0, 0])
    left = np.empty((height, width), int)
    left[:, 1:], left[1:, 0], left[0, 0] = plane[:, :-1], plane[:-1, 0], 128
    bits = "".join(difference_bits(value) for value in (plane - left).ravel().tolist())
    head = b"\xff\xd8" + segment(0xC3, frame) + b"".join(segment(0xC4, table) for table in HUFFMAN)
    return head + segment(0xDA, scan) + entropy_coded(bits) + b"\xff\xd9"


# 32 x 24 pixels of 6 * row + 3 * column in arithmetic coding, which needs a larger encoder: made by libjpeg-turbo, quality 80.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8t"
    "MC0oMCUoKSj/yQALCAAYACABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDXHDyEs4fOQa1B4JFzV4OmR1kAb9tzx5SH6OxkELDRwHXFyHEcau3/2Q=="
)


# PNG with 16 bits, which Pillow does not write for colour images


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(pixels: np.ndarray, colour: int, size: tuple[int, int] | None = None, *, interlaced: bool = False) -> bytes:
    """A PNG of uint8 or uint16 pixels; `colour` is PNG's colour type; `size` forges the dimensions in the header."""
    height, width = pixels.shape[:2]
    big = pixels.astype(f">u{pixels.itemsize}")
    header = struct.pack(">IIBBBBB", *(size or (width, height)), 8 * pixels.itemsize, colour, 0, 0, interlaced)
    passes = [big[y::down, x::across] for y, x, down, across in ADAM7] if interlaced else [big]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# The matrix


def rgb_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def kept_files(image: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Name, bytes and picture of files that are stored as they are: JPEGs that every backend decodes alike."""
    grey, ycc = image.convert("L"), np.moveaxis(np.asarray(image.convert("YCbCr")), 2, 0)
    yield "plain.jpg", packed(image, "JPEG", quality=90), image
    yield "not-subsampled.jpg", packed(image, "JPEG", quality=90, subsampling=0), image
    yield "grey.JPEG", packed(grey, "JPEG", quality=90), grey
    yield "exif-rotated.jpg", packed(image, "JPEG", quality=90, exif=exif(6)), image
    yield "exif-upside-down.jpg", packed(image, "JPEG", quality=90, exif=exif(3)), image
    yield "comment.jpg", packed(image, "JPEG", quality=90, comment=b"\xff\xc2\x00\x11 no frame header"), image
    yield "restart.jpg", packed(image, "JPEG", quality=90, restart_marker_blocks=3), image
    yield "trailing-garbage.jpg", packed(image, "JPEG", quality=90) + b"and a note", image
    twice = packed(image, "MPO", quality=90, save_all=True, append_images=[image.rotate(180)])
    yield "two-pictures.jpg", twice, image
    yield "jpeg-named.png", packed(image, "JPEG", quality=90), image
    for width, height in ((300, 1), (1, 300), (1, 1)):
        yield f"{width}x{height}.jpg", packed(picture(width, height), "JPEG", quality=95), picture(width, height)
    yield "422.jpg", jpeg(ycc, [(2, 1), (1, 1), (1, 1)]), image
    yield "440.jpg", jpeg(ycc, [(1, 2), (1, 1), (1, 1)]), image
    yield "411.jpg", jpeg(ycc, [(4, 1), (1, 1), (1, 1)]), image
    yield "410.jpg", jpeg(ycc, [(4, 2), (1, 1), (1, 1)]), image
    yield "chroma-each-its-own.jpg", jpeg(ycc, [(2, 2), (2, 1), (1, 2)]), image
    yield "restart-420.jpg", jpeg(ycc, [(2, 2), (1, 1), (1, 1)], restart=2), image
    yield "extended-sequential.jpg", jpeg(ycc, marker=0xC1), image
    yield "names-from-0.jpg", jpeg(ycc, names=b"\0\1\2"), image


def encoded_files(image: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Name, bytes and picture of files that must be decoded and encoded again."""
    grey, palette = image.convert("L"), image.quantize(256, dither=Image.Dither.NONE)
    rgb = np.asarray(image)
    planes, alpha = np.moveaxis(rgb, 2, 0), Image.linear_gradient("L").resize(image.size)
    no_ink, ycck = (
        np.full_like(planes[0], 255),
        np.moveaxis(np.asarray(Image.fromarray(255 - rgb).convert("YCbCr")), 2, 0),
    )
    yield "progressive.jpg", packed(image, "JPEG", quality=90, progressive=True), image
    yield "cmyk-adobe.jpg", packed(image.convert("CMYK"), "JPEG", quality=90), image
    yield "cmyk-unmarked.jpg", jpeg([*planes, no_ink]), image
    yield "ycck.jpg", jpeg([*ycck, no_ink], adobe=2), image
    yield "rgb-adobe.jpg", jpeg(planes, adobe=0), image
    yield "rgb-named.jpg", jpeg(planes, names=b"RGB"), image
    ramp = Image.fromarray(np.add.outer(6 * np.arange(24), 3 * np.arange(32)).astype(np.uint8))
    yield "arithmetic.jpg", ARITHMETIC, ramp
    yield "lossless.jpg", lossless_jpeg(np.asarray(grey)), grey
    yield "png-named.JPEG", packed(image, "PNG"), image
    yield "palette.png", packed(palette, "PNG"), palette
    yield "palette-transparent.png", packed(palette, "PNG", transparency=3), palette
    transparent = image.copy()
    transparent.putalpha(alpha)
    yield "rgba.png", packed(transparent, "PNG"), image
    yield "grey-alpha.png", packed(Image.merge("LA", [grey, alpha]), "PNG"), grey
    yield "bilevel.png", packed(grey.convert("1"), "PNG"), grey.convert("1")
    yield "exif-rotated.png", packed(image, "PNG", exif=exif(6)), image
    yield "300x1.png", packed(picture(300, 1), "PNG"), picture(300, 1)
    deep_grey, deep = (np.asarray(some).astype(np.uint16) * 256 + 99 for some in (grey, image))
    deep_alpha = np.asarray(alpha).astype(np.uint16) * 257
    yield "grey-16.png", png(deep_grey, 0), grey
    yield "rgb-16.png", png(deep, 2), image
    yield "grey-alpha-16.png", png(np.dstack([deep_grey, deep_alpha]), 4), grey
    yield "rgba-16.png", png(np.dstack([deep, deep_alpha]), 6), image
    yield "grey-16.tif", packed(Image.fromarray(deep_grey), "TIFF"), grey
    yield "grey-16.pgm", b"P5 %d %d 65535\n" % image.size + deep_grey.astype(">u2").tobytes(), grey
    turned = [palette.rotate(180)]
    yield (
        "animated.gif",
        packed(palette, "GIF", save_all=True, append_images=turned, comment=b"long " * 15_000),
        palette,
    )
    yield "plain.webp", packed(image, "WEBP", quality=90), image
    yield "plain.bmp", packed(image, "BMP"), image


def reported_files(image: Image.Image) -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and words of the report for files that cannot be read."""
    plain, progressive = packed(image, "JPEG"), packed(image, "JPEG", progressive=True)
    flat_png, ycc = packed(image, "PNG"), np.moveaxis(np.asarray(image.convert("YCbCr")), 2, 0)
    unknown = "no image format that Pillow knows"
    yield "empty.jpg", b"", "empty file"
    yield "zeros.jpg", bytes(5000), unknown
    yield "text.jpg", b"<html>404</html>", unknown
    yield "program.jpg", packed(image, "EPS"), "EPS is a program"
    yield "leading-garbage.jpg", b"\0\0" + plain, unknown
    yield "truncated.jpg", plain[: len(plain) // 2], "Truncated File Read"
    yield "last-bytes-gone.jpg", plain[:-2], "truncated"
    yield "head-alone.jpg", plain[: plain.index(b"\xff\xc0")], unknown
    yield "truncated-progressive.jpg", progressive[: len(progressive) // 2], "truncated"
    yield "truncated.png", flat_png[: len(flat_png) // 2], "truncated"
    yield "12-bit.jpg", jpeg(ycc.astype(int) * 16, marker=0xC1, precision=12), "3 components of 12 bits"
    yield "two-components.jpg", jpeg(ycc[:2]), "2 components of 8 bits"
    frame = plain.index(b"\xff\xc0")
    yield "no-height.jpg", plain[: frame + 5] + b"\0\0" + plain[frame + 7 :], f"{image.width}x0 pixels"
    yield "float.tif", packed(Image.new("F", (5, 5)), "TIFF"), "mode F"
    yield "grey-32.tif", packed(Image.new("I", (5, 5)), "TIFF"), "mode I"
    yield "forged-size.png", png(np.zeros((1, 1), np.uint8), 0, (60_000, 60_000)), "60000x60000 pixels, more than"


@cache
def odd_files() -> dict[str, OddFile]:
    """Every file by name."""
    image = picture(60, 40)
    files = {name: OddFile(data, "kept", rgb_of(shown)) for name, data, shown in kept_files(image)}
    files |= {name: OddFile(data, "encoded", rgb_of(shown)) for name, data, shown in encoded_files(image)}
    files |= {name: OddFile(data, "reported", words=words) for name, data, words in reported_files(image)}
    wide = packed(Image.new("RGB", (66_000, 1)), "PNG")
    files["wider-than-jpeg.png"] = OddFile(wide, "shrunk")
    return files


def write_odd_files(folder: Path) -> dict[str, OddFile]:
    """Write every file into a folder; returns, by name, what conversion must do with it."""
    for name, file in odd_files().items():
        (folder / name).write_bytes(file.data)
    return odd_files()


# Many more


CONTENTS = {
    "smooth": picture,
    "line-art": line_art,
    "text": text,
    "halftone": halftone,
    "checkerboard": checkerboard,
    "noise": noise,
}
SIDES = (96, 72)  # of nearly all; not multiples of 16, so that the last blocks are padded


def many_jpegs(name: str, image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """JPEGs of one picture."""
    for quality in (75, 85, 90, 95, 98, 100):
        for sampling, factors in enumerate(("444", "422", "420")):
            yield f"{name}-q{quality}-{factors}.jpg", packed(image, "JPEG", quality=quality, subsampling=sampling)
    yield f"{name}-grey.jpg", packed(image.convert("L"), "JPEG", quality=98)
    yield f"{name}-progressive.jpg", packed(image, "JPEG", quality=95, progressive=True, subsampling=0)
    yield f"{name}-restart.jpg", packed(image, "JPEG", quality=98, restart_marker_rows=1)
    yield f"{name}-cmyk.jpg", packed(image.convert("CMYK"), "JPEG", quality=95)
    rgb = np.moveaxis(np.asarray(image), 2, 0)
    yield f"{name}-rgb-adobe.jpg", jpeg(rgb, adobe=0)
    ycck = np.moveaxis(np.asarray(Image.fromarray(255 - np.asarray(image)).convert("YCbCr")), 2, 0)
    yield f"{name}-ycck.jpg", jpeg([*ycck, np.full_like(rgb[0], 255)], adobe=2)


def many_others(name: str, image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Other formats of one picture."""
    grey, pixels = np.asarray(image.convert("L")), np.asarray(image)
    deep = grey.astype(np.uint16) * 257
    yield f"{name}-interlaced.png", png(pixels, 2, interlaced=True)
    yield f"{name}-grey-16-interlaced.png", png(deep, 0, interlaced=True)
    yield f"{name}-rgb-16-interlaced.png", png(pixels.astype(np.uint16) * 257, 2, interlaced=True)
    yield f"{name}-lossless.webp", packed(image, "WEBP", lossless=True)
    yield f"{name}-lossy.webp", packed(image, "WEBP", quality=80)
    yield f"{name}.gif", packed(image, "GIF")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"{name}-{compression}.tif", packed(image, "TIFF", compression=compression)


def all_modes(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Every mode that each format can hold."""
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "GIF": ("1", "L", "P", "RGBA"),
        "WEBP": ("L", "P", "RGB", "RGBA"),
        "PPM": ("1", "L", "RGB"),
    }
    for form, names in modes.items():
        for mode in names:
            yield f"mode-{mode}.{form.lower()}", packed(image.convert(mode), form)
    for bits in (1, 2, 4):
        yield f"palette-{bits}.png", packed(image.quantize(1 << bits), "PNG", bits=bits)
    for orientation in range(1, 9):
        yield f"orientation-{orientation}.jpg", packed(image, "JPEG", quality=98, exif=exif(orientation))
    yield "pages.tif", packed(image, "TIFF", save_all=True, append_images=[image.rotate(180)])


def cut_and_lying(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Files that end early, go on after their end, or promise what they do not hold."""
    for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        data = packed(image, form)
        for eighths in (1, 4, 7):
            yield f"cut-{eighths}.{form.lower()}", data[: len(data) * eighths // 8]
        yield f"garbage-after.{form.lower()}", data + b"garbage" * 50
    body = struct.pack("<IiiHHIIiiII", 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "lying.bmp", b"BM" + struct.pack("<IHHI", 57, 0, 0, 54) + body + bytes(3)
    yield "lying.ppm", b"P6 9000 9000 255\n123"
    yield "lying.png", png(np.zeros((1, 1), np.uint8), 0, (9000, 9000))
    yield "lying-wide.png", png(np.zeros((1, 1), np.uint8), 0, (70_000, 1))
    gif = packed(image, "GIF")
    yield "lying.gif", gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:]


def thin_and_large() -> Iterator[tuple[str, bytes]]:
    for width, height in ((1, 500), (500, 1), (2, 3), (1, 1), (17, 16)):
        for form in ("JPEG", "PNG"):
            yield f"{width}x{height}.{form.lower()}", packed(picture(width, height), form)
    yield "large.jpg", packed(noise(2400, 1600), "JPEG", quality=100, subsampling=0)


@cache
def many_odd_files() -> dict[str, bytes]:
    """Over 200 files by name."""
    files: dict[str, bytes] = {}
    for name, draw in CONTENTS.items():
        image = draw(*SIDES)
        files |= {**dict(many_jpegs(name, image)), **dict(many_others(name, image))}
    image = picture(*SIDES)
    return {**files, **dict(all_modes(image)), **dict(cut_and_lying(image)), **dict(thin_and_large())}
