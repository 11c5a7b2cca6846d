"""Holes: where they lie, what is in them, and that nothing else changes."""

from typing import Any

import numpy as np
import torch

from pipelines.augment.erase import draw, holes, identity, rectangles
from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe, view_params
from pipelines.batch import Colours, Holes, Plan
from pipelines.records.reader import Records

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")
N = 40_960


def drawn(n: int = N, seed: int = 0, **settings: Any) -> np.ndarray:
    recipe = Recipe(**({"crop": "pad_crop", "size": 32, "cutout": 16} | settings))
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    return holes(view_params(recipe, seed), keys, np.zeros(n, np.int32))


def test_holes_are_those_of_the_published_code() -> None:
    """The centre is uniform over the pixels, half of the hole lies on each side, and borders clip it."""
    left, top, right, bottom = drawn()[:, 0].T
    x, y = np.where(left > 0, left + 8, right - 8), np.where(top > 0, top + 8, bottom - 8)
    counts = np.zeros((32, 32))
    np.add.at(counts, (y, x), 1)
    chi2 = ((counts - N / 1024) ** 2 / (N / 1024)).sum()
    assert chi2 < 1168  # 1023 degrees of freedom: 99.9 % lie below 1167.0
    for found, centre in ((left, x), (top, y)):
        np.testing.assert_array_equal(found, np.clip(centre - 16 // 2, 0, 32))
    for found, centre in ((right, x), (bottom, y)):
        np.testing.assert_array_equal(found, np.clip(centre + 16 // 2, 0, 32))


def test_an_odd_side_is_a_side() -> None:
    """The published code would halve it twice and leave out a pixel."""
    inside = [box for box in drawn(2000, cutout=5)[:, 0].tolist() if min(box) > 0 and max(box) < 32]
    assert len(inside) > 1000 and {(box[2] - box[0], box[3] - box[1]) for box in inside} == {(5, 5)}


def test_several_holes_are_drawn_apart() -> None:
    one, three = drawn(4000), drawn(4000, cutout_holes=3)
    assert three.shape == (4000, 3, 4) and np.array_equal(three[:, :1], one)
    assert (three[:, 0] == three[:, 1]).all(axis=1).mean() < 0.01
    assert (drawn(4000, seed=1) == one).all(axis=(1, 2)).mean() < 0.01


def test_vectors() -> None:
    """Committed holes: changing them makes every cache with holes invalid."""
    params = view_params(Recipe(size=32, cutout=8, cutout_holes=2), 5)
    assert holes(params, np.array([1, 2**62 + 3]), np.array([0, 7], np.int32)).tolist() == [
        [[24, 5, 32, 13], [6, 5, 14, 13]],
        [[22, 14, 30, 22], [24, 20, 32, 28]],
    ]


def erased(n: int = N, seed: int = 0, **settings: Any) -> np.ndarray:
    """left, top, right, bottom of the rectangles of n views."""
    recipe = Recipe(**({"crop": "pad_crop", "size": 32, "erasing": 1.0} | settings))
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    return rectangles(view_params(recipe, seed), keys, np.zeros(n, np.int32))[:, 0].astype(int)


def published(n: int) -> np.ndarray:
    """Random Erasing as its authors' code draws it, with numpy's generator."""
    rng, out = np.random.default_rng(0), []
    while len(out) < n:
        area, ratio = rng.uniform(0.02, 0.4) * 1024, rng.uniform(0.3, 1 / 0.3)
        h, w = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if w < 32 and h < 32:
            x, y = rng.integers(0, 32 - w + 1), rng.integers(0, 32 - h + 1)
            out.append((x, y, x + w, y + h))
    return np.array(out)


def test_rectangles_have_the_published_distribution() -> None:
    """Of sides, places, areas and ratios: by Kolmogorov and Smirnov, whose bound is exceeded once in a thousand cases."""
    found, expected = erased(), published(N)
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= 32).all() and (found[:, 2:] > found[:, :2]).all()
    for of in (
        lambda box: box[:, 2] - box[:, 0],
        lambda box: box[:, 3] - box[:, 1],
        lambda box: box[:, 0],
        lambda box: box[:, 3],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 3] - box[:, 1]) / (box[:, 2] - box[:, 0]),
    ):
        ours, theirs = np.sort(of(found)), np.sort(of(expected))
        at = np.unique(theirs)
        below = [np.searchsorted(one, at, side="right") / N for one in (ours, theirs)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / N)


def test_a_share_of_the_views_has_a_rectangle() -> None:
    found, all_of_them = erased(erasing=0.3), erased()
    there = found.any(axis=1)
    assert abs(there.mean() - 0.3) < 0.01
    np.testing.assert_array_equal(found[there], all_of_them[there])
    assert (erased(4000, seed=1) == erased(4000)).all(axis=1).mean() < 0.01
    assert not erased(50, erasing_area=[1.0, 1.0]).any(), "it would be the whole view"


def test_vectors_of_rectangles() -> None:
    """Committed rectangles: changing them makes every cache with them invalid."""
    params = view_params(Recipe(size=32, erasing=0.9), 5)
    found = rectangles(params, np.array([1, 2**62 + 3, 9]), np.array([0, 7, 2], np.int32))
    assert found.tolist() == [[[22, 2, 31, 16]], [[6, 10, 13, 31]], [[18, 1, 24, 16]]]


def test_squares_and_rectangles_are_holes_of_one_level(few: Records) -> None:
    recipe = {"size": 32, "cutout_fill": "black"}
    plan = Plan(np.arange(5), np.zeros(5, np.int32))
    both = draw(view_params(Recipe(**recipe, cutout=8, cutout_holes=2, erasing=1), 0), few, plan)
    assert both and both[0].shape == (5, 3, 4) and both[0].dtype == np.int32 and both[1] == 0
    for settings, part in (({"cutout": 8, "cutout_holes": 2}, slice(2)), ({"erasing": 1}, slice(2, 3))):
        alone = draw(view_params(Recipe(**recipe, **settings), 0), few, plan)
        assert alone and np.array_equal(alone[0], both[0][:, part])
    assert draw(view_params(Recipe(**recipe), 0), few, plan) is None


def finished(level: int, colours: Colours | None, channels_last: bool) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Images with and without holes, and the holes."""
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), np.uint8))
    boxes, finish = drawn(6, cutout_holes=2), Finish(MEAN, STD, CPU, channels_last)
    return finish(pixels, colours, Holes(torch.from_numpy(boxes), level)), finish(pixels, colours), boxes


def test_a_hole_holds_its_level_and_nothing_else_changes() -> None:
    """With jitter, too: what is erased is not jittered. Strides are kept."""
    order = torch.tensor([[0, 1, 2]]).expand(6, 3)
    for level in (0, 128):
        for colours in (None, Colours(torch.full((6, 3), 1.3), order)):
            for channels_last in (False, True):
                found, without, boxes = finished(level, colours, channels_last)
                expected = without.clone()
                for image, of_image in zip(expected, boxes.tolist(), strict=True):
                    for left, top, right, bottom in of_image:
                        for c in range(3):
                            image[c, top:bottom, left:right] = (level / 255 - MEAN[c]) / STD[c]
                assert found.stride() == without.stride()
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
                assert not torch.equal(found, without)


def test_they_are_in_the_identity_only_when_they_are_on() -> None:
    assert identity(Recipe(cutout_holes=2, cutout_fill="black")) == {}
    expected = {"cutout": 16, "cutout_holes": 1, "cutout_fill": "grey"}
    assert identity(Recipe(cutout=16)) == expected and not Recipe(cutout=16).evaluation().cutout
    for changed in ({"cutout": 8}, {"cutout_holes": 2}, {"cutout_fill": "black"}):
        assert identity(Recipe(**({"cutout": 16} | changed))) == expected | changed
    erasing = {"erasing": 0.5, "erasing_area": [0.02, 0.4], "erasing_ratio": [0.3, 1 / 0.3], "cutout_fill": "grey"}
    assert identity(Recipe(erasing=0.5)) == erasing and not Recipe(erasing=0.5).evaluation().erasing
    assert identity(Recipe(erasing=0.5, cutout=16)) == erasing | expected
    for changed in (
        {"erasing": 1.0},
        {"erasing_area": [0.1, 0.4]},
        {"erasing_ratio": [1.0, 1.0]},
        {"cutout_fill": "black"},
    ):
        assert identity(Recipe(**({"erasing": 0.5} | changed))) == erasing | changed
