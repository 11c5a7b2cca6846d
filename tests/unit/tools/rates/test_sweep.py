"""What is read from the losses of a sweep, on curves whose answer is known."""

import numpy as np
import pytest

from tools.rates.sweep import DIVERGED, Sweep, diverges, rates, read

STEPS = 100
LRS = rates(1e-6, 10, STEPS)


def curve(fall_at: float, lowest_at: float) -> np.ndarray:
    """A loss that falls by 4, fastest at one rate, then slowly, and rises from another one on."""
    place = np.log10(LRS)
    beyond = place - np.log10(lowest_at)
    return 2 + 4 / (1 + np.exp(6 * (place - np.log10(fall_at)))) + np.where(beyond < 0, -0.3 * beyond, 5 * beyond)


def test_rates_rise_by_the_same_factor() -> None:
    assert (LRS[0], LRS[-1], len(LRS)) == (pytest.approx(1e-6), pytest.approx(10), STEPS)
    assert np.allclose(LRS[1:] / LRS[:-1], 1e7 ** (1 / (STEPS - 1)))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_lowest_and_the_steepest_place_of_a_known_curve(noise: float) -> None:
    losses = curve(fall_at=0.003, lowest_at=0.3) + noise * np.random.default_rng(0).standard_normal(STEPS)
    found = read(Sweep(LRS, losses, False), STEPS).found
    assert found is not None
    assert 0.1 < found.minimum < 0.35  # smoothing draws it away from the rise
    assert 0.003 / 1.7 < found.steepest < 0.003 * 1.7


def test_one_enormous_loss_at_the_end_moves_nothing() -> None:
    losses = curve(fall_at=0.003, lowest_at=0.3)
    calm = read(Sweep(LRS[:80], losses[:80], True), STEPS).found
    spiked = read(Sweep(LRS[:80], np.append(losses[:79], 1e12), True), STEPS).found
    assert calm is not None and spiked is not None
    assert calm.minimum / 2 < spiked.minimum <= calm.minimum and spiked.steepest == calm.steepest


@pytest.mark.parametrize("losses", [np.full(STEPS, 2.0), np.linspace(2, 9, STEPS), np.linspace(2, 1.99, STEPS)])
def test_a_loss_that_does_not_fall_gives_no_suggestion(losses: np.ndarray) -> None:
    reading = read(Sweep(LRS, losses, False), STEPS)
    assert reading.found is None and len(reading.smoothed) == STEPS


def test_divergence_is_several_steps_not_one() -> None:
    falling = list(np.linspace(4, 1, 20))
    assert not diverges(falling) and not diverges([*falling, DIVERGED * 2]) and not diverges([1.0, 50.0])
    assert diverges([*falling, *[DIVERGED * 2] * 5])
