"""Normalisation against its formula in float64, and the memory format."""

import math

import numpy as np
import pytest
import torch

from pipelines.augment.colour import apply, colours
from pipelines.augment.finish import Finish, check_normalisation
from pipelines.augment.recipe import Recipe, view_params
from pipelines.batch import Batch, Colours, Holes

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")


def all_levels() -> torch.Tensor:
    """uint8 [2, 16, 16, 3]: every grey level in every channel, in a different order in each."""
    levels = np.arange(256, dtype=np.uint8)
    one = np.stack([levels, levels[::-1], np.roll(levels, 100)], axis=1).reshape(16, 16, 3)
    return torch.from_numpy(np.stack([one, one[::-1]]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_level_against_float64(channels_last: bool) -> None:
    """To 1e-6 absolute: a few units in the last place of float32 at the largest value, 2.64."""
    pixels = all_levels()
    images = Finish(MEAN, STD, CPU, channels_last)(pixels)
    expected = (pixels.numpy().astype(np.float64) / 255 - MEAN) / STD
    assert images.dtype == torch.float32 and images.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(images.numpy(), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_memory_format_changes_strides_and_no_value() -> None:
    pixels = all_levels()
    plain, last = (Finish(MEAN, STD, CPU, channels_last)(pixels) for channels_last in (False, True))
    assert plain.stride() == (768, 256, 16, 1)
    assert last.stride() == (768, 1, 48, 3)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("more", ["", "colours", "holes"])
def test_a_narrower_type_is_the_rounded_result(channels_last: bool, more: str) -> None:
    pixels = all_levels()
    colours = Colours(torch.full((2, 3), 1.2), torch.tensor([[0, 1, 2], [2, 1, 0]])) if more == "colours" else None
    holes = Holes(torch.tensor([[[0, 2, 5, 7]], [[3, 3, 16, 16]]], dtype=torch.int32), 127) if more == "holes" else None
    wide, narrow = (
        Finish(MEAN, STD, CPU, channels_last, dtype=dtype)(pixels, colours, holes)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.dtype == torch.bfloat16 and narrow.stride() == wide.stride()
    assert torch.equal(narrow, wide.bfloat16())


def test_the_crops_are_left_alone() -> None:
    pixels = all_levels()
    Finish(MEAN, STD, CPU, True)(pixels)
    assert torch.equal(pixels, all_levels())


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5, 0.5], STD),
        ([-0.1, 0.5, 0.5], STD),
        ([0.5, 1.5, 0.5], STD),
        ([math.nan, 0.5, 0.5], STD),
        (MEAN, [0.2]),
        (MEAN, [0.2, 0.2, 0.0]),
        (MEAN, [0.2, -0.2, 0.2]),
        (MEAN, [0.2, 1e-30, 0.2]),
        (MEAN, [0.2, math.inf, 0.2]),
    ],
)
def test_impossible_settings_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(
        ValueError, match=r"data\.(mean|std)=.* three numbers in 0(\.001)?\.\.1, of pixels divided by 255"
    ):
        Finish(mean, std, CPU, False)


@pytest.mark.parametrize("prefix", ["data.", "distill.teacher_"])
def test_numbers_on_the_scale_of_bytes_are_told_in_the_right_unit(prefix: str) -> None:
    for name, given, divided in (
        ("mean", [123.675, 116.28, 103.53], "0.485,0.456,0.406"),
        ("std", [58.395, 57.12, 57.375], "0.229,0.224,0.225"),
    ):
        with pytest.raises(ValueError) as caught:
            check_normalisation(**({"mean": None, "std": None} | {name: given}), prefix=prefix)
        assert str(caught.value) == (
            f"{prefix}{name}={given}: {name} is in 0..1, of pixels divided by 255; divide by 255: {prefix}{name}=[{divided}]"
        )


def torchvision_jitter(image: np.ndarray, factors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """ColorJitter of one float64 image [3, S, S] in 0..1, transform by transform, as torchvision's tensor code defines it."""

    def grey(x: np.ndarray) -> np.ndarray:
        return 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]

    for which in order:
        f = float(factors[which])
        if which == 0:
            image = np.clip(f * image, 0, 1)
        elif which == 1:
            image = np.clip(f * image + (1 - f) * grey(image).mean(), 0, 1)
        else:
            image = np.clip(f * image + (1 - f) * grey(image)[None], 0, 1)
    return image


