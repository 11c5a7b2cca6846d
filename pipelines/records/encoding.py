"""How one image is stored: its file with restart markers, or its pixels shrunk and re-encoded; and whether stored bytes decode.

Owns the rule by which JPEG bytes are kept, the sizes, and the one encoder. Opens no record file for writing (writing.py).
Invariant: what is stored shows the picture that `PIL.Image.open(file).convert("RGB")` shows, EXIF orientation ignored, and
every backend decodes it.
"""

import contextlib
import errno
import io
import itertools
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import PIL
from PIL import Image

from pipelines import libffcv
from pipelines.errors import UserError
from pipelines.records import layout
from pipelines.records.marking import marked, without_table
from pipelines.records.reader import Records

MAX_STORED_SIDE = 65_535  # pixels: FFCV stores sides as uint16
MAX_ENCODED_SIDE = 65_500  # pixels: libjpeg's own limit
MAX_STORED_PIXELS = (
    1 << 28
) // 3  # 256 MiB as RGB; the reference backend's Pillow warns of more, and refuses twice that
MAX_READ_PIXELS = 1 << 29  # 1.5 GiB as RGB: a 200-megapixel photo passes, a forged header does not exhaust the memory

DARK_BITS = 4  # grey that leaves so many of its upper bits unused is nearly black: 15 of 255 at most
MACHINE_FAULTS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}  # no image is to blame for these

StrPath = str | os.PathLike[str]


class Lazy(Protocol):
    """An image that is read when its turn comes, where it is encoded: a small object that can be pickled.

    It returns an image file's bytes or pixels uint8[height, width, 3]; whatever it raises makes the image an unreadable one.
    """

    def __call__(self) -> bytes | np.ndarray: ...


@dataclass(frozen=True)
class Encoding:
    """How files are stored. Sides in pixels; images keep their aspect ratio and are never enlarged; both limits hold."""

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 95  # JPEG quality of images that are re-encoded, always 4:4:4
    grey_bits: int = 16  # the bits that 16-bit grey uses, 8 to 16: the upper 8 of these are stored
    restarts: bool = True  # whether JPEGs get restart markers, so that a part can be decoded alone (marking.py)

    def __str__(self) -> str:
        limits = {"short side": self.short_side, "long side": self.max_side}
        parts = [f"{name} at most {limit}" for name, limit in limits.items() if limit]
        if self.grey_bits != 16:
            parts.append(f"16-bit grey from {self.grey_bits} bits")
        return ", ".join(parts) or "files as they are"

    def recorded(self) -> dict[str, Any]:
        """What a manifest says: what decides the pixels, which restart markers do not; the bits of grey where they are not 16."""
        told = asdict(self)
        del told["restarts"]
        if self.grey_bits == 16:
            del told["grey_bits"]
        return told


AS_THEY_ARE = Encoding()


class Note(NamedTuple):
    """What the user should know of an image that was stored."""

    kind: Literal[
        "shrunk", "dark", "clipped", "dark colour"
    ]  # too large for a record; 16-bit grey, nearly black or beyond `grey_bits`; 16-bit colour, nearly black
    bits: int = 0  # that the image uses


class Stored(NamedTuple):
    """One image as it goes into the file."""

    payload: bytes | memoryview
    mode: int
    width: int  # of the original
    height: int
    stored_width: int
    stored_height: int
    source: int
    notes: tuple[Note, ...] = ()


class Broken(Exception):
    """An image that cannot be read or stored; the message says why."""


