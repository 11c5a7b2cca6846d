"""Grey views: how many, which, and that they are Pillow's."""

import numpy as np
import torch
from helpers.pillow_operations import pictures
from PIL import Image

from pipelines.augment.grey import apply, grey_views, identity
from pipelines.augment.recipe import Recipe, view_params

N = 20_000


def drawn(share: float, n: int = N, seed: int = 0) -> np.ndarray:
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    return grey_views(view_params(Recipe(grayscale=share), seed), keys, np.zeros(n, np.int32))


def test_a_share_of_the_views_is_grey() -> None:
    for share in (0.2, 0.9):
        assert abs(drawn(share).mean() - share) < 4 * np.sqrt(share * (1 - share) / N)
    assert drawn(1.0).all() and not (drawn(0.2) == drawn(0.2, seed=1)).all()


def test_vectors() -> None:
    """Committed draws: changing them makes every cache with grey views invalid."""
    params = view_params(Recipe(grayscale=0.5), 5)
    keys, views = np.repeat([1, 2**62 + 3], 8), np.tile(np.arange(8, dtype=np.int32), 2)
    assert "".join(map(str, grey_views(params, keys, views).astype(int))) == "0100011111000111"


def test_they_are_pillows() -> None:
    images = np.tile(pictures(33), (3, 1, 1, 1))
    grey = drawn(0.5, 30)
    found = apply(torch.from_numpy(images), grey).numpy()
    for image, one, of_it in zip(images, found, grey.tolist(), strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L").convert("RGB")) if of_it else image
        np.testing.assert_array_equal(one, expected)


def test_it_is_in_the_identity_only_when_it_is_on() -> None:
    assert identity(Recipe()) == {} and identity(Recipe(grayscale=1)) == {"grayscale": 1.0}
    assert not Recipe(grayscale=0.2).evaluation().grayscale
