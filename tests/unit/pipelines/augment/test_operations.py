"""Every operation against Pillow's own, bit for bit, on images that reach all roundings and on degenerate ones."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from pipelines.augment.operations import (
    AUTOCONTRAST,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    EQUALIZE,
    FILL,
    IDENTITY,
    INVERT,
    POSTERIZE,
    ROTATE,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    SOLARIZE,
    TRANSLATE_X,
    TRANSLATE_Y,
    apply,
)

GREY = (FILL,) * 3


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY)


PILLOW: dict[int, Callable[[Image.Image, float], Image.Image]] = {  # as the policies' published codes call it
    IDENTITY: lambda image, value: image,
    SHEAR_X: lambda image, value: affine(image, 1, value, 0, 0, 1, 0),
    SHEAR_Y: lambda image, value: affine(image, 1, 0, 0, value, 1, 0),
    TRANSLATE_X: lambda image, value: affine(image, 1, 0, -value, 0, 1, 0),
    TRANSLATE_Y: lambda image, value: affine(image, 1, 0, 0, 0, 1, -value),
    ROTATE: lambda image, value: image.rotate(value, Image.Resampling.NEAREST, fillcolor=GREY),
    BRIGHTNESS: lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    COLOR: lambda image, value: ImageEnhance.Color(image).enhance(value),
    CONTRAST: lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    SHARPNESS: lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    POSTERIZE: lambda image, value: ImageOps.posterize(image, int(value)),
    SOLARIZE: lambda image, value: ImageOps.solarize(image, value),  # pyright: ignore[reportArgumentType]
    AUTOCONTRAST: lambda image, value: ImageOps.autocontrast(image),
    EQUALIZE: lambda image, value: ImageOps.equalize(image),
    INVERT: lambda image, value: ImageOps.invert(image),
}
FACTORS = [0.0, 0.01, 0.1, 0.37, 0.5, 0.9, 1.0, 1.1, 1.63, 1.9, 1.99]
DEGREES = [0.0, 3.3, -10.0, 29.9, 45.0, -67.5, 90.0, -90.0, 135.0, -180.0]
VALUES: dict[int, list[float]] = {
    **dict.fromkeys((IDENTITY, AUTOCONTRAST, EQUALIZE, INVERT), [0.0]),
    **dict.fromkeys((SHEAR_X, SHEAR_Y), [0.0, 0.1, -0.3, 1 / 30, 0.99, -0.99]),
    **dict.fromkeys((TRANSLATE_X, TRANSLATE_Y), [0.0, 1.0, -3.0, 14.0, -101.0, 32.0]),
    **dict.fromkeys((BRIGHTNESS, COLOR, CONTRAST, SHARPNESS), FACTORS),
    ROTATE: DEGREES,
    POSTERIZE: [8.0, 7.0, 4.0, 2.0, 1.0],
    SOLARIZE: [0.0, 255.0, 170.0, 255 * 2 / 3, 8.5, 256.0],
}


def pictures(size: int) -> np.ndarray:
    """uint8 [10, S, S, 3]: noise, narrow and skewed ranges, ramps, two levels, one level, black, white, one bright pixel."""
    rng = np.random.default_rng(size)
    shape = (size, size, 3)
    ramp = np.add.outer(np.arange(size), 2 * np.arange(size))[:, :, None] * 255 / max(1, 3 * (size - 1)) + np.zeros(3)
    bright = np.zeros(shape)
    bright[size // 2, size // 3] = 255, 7, 130
    made = [
        rng.integers(0, 256, shape),
        rng.integers(100, 140, shape),
        rng.integers(0, 256, shape) ** 2 / 255,
        rng.normal((90, 128, 160), (10, 40, 80), shape),
        ramp,
        rng.integers(0, 2, shape) * 200 + 20,
        np.full(shape, 77),
        np.zeros(shape),
        np.full(shape, 255),
        bright,
    ]
    return np.stack([np.clip(image, 0, 255).astype(np.uint8) for image in made])


def by_pillow(image: np.ndarray, code: int, value: float) -> np.ndarray:
    return np.asarray(PILLOW[code](Image.fromarray(image), value))


def ours(images: np.ndarray, codes: list[int], values: list[float]) -> np.ndarray:
    return apply(torch.from_numpy(images), np.array(codes), np.array(values)).numpy()


@pytest.mark.parametrize("size", [1, 2, 3, 32, 47, 224])
@pytest.mark.parametrize("code", PILLOW)
def test_an_operation_is_pillows(code: int, size: int) -> None:
    images = pictures(size)
    for value in VALUES[code]:
        found = ours(images, [code] * len(images), [value] * len(images))
        for image, one in zip(images, found, strict=True):
            np.testing.assert_array_equal(one, by_pillow(image, code, value), err_msg=f"{value}")
