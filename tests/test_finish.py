"""Normalisation against its formula in float64, and the memory format."""

import numpy as np
import pytest
import torch

from pipelines.finish import Finish

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")


def all_levels() -> torch.Tensor:
    """uint8 [2, 16, 16, 3]: every grey level in every channel, in another order in each."""
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


def test_the_crops_are_left_alone() -> None:
    pixels = all_levels()
    Finish(MEAN, STD, CPU, True)(pixels)
    assert torch.equal(pixels, all_levels())


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5, 0.5], STD), (MEAN, [0.2]), (MEAN, [0.2, 0.2, 0.0]), (MEAN, [0.2, -0.2, 0.2])]
)
def test_impossible_settings_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match=r"data\.mean=.* data\.std=.* three numbers, std above 0"):
        Finish(mean, std, CPU, False)
