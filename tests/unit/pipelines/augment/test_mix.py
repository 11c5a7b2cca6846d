"""Mixtures: which views, in which ratio, where; and that the mixing is the published formula."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.augment.mix import apply, identity, mixtures
from pipelines.augment.recipe import Recipe, view_params
from pipelines.batch import Mix
from pipelines.philox import LANE_MIX, beta, wide_exp, wide_log

N = 20_000


def drawn(mix: str, n: int = N, seed: int = 0, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    recipe = Recipe(crop="pad_crop", size=32, mix=mix, **settings)  # type: ignore[arg-type]
    keys = np.random.default_rng(n).integers(0, 2**63, n)
    return mixtures(view_params(recipe, seed), keys, np.zeros(n, np.int32))


def test_exp_and_log_of_any_size() -> None:
    for x in (1e-300, 2.0**-33, 0.3, 0.75, 1.0, 1.49, 1e6, 1e300):
        assert wide_log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)
    for x in (-690.0, -20.3, -1.0, 0.0, 0.3, 5.0, 444.0):
        assert wide_exp(x) == pytest.approx(math.exp(x), rel=1e-13)


@pytest.mark.parametrize(
    ("alpha", "below"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_ratios_have_the_beta_distribution(alpha: float, below: Any) -> None:
    """By Kolmogorov and Smirnov: the distance exceeds 1.95 / sqrt(n) once in a thousand."""
    found = np.sort(drawn("mixup", mix_alpha=alpha)[0])
    assert np.abs(below(found) - (np.arange(N) + 0.5) / N).max() < 1.95 / np.sqrt(N)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 20.0, 100.0])
def test_variances_where_the_distribution_has_no_simple_form(alpha: float) -> None:
    found = np.array([beta(1, key, 0, LANE_MIX, 1, alpha) for key in range(N)])
    assert ((found >= 0) & (found <= 1)).all()
    assert found.mean() == pytest.approx(0.5, abs=5 * found.std() / np.sqrt(N))
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_share_of_the_views_is_mixed() -> None:
    for mix in ("mixup", "cutmix"):
        ratios, boxes = drawn(mix, mix_share=0.3)
        assert abs((ratios < 1).mean() - 0.3) < 0.02
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        assert not areas[ratios == 1].any() and (mix == "cutmix") == bool(areas.any())
    ratios, _ = drawn("mixup")
    some, _ = drawn("mixup", mix_share=0.3)
    np.testing.assert_array_equal(some[some < 1], ratios[some < 1])  # the share changes no ratio
    assert not np.array_equal(ratios, drawn("mixup", seed=1)[0])


def test_boxes_of_cutmix_are_those_of_the_paper() -> None:
    """Sides of sqrt(1 - ratio), a centre uniform over the pixels, clipped; the ratio is the share of pixels outside."""
    for alpha in (1.0, 100.0):
        ratios, boxes = drawn("cutmix", mix_alpha=alpha)
        left, top, right, bottom = boxes.T.astype(int)
        np.testing.assert_array_equal(ratios, 1 - (right - left) * (bottom - top) / 1024)
    side = (32 * np.sqrt(1 - drawn("mixup", mix_alpha=100.0)[0])).astype(
        int
    )  # near 22: the border clips one end at most
    assert side.min() > 16 and side.max() < 28
    for low, high in ((left, right), (top, bottom)):
        centre = np.where(low > 0, low + side // 2, high - side + side // 2)
        np.testing.assert_array_equal(low, np.maximum(centre - side // 2, 0))
        np.testing.assert_array_equal(high, np.minimum(centre - side // 2 + side, 32))
        counts = np.bincount(centre, minlength=32)
        assert ((counts - N / 32) ** 2 / (N / 32)).sum() < 61.1  # 31 degrees of freedom: 99.9 % lie below


def test_vectors() -> None:
    """Committed draws: changing them makes every cache of mixed views invalid."""
    keys, views = np.array([1, 2**62 + 3]), np.array([0, 7], np.int32)
    params = view_params(Recipe(size=32, mix="cutmix", mix_alpha=0.7), 5)
    ratios, boxes = mixtures(params, keys, views)
    assert ratios.tolist() == [0.8095703125, 0.9921875]
    assert boxes.tolist() == [[0, 0, 13, 15], [4, 0, 8, 2]]
    ratios, _ = mixtures(view_params(Recipe(size=32, mix="mixup", mix_alpha=0.7), 5), keys, views)
    assert ratios.tolist() == [0.6973953137341791, 0.9760708590935377]


def images(channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    own, other = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return own.contiguous(memory_format=memory), other.contiguous(memory_format=memory)


@pytest.mark.parametrize("channels_last", [False, True])
def test_mixup_is_the_weighted_mean(channels_last: bool) -> None:
    own, other = images(channels_last)
    before, ratios = own.clone(), torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    found = apply(own, other, Mix(ratios, None))
    for i, r in enumerate(ratios.double().tolist()):
        expected = r * before[i].double().numpy() + (1 - r) * other[i].double().numpy()
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(found[0], other[0]) and torch.equal(found[4], before[4]) and found.stride() == before.stride()


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_is_a_box_of_the_partner(channels_last: bool) -> None:
    own, other = images(channels_last)
    boxes = [[0, 0, 8, 8], [2, 3, 5, 4], [0, 6, 1, 8], [3, 3, 3, 3], [7, 0, 8, 8]]
    expected = own.clone()
    for image, one, (left, top, right, bottom) in zip(expected, other, boxes, strict=True):
        image[:, top:bottom, left:right] = one[:, top:bottom, left:right]
    found = apply(own, other, Mix(torch.ones(5), torch.tensor(boxes, dtype=torch.int32)))
    assert torch.equal(found, expected) and found.stride() == expected.stride()


@pytest.mark.gpu
def test_a_gpu_mixes_as_the_cpu_does() -> None:
    ratios, boxes = (torch.from_numpy(part) for part in drawn("cutmix", 5))
    for mix in (Mix(ratios.float(), None), Mix(ratios.float(), boxes // 4)):
        on_gpu = Mix(mix.ratios.cuda(), None if mix.boxes is None else mix.boxes.cuda())
        expected, found = apply(*images(True), mix), apply(*(part.cuda() for part in images(True)), on_gpu)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)


def test_it_is_in_the_identity_only_when_it_is_on() -> None:
    assert identity(Recipe(mix_alpha=0.4, mix_share=0.5)) == {}
    expected = {"mix": "mixup", "mix_alpha": 1.0, "mix_share": 1.0}
    assert identity(Recipe(mix="mixup")) == expected
    for changed in ({"mix": "cutmix"}, {"mix_alpha": 0.4}, {"mix_share": 0.5}):
        assert identity(Recipe(**({"mix": "mixup"} | changed))) == expected | changed
    assert Recipe(mix="mixup").evaluation().mix is None and identity(Recipe(mix="mixup").unmixed()) == {}
