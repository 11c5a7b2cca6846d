"""Views: the generator's known answers, the boxes' definitions and distributions, and committed vectors.

`tests/fixtures/views.json` pins draws and boxes: caches on disk hold targets for exactly these. After a deliberate change
raise its number in VERSIONS and write the file again: `PYTHONPATH=. python tests/unit/pipelines/augment/test_geometry.py`.
"""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.boxes import box_rows
from PIL import Image

from pipelines.augment.colour import colours
from pipelines.augment.geometry import VERSIONS, apply, boxes, view_box
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import identity
from pipelines.philox import (
    LANE_BRIGHTNESS,
    LANE_COLOUR_ORDER,
    LANE_CONTRAST,
    LANE_CROP,
    LANE_CUTOUT,
    LANE_ERASING,
    LANE_FLIP,
    LANE_GREY,
    LANE_MIX,
    LANE_ORDER,
    LANE_PARTNER,
    LANE_POLICY,
    LANE_ROTATION,
    LANE_SATURATION,
    draw,
    exp,
    log,
    philox,
)

FIXTURE = Path(__file__).parents[3] / "fixtures" / "views.json"
KEYS = [0, 1, 0xFFFFFFFF, 1 << 32, 0x1234_5678_9ABC_DEF0, (1 << 63) - 1]
PLACES = [(0, 0, 0), (1, 1, 0), (7, 2, 3), (199, 6, 1), (65_536, 0xFFFF, 0), (3, 0, 9)]  # view, lane, index
SEEDS = [0, 1, (1 << 40) + 5, (1 << 63) - 1]
SIZES = [(500, 375), (375, 500), (333, 333), (1, 1), (1, 400), (400, 1), (5000, 20), (17, 6000), (2, 3)]
RECIPES: list[dict[str, Any]] = [
    {"crop": "pad_crop", "size": 32, "pad": 4},
    {"crop": "random_resized_crop", "size": 224},
    {"crop": "random_resized_crop", "size": 96, "scale": [0.3, 0.9], "ratio": [0.1, 10.0], "flip": False},
    {"crop": "random_resized_crop", "size": 48, "ratio": [3.0, 10.0]},
    {"crop": "resize_crop", "size": 224},
    {"crop": "resize_crop", "size": 64, "short_side": 64},
    {"crop": "center", "size": 224, "flip": False},
    {"crop": "center", "size": 33, "short_side": 40},
]
CUTTING = [recipe for recipe in RECIPES if recipe["crop"] != "pad_crop"]


def name_of(recipe: dict[str, Any]) -> str:
    return f"{recipe['crop']}-{recipe['size']}"


# --- an oracle in plain Python: Philox as published, crops as torchvision 0.29 defines them ---


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al., SC 2011, on Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return [c0, c1, c2, c3]


def plain_draw(seed: int, key: int, view: int, lane: int, index: int) -> list[int]:
    low = (1 << 32) - 1
    return plain_philox([key & low, key >> 32, view, lane << 16 | index], [seed & low, seed >> 32])


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """torchvision.transforms.functional._compute_resized_output_size."""
    short, long = min(width, height), max(width, height)
    new_long = int(short_side * long / short)
    return (short_side, new_long) if width <= height else (new_long, short_side)


