"""Pictures that are hard for a JPEG decoder: line art, text, halftone, checkerboards, noise, saturated colours.

With fine quantisation or extreme contrast an inexact inverse DCT overflows there, while photos look the same.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 200, 152


def drawings() -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB image of WIDTH x HEIGHT pixels)"""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    for side in (1, 2, 3):
        board = (rows // side + columns // side) % 2
        yield f"checkerboard of {side}", _image(255 * board)
        yield f"red and blue of {side}", _image(255 * np.stack([board, 0 * board, 1 - board], -1))
        yield f"lines of {side}", _image(255 * (columns // side % 2))
    yield "noise", _image(rng.integers(0, 256, (HEIGHT, WIDTH, 3)))
    yield "black and white noise", _image(255 * rng.integers(0, 2, (HEIGHT, WIDTH)))
    ramp = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    yield "halftone", ramp.convert("1").convert("RGB")
    yield "gradient", _image(np.stack([columns * 255 // WIDTH, rows * 255 // HEIGHT, 255 - columns * 255 // WIDTH], -1))
    yield "line art", _line_art()
    yield "text", _text()


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _line_art() -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for x in range(0, WIDTH, 7):
        pen.line((x, 0, WIDTH - x, HEIGHT), fill=0)
    for radius in range(5, 100, 9):
        pen.ellipse((100 - radius, 76 - radius, 100 + radius, 76 + radius), outline=0)
    return image


def _text() -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for line, y in enumerate(range(0, HEIGHT, 11)):
        pen.text((3, y), "The quick brown fox jumps over 1234567890", fill="red" if line % 2 else "black")
    return image
