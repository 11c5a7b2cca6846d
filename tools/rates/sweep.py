"""A learning rate range test (Smith 2017, arXiv 1506.01186): a short training whose rate rises exponentially, and its reading.

Owns the sweep and what is read from its losses. The steps are the training's own, on the batches that it would have seen first.
Invariant: the reading is a function of rates and losses alone; the network that was trained is thrown away.
"""

from typing import NamedTuple

import numpy as np

from models import set_training
from pipelines.errors import UserError
from train.loop import Training
from train.meters import Meters, NotFinite
from train.step import TrainStep
from train.watch.progress import progress_bar

DIVERGED = 4.0  # the sweep ends where the mean loss of the last steps is so many times the lowest such mean
LAST = 5  # steps in that mean
WIDTH = 0.04  # of the sweep: standard deviation of the bell curve that smooths the losses, which does not shift them
LEAST_FALL = 0.02  # of the first loss: with less there is nothing to read from the curve


class Sweep(NamedTuple):
    """lrs: float64 [n], those of the optimizer; losses: float64 [n]; diverged: whether it ended before the highest rate."""

    lrs: np.ndarray
    losses: np.ndarray
    diverged: bool


class Reading(NamedTuple):
    """What a sweep says.

    smoothed: float64 [n]; found: None where the loss did not fall.
    """

    smoothed: np.ndarray
    found: "Found | None"


class Found(NamedTuple):
    """Two rates of a sweep.

    minimum: that of the lowest smoothed loss; steepest: that at which the smoothed loss falls fastest, over the logarithm of the
    rate. The loss of a network that was drawn anew falls fastest while its logits only shrink, at a hundredth of a good rate.
    """

    minimum: float
    steepest: float


def rates(low: float, high: float, steps: int) -> np.ndarray:
    """`steps` rates from low to high, each the same multiple of the one before."""
    return np.geomspace(low, high, steps)


def sweep(training: Training, lrs: np.ndarray) -> Sweep:
    """Train one step at each rate, until the loss diverges or is not finite; shows its progress."""
    config, accelerator = training.config, training.accelerator
    meters, losses = Meters(accelerator.device), []
    step = TrainStep(
        training.model,
        training.optimizer.optimizer,
        training.objective,
        config.optim,
        accelerator.scaler,
        meters=meters,
        graph=config.cuda_graph,
    )
    set_training(training.model)
    batches = training.loader.stream(training.order.plan(0, len(lrs)))
    try:
        with progress_bar("steps", len(lrs)) as done:
            for number, lr in enumerate(lrs):
                step(next(batches), number, float(lr))
                training.objective.require_finite(training.loader, accelerator)
                losses.append(meters.read(accelerator)["loss"])
                done()
                if diverges(losses):
                    break
    except NotFinite:
        pass
    finally:
        batches.close()
    if not losses:
        raise UserError("the loss of the first step is not finite: the same settings with train/... --dry-run say why")
    return Sweep(np.asarray(lrs[: len(losses)]), np.array(losses), len(losses) < len(lrs))


def diverges(losses: list[float]) -> bool:
    """Whether the loss has left its lowest level for good."""
    if len(losses) < 2 * LAST:
        return False
    means = np.convolve(losses, np.full(LAST, 1 / LAST), "valid")
    return bool(means[-1] > DIVERGED * means.min())


def read(done: Sweep, steps: int) -> Reading:
    """The reading of a sweep that was meant to have `steps` rates."""
    place = np.arange(len(done.losses))
    bells = np.exp(-0.5 * ((place[:, None] - place) / (WIDTH * steps)) ** 2)
    # One enormous loss at the end would hide those before it.
    bounded = np.minimum(done.losses, done.losses[:LAST].mean())
    smoothed = (bells * bounded).sum(1) / bells.sum(1)
    lowest = int(smoothed.argmin())
    if lowest == 0 or smoothed[0] - smoothed[lowest] < LEAST_FALL * abs(smoothed[0]):
        return Reading(smoothed, None)
    falls = np.gradient(smoothed[: lowest + 1], np.log(done.lrs[: lowest + 1]))
    return Reading(smoothed, Found(float(done.lrs[lowest]), float(done.lrs[falls.argmin()])))