def random_resized(recipe: Recipe, words: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """(x, y, w, h): torchvision.transforms.RandomResizedCrop.get_params, from words(attempt) of 32 bits each."""
    for attempt in range(10):
        a, b, c, d = words(attempt)
        area = width * height * (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * a / 2**32)
        low, high = math.log(recipe.ratio[0]), math.log(recipe.ratio[1])
        aspect = math.exp(low + (high - low) * b / 2**32)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return c * (width - w + 1) >> 32, d * (height - h + 1) >> 32, w, h
    w, h = width, height
    if width / height < min(recipe.ratio):
        h = round(width / min(recipe.ratio))
    elif width / height > max(recipe.ratio):
        w = round(height * max(recipe.ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def plain_box(
    recipe: Recipe, seed: int, key: int, view: int, size: tuple[int, int], stored: tuple[int, int]
) -> list[float]:
    """A view's box and flip as specified: a fraction of the original or resized image, of random_resized_crop rounded half up."""
    width, height = size
    flip = plain_draw(seed, key, view, LANE_FLIP, 0)[0] >> 31 if recipe.flip else 0

    def crop_words(attempt: int) -> list[int]:
        return plain_draw(seed, key, view, LANE_CROP, attempt)

    a, b, _, _ = crop_words(0)
    if recipe.crop == "pad_crop":
        span = 2 * recipe.pad + 1
        return [(a * span >> 32) - recipe.pad, (b * span >> 32) - recipe.pad, recipe.size, recipe.size, flip]
    if recipe.crop == "random_resized_crop":
        box, whole = random_resized(recipe, crop_words, width, height), size
    else:
        whole = resized(width, height, recipe.resolved_short_side())
        room_x, room_y = whole[0] - recipe.size, whole[1] - recipe.size
        corner = (round(room_x / 2.0), round(room_y / 2.0))  # torchvision's center_crop
        if recipe.crop == "resize_crop":
            corner = (a * (room_x + 1) >> 32, b * (room_y + 1) >> 32)
        box = (*corner, recipe.size, recipe.size)
        return [float(Fraction(box[i] * stored[i % 2], whole[i % 2])) for i in range(4)] + [flip]
    w, h = (max(1, math.floor(box[2 + i] / whole[i] * stored[i] + 0.5)) for i in (0, 1))
    x, y = (min(math.floor(box[i] / whole[i] * stored[i] + 0.5), stored[i] - side) for i, side in ((0, w), (1, h)))
    return [x, y, w, h, flip]


def many(
    recipe: Recipe, size: tuple[int, int], n: int, seed: int = 0, stored: tuple[int, int] | None = None
) -> np.ndarray:
    """float64[n, 5]: the boxes of n random keys on images of one size."""
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    full = [np.full(n, side, np.int32) for side in (*size, *(stored or size))]
    return box_rows(boxes(view_params(recipe, seed), keys, np.zeros(n, np.int32), *full))


# --- the generator ---


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    """The answers for philox4x32-10 in kat_vectors of Random123."""
    c, k = ([int(word, 16) for word in words.split()] for words in (counter, key))
    expected = [int(word, 16) for word in answer.split()]
    assert [int(word) for word in philox(*c, *k)] == expected
    assert plain_philox(c, k) == expected


def test_draw_puts_key_view_lane_and_seed_in_their_places() -> None:
    for seed in SEEDS:
        for key in KEYS:
            for view, lane, index in [(0, 0, 0), (199, LANE_FLIP, 9), ((1 << 31) - 1, LANE_ORDER, 0xFFFF)]:
                words = [int(word) for word in draw(seed, key, view, lane, index)]
                assert words == plain_draw(seed, key, view, lane, index)


def test_lanes_are_distinct_and_fit_their_16_bits() -> None:
    jitter = [LANE_COLOUR_ORDER, LANE_BRIGHTNESS, LANE_CONTRAST, LANE_SATURATION]
    lanes = [LANE_CROP, LANE_FLIP, *jitter, LANE_ROTATION, LANE_POLICY, LANE_CUTOUT, LANE_GREY]
    lanes += [LANE_MIX, LANE_ERASING, LANE_PARTNER, LANE_ORDER]
    assert len(set(lanes)) == len(lanes) and all(0 <= lane < 1 << 16 for lane in lanes)


def test_exp_and_log() -> None:
    for ratio in np.geomspace(0.1, 10, 997):
        assert log(float(ratio)) == pytest.approx(math.log(ratio), rel=1e-14, abs=1e-15)
        assert exp(math.log(ratio)) == pytest.approx(ratio, rel=1e-14)


# --- boxes ---


@pytest.mark.parametrize("settings", RECIPES, ids=name_of)
@pytest.mark.parametrize("seed", [0, (1 << 63) - 1])
def test_boxes_are_torchvisions_on_our_draws(settings: dict[str, Any], seed: int) -> None:
    """Also for images stored at other sizes, smaller (down to one pixel) and larger."""
    recipe, rng = Recipe(**settings), np.random.default_rng(3)
    params = view_params(recipe, seed)
    n = 600
    keys, views = rng.integers(0, 2**63, n), rng.integers(0, 500, n, dtype=np.int32)
    sizes = np.exp(rng.uniform(0, math.log(3000), (2, n))).astype(np.int32)
    stored = np.maximum(1, sizes * rng.choice([0.001, 0.3, 0.5, 1, 1, 2], n)).astype(np.int32)
    found = box_rows(boxes(params, keys, views, *sizes, *stored))
    for i in range(n):
        pair, stored_pair = (int(sizes[0, i]), int(sizes[1, i])), (int(stored[0, i]), int(stored[1, i]))
        expected = plain_box(recipe, seed, int(keys[i]), int(views[i]), pair, stored_pair)
        assert found[i].tolist() == expected, (keys[i], views[i], pair, stored_pair)


def test_one_view_from_python_is_the_row_of_a_batch() -> None:
    params = view_params(Recipe(), 7)
    columns = [np.array(column) for column in ([5, 6], [0, 3], [500, 40], [300, 41], [250, 80], [150, 82])]
    rows = box_rows(boxes(params, *columns))
    for i in range(2):
        assert list(view_box(params, *(int(column[i]) for column in columns))) == rows[i].tolist()


@pytest.mark.parametrize("settings", CUTTING, ids=name_of)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_lie_inside(settings: dict[str, Any], size: tuple[int, int]) -> None:
    least = 1 if settings["crop"] == "random_resized_crop" else 1e-9
    for stored in (size, (max(1, size[0] // 3), max(1, size[1] // 3)), (1, 1)):
        x, y, w, h, flip = many(Recipe(**settings), size, 500, stored=stored).T
        assert w.min() >= least and h.min() >= least and x.min() >= 0 and y.min() >= 0
        assert (x + w).max() <= stored[0] + 1e-9 and (y + h).max() <= stored[1] + 1e-9
        assert set(flip.tolist()) <= {0, 1}


@pytest.mark.parametrize("settings", CUTTING, ids=name_of)
def test_a_view_shows_the_same_part_at_every_stored_size(settings: dict[str, Any]) -> None:
    """random_resized_crop: up to rounding to whole pixels."""
    recipe, rounds = Recipe(**settings), settings["crop"] == "random_resized_crop"
    original = many(recipe, (4000, 3000), 2000)
    for stored in ((4000, 3000), (2000, 1500), (333, 250), (8000, 6000)):
        found = many(recipe, (4000, 3000), 2000, stored=stored)
        np.testing.assert_array_equal(found[:, 4], original[:, 4])
        for axis in (0, 1):
            scale = stored[axis] / (4000, 3000)[axis]
            corner, side = (np.abs(found[:, i] - original[:, i] * scale).max() for i in (axis, axis + 2))
            rounding = rounds * 0.5 * (1 + scale) + 1e-9  # half a pixel of this image and half of one of the original
            assert side <= rounding
            assert corner <= 2 * rounding  # the corner is moved for a box that rounding made too wide


def test_pad_crop_offsets_are_uniform() -> None:
    x, y, w, h, _ = many(Recipe(crop="pad_crop", size=32, pad=4), (32, 32), 81_000).astype(int).T
    assert (w == 32).all() and (h == 32).all()
    counts = np.zeros((9, 9))
    np.add.at(counts, (y + 4, x + 4), 1)
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 125  # 80 degrees of freedom: 99.9 % lie below 124.8
    assert not many(Recipe(crop="pad_crop", size=32, pad=0), (32, 32), 100)[:, :2].any()


def test_center_on_the_resized_image_is_torchvisions_crop() -> None:
    """Stored at exactly Resize(256)'s size, the box is CenterCrop(224) to the pixel: odd margins round half to even."""
    margins = set()
    for width, height in [(500, 375), (375, 500), (256, 259), (256, 261), (257, 256), (1000, 257), (640, 427), (3, 4)]:
        stored = resized(width, height, 256)
        left, top = (int(round((side - 224) / 2.0)) for side in stored)
        found = view_box(view_params(Recipe(crop="center", flip=False), 0), 1, 0, width, height, *stored)
        assert found == (left, top, 224, 224, 0)
        margins |= {side % 4 for side in stored}
    assert {1, 3} <= margins, "both kinds of odd margins are among the cases"


@pytest.mark.parametrize(
    "settings", [recipe for recipe in RECIPES if recipe["crop"] in ("resize_crop", "center")], ids=name_of
)
@pytest.mark.parametrize("size", [(211, 141), (141, 211), (300, 299), (64, 64), (40, 50), (3, 4)], ids=str)
def test_the_whole_image_is_resized_before_the_crop(settings: dict[str, Any], size: tuple[int, int]) -> None:
    """Within 1 level of Pillow's resize and crop, also at the edges of the view, where the filter reads beside the box."""
    recipe = Recipe(**settings)
    source = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    whole = Image.fromarray(source).resize(resized(*size, recipe.resolved_short_side()), Image.Resampling.BILINEAR)
    keys, views = np.arange(5), np.zeros(5, np.int32)
    full = [np.full(5, side, np.int32) for side in (*size, *size)]
    drawn = boxes(view_params(recipe, 0), keys, views, *full)
    for i in range(5):
        box = plain_box(recipe, 0, i, 0, size, whole.size)
        x, y, flip = int(box[0]), int(box[1]), box[4]
        expected = np.asarray(whole.crop((x, y, x + recipe.size, y + recipe.size))).astype(int)
        found = np.empty(expected.shape, np.uint8)
        apply(source, 0, 0, *(part[i] for part in drawn), found)
        assert np.abs(found - (expected[:, ::-1] if flip else expected)).max() <= 1
    x, y, w, h = drawn.windows.T
    assert x.min() >= 0 and y.min() >= 0 and (x + w).max() <= size[0] and (y + h).max() <= size[1]


def largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov statistic."""
    grid = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(sample), grid, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("size", [(500, 375), (120, 480)], ids=str)
def test_distributions_of_random_resized_crop(size: tuple[int, int]) -> None:
    """Area, log aspect and place against torchvision's definition with numpy's generator: KS at the 0.1 % level."""
    n, recipe, rng = 20_000, Recipe(), np.random.default_rng(11)
    found = many(recipe, size, n).astype(float)
    words = iter(rng.integers(0, 2**32, (3 * 10 * n, 4)).tolist())
    expected = np.array([random_resized(recipe, lambda _: next(words), *size) for _ in range(n)], float)

    def figures(box: np.ndarray) -> list[np.ndarray]:
        x, y, w, h = box[:, :4].T
        return [w * h, np.log(w / h), x / np.maximum(1, size[0] - w), y / np.maximum(1, size[1] - h)]

    for name, a, b in zip(("area", "aspect", "x", "y"), figures(found), figures(expected), strict=True):
        assert largest_gap(a, b) < 1.95 * math.sqrt(2 / n), name


def test_area_is_uniform_and_aspect_log_uniform() -> None:
    """On a square so large that neither rounding nor rejection shows; against the closed form, KS at the 0.1 % level."""
    n, side = 20_000, 30_000
    _, _, w, h, _ = many(Recipe(scale=[0.08, 0.5]), (side, side), n).astype(float).T
    uniform = (np.arange(n) + 0.5) / n
    area = 0.08 + 0.42 * uniform
    aspect = math.log(3 / 4) + math.log(16 / 9) * uniform
    assert largest_gap(w * h / side**2, area) < 1.95 / math.sqrt(n)
    assert largest_gap(np.log(w / h), aspect) < 1.95 / math.sqrt(n)


def test_flip_moves_no_box_and_takes_half() -> None:
    for settings in RECIPES:
        plain, flipped = (many(Recipe(**settings | {"flip": flip}), (500, 375), 4000) for flip in (False, True))
        np.testing.assert_array_equal(plain[:, :4], flipped[:, :4])
        assert not plain[:, 4].any()
        assert abs(flipped[:, 4].mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_seed_key_and_view_each_change_the_view() -> None:
    params = [view_params(Recipe(), seed) for seed in (0, 1, 1 << 32, 1 << 62)]
    keys = [9, 10, 9 + (1 << 32), 9 + (1 << 62)]
    found = {view_box(p, key, view, 5000, 5000, 5000, 5000) for p in params for key in keys for view in range(5)}
    assert len(found) == len(params) * len(keys) * 5


# --- recipes ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "data.recipe.size=0"),
        ({"size": 10**9}, "data.recipe.size=1000000000"),
        ({"size": 32, "short_side": 10**9}, "data.recipe.short_side=1000000000"),
        ({"pad": -1}, "data.recipe.pad=-1"),
        ({"crop": "pad_crop", "size": 32, "pad": 33}, "data.recipe.pad=33"),
        ({"jitter": [40.0, 40.0, 40.0]}, "data.recipe.jitter=[40.0, 40.0, 40.0]"),
        ({"jitter": [math.nan, 0.0, 0.0]}, "data.recipe.jitter=[nan, 0.0, 0.0]"),
        ({"rotation": -1.0}, "data.recipe.rotation=-1.0"),
        ({"rotation": 180.5}, "data.recipe.rotation=180.5"),
        ({"rotation": math.nan}, "data.recipe.rotation=nan"),
        ({"grayscale": 1.1}, "data.recipe.grayscale=1.1"),
        ({"grayscale": -0.1}, "data.recipe.grayscale=-0.1"),
        ({"policy": "randaugment", "policy_ops": 0}, "data.recipe.policy_ops=0"),
        ({"policy": "randaugment", "policy_ops": 17}, "data.recipe.policy_ops=17"),
        ({"policy": "randaugment", "policy_magnitude": 31}, "data.recipe.policy_magnitude=31"),
        ({"policy": "randaugment", "policy_magnitude": -1}, "data.recipe.policy_magnitude=-1"),
        ({"size": 32, "cutout": 33}, "data.recipe.cutout=33"),
        ({"cutout": -1}, "data.recipe.cutout=-1"),
        ({"cutout": 8, "cutout_holes": 0}, "data.recipe.cutout_holes=0"),
        ({"cutout": 8, "cutout_holes": 101}, "data.recipe.cutout_holes=101"),
        ({"erasing": 1.1}, "data.recipe.erasing=1.1"),
        ({"erasing": -0.1}, "data.recipe.erasing=-0.1"),
        ({"erasing": 0.5, "erasing_area": [0.0, 0.4]}, "data.recipe.erasing_area=[0.0, 0.4]"),
        ({"erasing": 0.5, "erasing_area": [0.2]}, "data.recipe.erasing_area=[0.2]"),
        ({"erasing": 0.5, "erasing_area": [0.2, 1.1]}, "data.recipe.erasing_area=[0.2, 1.1]"),
        ({"erasing": 0.5, "erasing_ratio": [0.05, 1.0]}, "data.recipe.erasing_ratio=[0.05, 1.0]"),
        ({"erasing": 0.5, "erasing_ratio": [2.0, 1.0]}, "data.recipe.erasing_ratio=[2.0, 1.0]"),
        ({"mix": "mixup", "mix_alpha": 0.04}, "data.recipe.mix_alpha=0.04: must be from 0.05 to 100"),
        ({"mix": "mixup", "mix_alpha": 101.0}, "data.recipe.mix_alpha=101.0"),
        ({"mix": "cutmix", "mix_share": 0.0}, "data.recipe.mix_share=0.0: must be above 0 and at most 1"),
        ({"mix": "cutmix", "mix_share": 1.1}, "data.recipe.mix_share=1.1"),
        ({"scale": [0.0, 1.0]}, "data.recipe.scale=[0.0, 1.0]"),
        ({"scale": [0.5, 0.4]}, "data.recipe.scale=[0.5, 0.4]"),
        ({"scale": [0.5, 1.1]}, "data.recipe.scale=[0.5, 1.1]"),
        ({"scale": [0.5]}, "data.recipe.scale=[0.5]"),
        ({"scale": [math.nan, 1.0]}, "data.recipe.scale"),
        ({"ratio": [0.05, 1.0]}, "data.recipe.ratio=[0.05, 1.0]"),
        ({"ratio": [1.0, 11.0]}, "data.recipe.ratio=[1.0, 11.0]"),
        ({"ratio": [2.0, 1.0]}, "data.recipe.ratio=[2.0, 1.0]"),
        ({"size": 224, "short_side": 223}, "data.recipe.short_side=223"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Recipe(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_impossible_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"data.seed={seed}"):
        view_params(Recipe(), seed)


@pytest.mark.parametrize(
    ("settings", "short_side"),
    [
        ({}, 256),
        ({"size": 32, "crop": "pad_crop"}, 32),
        ({"size": 96, "crop": "resize_crop"}, 110),
        ({"size": 1, "crop": "center"}, 1),
        ({"size": 100, "short_side": 123}, 123),
    ],
)
def test_evaluation_resizes_the_short_side_and_crops_the_centre(settings: dict[str, Any], short_side: int) -> None:
    recipe = Recipe(**settings).evaluation()
    assert recipe == Recipe(crop="center", size=recipe.size, short_side=short_side, flip=False)
    assert recipe.size == settings.get("size", 224)


def test_identity_holds_what_decides_the_pixels_and_nothing_else() -> None:
    def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return identity(Recipe(**a)) == identity(Recipe(**b))

    for settings in RECIPES:
        assert not same(settings, settings | {"size": settings["size"] - 1})
        assert not same(settings, settings | {"flip": not settings.get("flip", True)})
        crops_short = settings["crop"] in ("resize_crop", "center")
        assert same(settings, settings | {"short_side": 300}) != crops_short
        assert same(settings, settings | {"pad": 5}) != (settings["crop"] == "pad_crop")
        for other in ({"scale": [0.2, 0.9]}, {"ratio": [0.5, 2.0]}):
            assert same(settings, settings | other) != (settings["crop"] == "random_resized_crop")
    # The default and its value written out are one recipe.
    assert same({"crop": "center", "size": 224}, {"crop": "center", "size": 224, "short_side": 256})


# --- committed vectors ---


def _plain(number: float) -> int | float:
    """As JSON has it: a whole number without a point."""
    return int(number) if number == int(number) else float(number)


def vectors() -> dict[str, Any]:
    """Draws and boxes of the present code: [key, view, width, height, stored width, stored height, box and flip]."""
    draws = [
        [seed, key, view, lane, index, *(int(word) for word in draw(seed, key, view, lane, index))]
        for seed in SEEDS
        for key, (view, lane, index) in zip(KEYS, PLACES, strict=True)
    ]
    cut = []
    for settings in RECIPES:
        for seed in SEEDS[::3]:
            rows, params = [], view_params(Recipe(**settings), seed)
            for i, (width, height) in enumerate(SIZES):
                for stored in ((width, height), (max(1, width // 2), max(1, height // 2))):
                    given = [KEYS[i % len(KEYS)], 1000 * i, width, height, *stored]
                    rows.append(given + [_plain(number) for number in view_box(params, *given)])
            cut.append({"recipe": settings, "seed": seed, "rows": rows})
    return {"versions": VERSIONS, "draws": draws, "boxes": cut}


def test_committed_vectors() -> None:
    committed = json.loads(FIXTURE.read_text())
    for row in committed["draws"]:
        assert plain_draw(*row[:5]) == row[5:], "the vectors themselves are right"
    for group in committed["boxes"]:
        recipe, seed = Recipe(**group["recipe"]), group["seed"]
        for key, view, width, height, stored_width, stored_height, *box in group["rows"]:
            assert plain_box(recipe, seed, key, view, (width, height), (stored_width, stored_height)) == box
    assert vectors() == committed, "views changed: caches on disk no longer belong to them (see the head of this file)"


def write_vectors() -> None:
    found = vectors()
    found["draws"] = [json.dumps(row) for row in found["draws"]]
    for group in found["boxes"]:
        group["rows"] = [json.dumps(row) for row in group["rows"]]
    text = json.dumps(found, indent=1).replace('"[', "[").replace(']"', "]")  # one row per line
    FIXTURE.write_text(text + "\n")


if __name__ == "__main__":
    write_vectors()


def test_colours_are_uniform_and_their_own_lanes() -> None:
    """Factors within 1 - j .. 1 + j (not below 0), all six orders equally often, boxes unmoved by jitter."""
    keys, views = np.arange(6000, dtype=np.int64) * 7919, np.zeros(6000, np.int32)
    factors, order = colours(view_params(Recipe(jitter=[0.4, 0.2, 1.5]), 0), keys, views)
    for column, (low, high) in zip(factors.T, ((0.6, 1.4), (0.8, 1.2), (0.0, 2.5)), strict=True):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= np.float32(high)
        assert abs(column.mean() - (low + high) / 2) < 0.02 * (high - low)
    assert np.array_equal(np.sort(order, axis=1), np.tile([0, 1, 2], (6000, 1)))
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 900
    sizes = np.full(6000, 300, np.int32)
    plain, jittered = (
        box_rows(boxes(view_params(recipe, 0), keys, views, sizes, sizes, sizes, sizes))
        for recipe in (Recipe(), Recipe(jitter=[0.4, 0.4, 0.4]))
    )
    assert np.array_equal(plain, jittered)
    assert abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.05


def test_colours_vectors() -> None:
    """Committed draws of one recipe: changing them makes every cache with jitter invalid."""
    factors, order = colours(
        view_params(Recipe(jitter=[0.4, 0.4, 0.4]), 5), np.array([1, 2**62 + 3]), np.array([0, 7], np.int32)
    )
    assert order.tolist() == [[2, 1, 0], [0, 2, 1]]
    expected = [
        [0.6385272741317749, 1.196545124053955, 0.8774880766868591],
        [1.2122795581817627, 0.6401510834693909, 1.3523396253585815],
    ]
    np.testing.assert_array_equal(factors, np.array(expected, np.float32))


def test_jitter_is_part_of_the_identity_only_when_it_is_on() -> None:
    assert "jitter" not in identity(Recipe())
    assert identity(Recipe(jitter=[0.4, 0.0, 0.0]))["jitter"] == [0.4, 0.0, 0.0]
    assert not any(Recipe(jitter=[0.4, 0.4, 0.4]).evaluation().jitter)
    with pytest.raises(ValueError, match=r"data\.recipe\.jitter"):
        Recipe(jitter=[0.4, -0.1, 0.0])
