"""Sines, and maps in fixed point."""

import math

import numpy as np
import pytest
import torch

from pipelines.augment.affine import _sin_cos, apply, fixed_point, rotation


def test_sines_are_those_of_the_library() -> None:
    for x in np.linspace(-math.pi, math.pi, 1001):
        assert _sin_cos(x) == pytest.approx((math.sin(x), math.cos(x)), rel=0, abs=2e-15)


def test_a_map_leads_from_output_to_source() -> None:
    """One pixel from the right, and what comes from outside is filled."""
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3, 1).expand(1, 3, 3, 3)
    out = np.empty((1, 6), np.int64)
    fixed_point(1.0, 0.0, 1.0, 0.0, 1.0, 0.0, out[0])
    found = apply(image, torch.from_numpy(out), fill=99)
    assert found[0, :, :, 0].tolist() == [[1, 2, 99], [4, 5, 99], [7, 8, 99]] and found.dtype == torch.uint8


def test_a_quarter_turn_is_exact_and_counter_clockwise() -> None:
    for size in (4, 5):
        image = torch.arange(size * size, dtype=torch.uint8).view(1, size, size, 1).expand(1, size, size, 3)
        out = np.empty((1, 6), np.int64)
        for degrees, turns in ((90.0, 1), (-90.0, 3), (180.0, 2), (0.0, 0)):
            rotation(degrees, size, out[0])
            assert torch.equal(apply(image, torch.from_numpy(out), 0), image.rot90(turns, (1, 2))), degrees
