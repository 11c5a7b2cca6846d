"""Every operation against Pillow's own, bit for bit, on images that reach all roundings and on degenerate ones."""

import numpy as np
import pytest
import torch
from helpers.pillow_operations import PILLOW, by_pillow, pictures

from pipelines.augment.operations import (
    AUTOCONTRAST,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    EQUALIZE,
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


def ours(images: np.ndarray, codes: list[int], values: list[float]) -> np.ndarray:
    return apply(torch.from_numpy(images), np.array(codes), np.array(values)).numpy()


@pytest.mark.parametrize("size", [1, 2, 3, 32, 47])
@pytest.mark.parametrize("code", PILLOW)
def test_an_operation_is_pillows(code: int, size: int) -> None:
    images = pictures(size)
    for value in VALUES[code]:
        found = ours(images, [code] * len(images), [value] * len(images))
        for image, one in zip(images, found, strict=True):
            np.testing.assert_array_equal(one, by_pillow(image, code, value), err_msg=f"{value}")


@pytest.mark.parametrize("code", PILLOW)
def test_large_images(code: int) -> None:
    """At 224 pixels, where sums of levels and counts are large."""
    images, value = pictures(224)[:5], VALUES[code][-1]
    for image, one in zip(images, ours(images, [code] * 5, [value] * 5), strict=True):
        np.testing.assert_array_equal(one, by_pillow(image, code, value))


def test_a_batch_of_all_operations_in_any_order() -> None:
    """Each image has its own, wherever it lies; those without one stay, and the given images stay as they are."""
    rng = np.random.default_rng(3)
    drawn = [(code, value) for code, values in VALUES.items() for value in values]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    images = pictures(32)[rng.integers(0, 10, len(drawn))]
    before = images.copy()
    found = ours(images, *map(list, zip(*drawn, strict=True)))
    for image, one, (code, value) in zip(images, found, drawn, strict=True):
        np.testing.assert_array_equal(one, by_pillow(image, code, value), err_msg=f"{code} {value}")
    np.testing.assert_array_equal(images, before)
    none = torch.from_numpy(images)
    assert apply(none, np.zeros(len(images), np.int64), np.zeros(len(images))) is none
