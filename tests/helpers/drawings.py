"""Pictures by program: a smooth one, and those that are hard for a JPEG decoder.

With fine quantisation or extreme contrast an inexact inverse DCT overflows on line art, text, halftone, checkerboards and noise,
while photos and smooth pictures look the same.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with an ellipse in its upper left half, so that JPEG comes close to it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(0.02, 0.1, (3, 3))]
    image = Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(200, 30, 60))
    return image


def line_art(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for step in range(0, width + height, 7):
        draw.line((step, 0, 0, step), fill=(0, 0, 0) if step % 2 else (255, 0, 0))
    draw.ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), outline=(0, 0, 255), width=2)
    return image


def text(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (255, 255, 240))
    for row in range(0, height, 11):
        ImageDraw.Draw(image).text((1, row), f"Sphinx of black quartz {row}", fill=(20, 0, 90))
    return image


def halftone(width: int, height: int) -> Image.Image:
    return picture(width, height).convert("CMYK").convert("RGB").convert("1").convert("RGB")


def checkerboard(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    fine, coarse = (rows + columns) % 2, (rows // 5 + columns // 5) % 2
    return Image.fromarray(
        (255 * np.stack([fine, coarse, np.where(columns < width // 2, fine, 1)], -1)).astype(np.uint8)
    )


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def squares(width: int, height: int, side: int) -> np.ndarray:
    """0 and 1 by turns in squares of `side` pixels, int[height, width]."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (rows // side + columns // side) % 2


def drawings(width: int = 200, height: int = 152) -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB image) of every kind."""
    for side in (1, 2, 3, 4):
        board = squares(width, height, side)
        yield f"checkerboard of {side}", _rgb(255 * board)
        yield f"red and blue of {side}", _rgb(255 * np.stack([board, 0 * board, 1 - board], -1))
        yield f"lines of {side}", _rgb(np.tile(255 * board[:1], (height, 1)))
    yield "black and white noise", _rgb(255 * np.random.default_rng(0).integers(0, 2, (height, width)))
    for draw in (picture, line_art, text, halftone, checkerboard, noise):
        yield draw.__name__, draw(width, height)


def _rgb(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
