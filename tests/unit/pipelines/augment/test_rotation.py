"""Rotation against Pillow's, and the distribution of its angles."""

import numpy as np
import torch
from helpers.pillow_operations import pictures
from PIL import Image

from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.rotation import angles, apply, identity

N = 20_000


def drawn(n: int = N, rotation: float = 15.0, seed: int = 0) -> np.ndarray:
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    return angles(view_params(Recipe(rotation=rotation), seed), keys, np.zeros(n, np.int32))


def test_angles_are_uniform() -> None:
    """Kolmogorov-Smirnov at the 0.1 % level."""
    found = np.sort(drawn())
    expected = -15 + 30 * (np.arange(N) + 0.5) / N
    assert found[0] >= -15 and found[-1] < 15
    shares = np.searchsorted(found, expected) / N
    assert np.abs(shares - (expected + 15) / 30).max() < 1.95 / np.sqrt(N)
    assert abs((found < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(N)


def test_seed_key_and_view_each_change_the_angle() -> None:
    found = {
        float(angle)
        for seed in (0, 1, 1 << 62)
        for angle in angles(
            view_params(Recipe(rotation=90), seed), np.repeat([3, 4, 3 + (1 << 40)], 5), np.tile(np.arange(5), 3)
        )
    }
    assert len(found) == 3 * 3 * 5


def test_vectors() -> None:
    """Committed angles: changing them makes every cache with rotation invalid."""
    params = view_params(Recipe(rotation=15), 5)
    found = angles(params, np.array([1, 2**62 + 3]), np.array([0, 7], np.int32))
    np.testing.assert_allclose(found, [-6.293209288269281, -11.296838724520057], rtol=0, atol=1e-9)


def test_it_is_pillows_rotation() -> None:
    """As torchvision's RandomRotation calls it: nearest pixel, black outside, size kept. Bit for bit."""
    for size in (1, 2, 32, 51):
        images = np.tile(pictures(size), (12, 1, 1, 1))
        degrees = np.concatenate([drawn(60), drawn(60, rotation=180.0)])
        found = apply(torch.from_numpy(images), degrees).numpy()
        for image, one, angle in zip(images, found, degrees.tolist(), strict=True):
            expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST, fillcolor=(0, 0, 0)))
            np.testing.assert_array_equal(one, expected, err_msg=f"{angle}")


def test_it_is_in_the_identity_only_when_it_is_on() -> None:
    assert identity(Recipe()) == {} and str(identity(Recipe(rotation=15))) == "{'rotation': 15.0}", "one spelling"
    assert not Recipe(rotation=15).evaluation().rotation