class JpegFrame(NamedTuple):
    """The contents of a JPEG's frame header (SOFn marker)."""

    marker: int
    precision: int  # bits per component
    height: int
    width: int
    components: int
    rgb: bool  # marked as RGB rather than YCbCr, by an Adobe segment or by the components' names


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The frame header of a JPEG, None where there is none (ITU T.81, B.2.2; Adobe's segment: T.872, 6.5.3)."""
    if data[:2] != b"\xff\xd8":
        return None
    position, adobe_rgb = 2, False
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        size = int.from_bytes(data[position + 2 : position + 4])
        body = data[position + 4 : position + 2 + size]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOFn; the others are DHT, JPG, DAC
            if len(body) < 6:
                return None
            height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            rgb = body[5] == 3 and (adobe_rgb or body[6::3] == b"RGB")
            return JpegFrame(marker, body[0], height, width, body[5], rgb)
        if marker == 0xEE and body[:5] == b"Adobe":
            adobe_rgb = body[11:12] == b"\0"
        position += 2 + size
    return None


def decoder_name() -> str:
    """The decoder that a kept JPEG had to satisfy: libffcv, or Pillow (more lenient) where FFCV is absent."""
    return "libffcv" if libffcv.decoder() else "pillow"


def _keepable(data: bytes) -> bool:
    """Whether these are JPEG bytes that every backend decodes to the same colours, if it decodes them at all.

    They must be sequential 8-bit Huffman-coded (SOF0, SOF1), grey or YCbCr (decoders disagree on RGB, which a few files of
    ImageNet are), with sides and size within FFCV's limits.
    """
    frame = jpeg_frame(data)
    if frame is None or frame.marker not in (0xC0, 0xC1) or frame.precision != 8:
        return False
    if frame.components not in (1, 3) or frame.rgb or len(data) > layout.PAGE_SIZE:
        return False
    return 0 < frame.width <= MAX_STORED_SIDE and 0 < frame.height <= MAX_STORED_SIDE


def _with_restarts(data: bytes, size: tuple[int, int], pixels: np.ndarray | None) -> bytes:
    """A JPEG with restart markers, where it can have them and they change no pixel; else as it is.

    pixels: what it shows, if that is known.
    """
    other = marked(data)
    if other is None or len(other) > layout.PAGE_SIZE:
        return data
    before, after = _decoded(data, size) if pixels is None else pixels, _decoded(other, size)
    return other if before is not None and after is not None and np.array_equal(before, after) else data


def _decoded(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """uint8[height, width, 3] of a JPEG, by libffcv or else by Pillow; None if libffcv does not decode it."""
    if libffcv.decoder():
        return libffcv.pixels(data, *size)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def stored_size(width: int, height: int, encoding: Encoding) -> tuple[int, int]:
    """(width, height) to store: one exact scale for both limits, at most 1; truncated as in torchvision's Resize.

    So `short_side` gives exactly the size that the views resize_crop and center cut from: they copy pixels without resampling.
    """
    scales = [(1, 1)]
    if encoding.short_side:
        scales.append((encoding.short_side, min(width, height)))
    if encoding.max_side:
        scales.append((encoding.max_side, max(width, height)))
    numerator, denominator = min(scales, key=lambda scale: scale[0] / scale[1])
    return max(1, width * numerator // denominator), max(1, height * numerator // denominator)


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in words that contain no address or path of this machine."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _blamed(error: Exception) -> Broken | UserError:
    """Broken where the image is at fault, UserError where the machine is."""
    if isinstance(error, MemoryError):
        return UserError("out of memory while decoding; use fewer --workers")
    if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
        return UserError(f"{_reason(error)}; use fewer --workers")
    return Broken(_reason(error))


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn any exception of Pillow, which raises nearly anything on a damaged file, into what `_blamed` says."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        raise _blamed(error) from error


@contextlib.contextmanager
def _pillows_limit(pixels: int | None) -> Iterator[None]:
    """Another limit than Pillow's own, which refuses twice as many pixels: on opening an image, and on decoding a TIFF."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open(data: bytes) -> Image.Image:
    """An image whose header was read, under our limit of pixels instead of Pillow's."""
    try:
        with _pillows_limit(None):
            image = Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError:
        if frame := jpeg_frame(data):
            what = f"{frame.components} components of {frame.precision} bits, {frame.width}x{frame.height} pixels"
            raise ValueError(f"a JPEG that Pillow does not read: {what}") from None
        raise
    if image.format == "EPS":
        raise ValueError("EPS is a program, which Pillow would have Ghostscript run; convert it to an image yourself")
    if not (image.width and image.height):
        raise ValueError(f"{image.width}x{image.height} pixels")
    if image.width * image.height > MAX_READ_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than the {MAX_READ_PIXELS} that are read")
    return image


def _to_rgb(image: Image.Image, grey_bits: int) -> tuple[Image.Image, tuple[Note, ...]]:
    """RGB as `convert` gives it (alpha dropped, palette applied), but 16-bit grey scaled, not clipped."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey_to_rgb(image, grey_bits)
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no defined range")
    halved = _halved_by_pillow(image)
    rgb = image.convert("RGB")
    used = 8 + int(np.max(rgb.getextrema())).bit_length() if halved else 16
    return rgb, ((Note("dark colour", used),) if used <= 16 - DARK_BITS else ())


def _halved_by_pillow(image: Image.Image) -> bool:
    """Whether a PNG or TIFF holds 16 bits per channel, of which Pillow decodes the upper 8: colour, and grey with alpha."""
    return image.mode != "CMYK" and any(";16" in str(tile.args) for tile in getattr(image, "tile", []))


def _grey_to_rgb(image: Image.Image, bits: int) -> tuple[Image.Image, tuple[Note, ...]]:
    """The upper 8 of `bits` bits of 16-bit grey; larger values are white."""
    scaled = _scaled_by_pillow(image)
    if scaled:
        bits = 16
    grey = np.asarray(image)
    used = int(grey.max()).bit_length()
    notes: tuple[Note, ...] = ()
    if used > bits:
        notes = (Note("clipped", used),)
    elif 0 < used <= bits - DARK_BITS and not scaled:
        notes = (Note("dark", used),)
    grey = np.minimum(grey, (1 << bits) - 1) >> (bits - 8)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB"), notes


def _scaled_by_pillow(image: Image.Image) -> bool:
    """Whether a file says how many bits its grey uses, which Pillow then scales to 16: PGM's largest value, JPEG 2000's depth."""
    if image.format != "PPM":
        return image.format == "JPEG2000"
    decoder, _, _, args = image.tile[0]  # type: ignore[attr-defined]
    return decoder != "raw" and args[-1] != 65535


def _as_jpeg(rgb: Image.Image, size: tuple[int, int], quality: int) -> bytes:
    if size != rgb.size:
        # The antialiased filter of the views (resample.py): at their size, it gives the pixels that they would have computed.
        rgb = rgb.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=quality, subsampling=0, comment=b"")  # else Pillow keeps the source's comment
    return buffer.getvalue()


def _fit_for_decoders(width: int, height: int) -> bool:
    return width * height <= MAX_STORED_PIXELS and max(width, height) <= MAX_ENCODED_SIDE


def _encode_jpeg(rgb: Image.Image, wanted: tuple[int, int], quality: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG bytes and their size: the one wanted, or the first of its 7/8, 49/64 and so on that decoders and a page take."""
    for steps in itertools.count():
        width, height = (max(1, side * 7**steps // 8**steps) for side in wanted)
        if _fit_for_decoders(width, height):
            payload = _as_jpeg(rgb, (width, height), quality)
            if len(payload) <= layout.PAGE_SIZE:
                return payload, (width, height)
    raise AssertionError("a single pixel fits")


def store_file(data: bytes, encoding: Encoding) -> Stored:
    """The bytes of an image file if all backends decode them and no resize is due, else the image re-encoded as JPEG.

    libffcv must decode the bytes without a warning, or, where FFCV is not installed, Pillow, which ignores warnings. Either
    way the JPEG gets restart markers, if `encoding` says so. Raises Broken for what cannot be decoded, UserError for a fault of
    the machine.
    """
    with _decoding():
        image = _open(data)
        original = image.size
        size = stored_size(*original, encoding)
        keep = size == original and size[0] * size[1] <= MAX_STORED_PIXELS and _keepable(data)
        payload, notes, pixels = without_table(data), (), None
        if keep and libffcv.decoder():
            pixels = libffcv.pixels(payload, *size)
            keep = pixels is not None
        if pixels is None:
            with _pillows_limit(MAX_READ_PIXELS):
                rgb, notes = _to_rgb(image, encoding.grey_bits)
            del image  # as large as `rgb`
            if not keep:
                wanted = size
                payload, size = _encode_jpeg(rgb, wanted, encoding.quality)
                notes += (Note("shrunk"),) if size != wanted else ()
        if encoding.restarts:
            payload = _with_restarts(payload, size, pixels)
        return Stored(payload, layout.MODE_JPEG, *original, *size, layout.hash63(data), notes)


def store_array(pixels: np.ndarray) -> Stored:
    """Raw pixels, uint8[height, width, 3]. Raises Broken for pixels that do not fit a page."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"uint8[height, width, 3] expected, {pixels.dtype}{list(pixels.shape)} given")
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_STORED_SIDE or pixels.nbytes > layout.PAGE_SIZE:
        raise Broken(f"{width}x{height} raw pixels do not fit a page of {layout.PAGE_SIZE} bytes")
    payload = pixels.tobytes()
    return Stored(payload, layout.MODE_RAW, width, height, width, height, layout.hash63(payload))


def read_lazy(image: Lazy) -> bytes | np.ndarray:
    """What a lazy image returns; Broken if it raises or has no bytes."""
    with _decoding():
        data = image()
    if not len(data):
        raise Broken("empty file")
    return data


def read_file(path: StrPath) -> bytes:
    """The bytes of a file; Broken if it cannot be read or is empty."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a named pipe waits for its writer
            raise Broken("not a regular file, but a pipe, socket or device")
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, MemoryError) as error:
        raise _blamed(error) from error
    if not data:
        raise Broken("empty file")
    return data


def damage(opened: Records, position: int) -> str | None:
    """Why no loader can use the stored image of one sample, in words; None if it is whole and decodes.

    Decodes with libffcv, where it is installed, and with Pillow, as the ffcv and the reference backend do.
    """
    payload = opened.payload(position)
    if zlib.crc32(payload.data) != opened.crcs[position]:
        return "its CRC-32 differs"
    if opened.raw[position]:
        return None
    width, height = int(opened.stored_widths[position]), int(opened.stored_heights[position])
    if libffcv.decoder() and libffcv.pixels(payload, width, height) is None:
        return "libffcv does not decode it"
    try:
        with _decoding(), Image.open(io.BytesIO(payload.tobytes())) as image:
            found = image.convert("RGB").size
    except Broken as error:
        return f"Pillow does not decode it: {error}"
    return None if found == (width, height) else f"it decodes to {found[0]}x{found[1]} pixels, not {width}x{height}"
