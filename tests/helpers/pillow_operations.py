"""The operations of augmentation policies as the policies' published codes have Pillow do them, and images to try them on."""

from collections.abc import Callable

import numpy as np
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
