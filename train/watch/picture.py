"""A picture of the network's input: the images of one batch with their classes, keys and view numbers.

Owns RUN/first_batch.png. Invariant: every pixel is computed from the tensor that went into the network, not from the crops
that the tensor was made of.
"""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pipelines.batch import Batch
from pipelines.files import write_bytes_atomic
from pipelines.loader import DataConfig

MOST = 64  # images in a picture
_SIDE = 128  # pixels: smaller images are enlarged to about that
_COLUMNS = 8
_LINE = 14  # pixels per line of text, of which an image has three
_MARGIN = 4


def save_picture(folder: Path, batch: Batch, data: DataConfig, classes: Sequence[str]) -> str:
    """Write the first images of `batch` to first_batch.png in `folder`; returns a line that says so.

    data: holds the mean and std with which the images were normalised. The PNG's text "images" holds the captions as JSON.
    """
    path, count = folder / "first_batch.png", min(len(batch.keys), MOST)
    pixels = shown_pixels(batch.images[:count], data.mean, data.std)
    labels = batch.labels[:count].tolist()
    captions = [
        {"class": classes[label], "key": int(key), "view": int(view)}
        for label, key, view in zip(labels, batch.keys[:count], batch.views[:count], strict=True)
    ]
    if batch.mix is not None and batch.partners is not None:
        shares, seconds = batch.mix.ratios[:count].tolist(), batch.partners.labels[:count].tolist()
        for caption, share, second in zip(captions, shares, seconds, strict=True):
            caption["class"] += "" if share == 1 else f" {share:.0%}, {classes[second]}"
    about = PngInfo()
    about.add_text("images", json.dumps(captions))
    buffer = io.BytesIO()
    _grid(pixels, captions).save(buffer, format="PNG", pnginfo=about)
    write_bytes_atomic(path, buffer.getvalue())
    return f"{count} images of the first batch, as the network sees them, are in {path}"


def shown_pixels(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [B, S, S, 3] from normalised images [B, 3, S, S]: (x * std + mean) * 255, rounded."""
    scale, shift = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (std, mean))
    values = (images.detach().cpu().double() * scale + shift) * 255
    return values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _grid(pixels: np.ndarray, captions: list[dict]) -> Image.Image:
    size = pixels.shape[1]
    enlarged = size * max(1, round(_SIDE / size))
    font = ImageFont.load_default()
    key_width = math.ceil(font.getlength(f"key {2**63 - 1}"))
    width, height = max(enlarged, key_width) + _MARGIN, enlarged + 3 * _LINE + _MARGIN
    columns = min(_COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        tile = Image.fromarray(image).resize((enlarged, enlarged), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        lines = (caption["class"], f"key {caption['key']}", f"view {caption['view']}")
        for number, text in enumerate(lines):
            below = top + enlarged + number * _LINE
            draw.text((left, below), _fitting(text, width - _MARGIN, font), fill="black", font=font)
    return sheet


def _fitting(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """As much of `text` as fits; characters that Pillow's own font lacks are escaped."""
    text = text.encode("ascii", "backslashreplace").decode()
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"{text}..") > width:
        text = text[:-1]
    return f"{text}.."