def some_colours(count: int) -> tuple[np.ndarray, np.ndarray]:
    params = view_params(Recipe(jitter=[0.4, 0.4, 0.4]), 0)
    return colours(params, np.arange(count, dtype=np.int64), np.full(count, 3, np.int32))


def test_jitter_is_torchvisions_sample_by_sample() -> None:
    """60 images, including all six orders, to 2e-6 (float32 against float64)."""
    factors, order = some_colours(60)
    assert len({tuple(row) for row in order}) == 6
    images = np.random.default_rng(0).random((60, 3, 8, 8))
    got = apply(torch.from_numpy(images).float(), Colours(torch.from_numpy(factors), torch.from_numpy(order)))
    for i in range(60):
        np.testing.assert_allclose(got[i], torchvision_jitter(images[i], factors[i], order[i]), rtol=0, atol=2e-6)


def test_jitter_comes_before_normalisation_and_does_not_mix_samples() -> None:
    factors, order = some_colours(2)
    pixels = all_levels()
    both = Finish(MEAN, STD, CPU, True)(pixels, Colours(torch.from_numpy(factors), torch.from_numpy(order)))
    for i in range(2):
        image = torchvision_jitter(pixels[i].numpy().transpose(2, 0, 1) / 255, factors[i], order[i])
        expected = (image - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        np.testing.assert_allclose(both[i], expected, rtol=0, atol=1e-5)
    one = Finish(MEAN, STD, CPU, True)(pixels[1:], Colours(torch.from_numpy(factors[1:]), torch.from_numpy(order[1:])))
    np.testing.assert_allclose(one[0], both[1], rtol=0, atol=1e-6)


def test_factors_of_one_change_nothing() -> None:
    order = torch.tensor([[0, 1, 2], [2, 1, 0]])
    plain, same = (
        Finish(MEAN, STD, CPU, False)(all_levels(), given) for given in (None, Colours(torch.ones(2, 3), order))
    )
    torch.testing.assert_close(plain, same, rtol=0, atol=1e-6)


def test_a_part_of_a_batch_takes_its_colours_along() -> None:
    factors, order = (torch.from_numpy(column) for column in some_colours(4))
    batch = Batch(
        torch.zeros(4, 3, 2, 2), torch.arange(4), np.arange(4), np.zeros(4, np.int32), torch.zeros(4, 2, 2, 3),
        Colours(factors, order),
    )  # fmt: skip
    part = batch.rows(1, 3)
    assert part.colours is not None
    assert torch.equal(part.colours.factors, factors[1:3]) and torch.equal(part.colours.order, order[1:3])


@pytest.mark.slow
def test_compiled_jitter_differs_in_the_last_bits_at_most() -> None:
    """A few units in the last place of float32 at the largest value, 2.64."""
    recipe = Recipe(jitter=[0.4, 0.4, 0.4])
    plain, compiled = (Finish(MEAN, STD, CPU, True, compile=compile) for compile in (False, True))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8))
    given = Colours(*map(torch.from_numpy, colours(view_params(recipe, 0), np.arange(6), np.zeros(6, np.int32))))
    expected, found = plain(pixels, given), compiled(pixels, given)
    assert found.stride() == expected.stride() and (found - expected).abs().max() < 4e-6
    assert not torch.equal(plain(pixels), expected), "there is jitter to compile"


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_finishes_as_the_cpu_does(compile: bool) -> None:
    recipe, cuda = Recipe(jitter=[0.4, 0.4, 0.4]), torch.device("cuda")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype(np.uint8))
    factors, order = map(torch.from_numpy, colours(view_params(recipe, 0), np.arange(8), np.zeros(8, np.int32)))
    expected = Finish(MEAN, STD, CPU, True)(pixels, Colours(factors, order))
    found = Finish(MEAN, STD, cuda, True, compile=compile)(pixels.to(cuda), Colours(factors.to(cuda), order.to(cuda)))
    assert found.is_cuda and found.stride() == expected.stride()
    assert (found.cpu() - expected).abs().max() < 1e-5, "the mean grey value is summed in another order"
