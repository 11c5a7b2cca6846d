"""The transform that turns a view about its centre by a random angle (torchvision's RandomRotation on Pillow's images).

Owns its draw, its application to a whole batch on the device, and the setting that decides it. The nearest pixel is shown, and
black where the source ends.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment import affine
from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Plan
from pipelines.compiled import exact
from pipelines.device import to_device
from pipelines.philox import LANE_ROTATION, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records


@exact
def angles(p, keys, views):
    """float64 [B]: degrees, counter-clockwise, uniform in -p.rotation .. p.rotation."""
    out = np.empty(len(keys), np.float64)
    for i in range(len(keys)):
        out[i] = uniform(philox_draw(p.seed, keys[i], views[i], LANE_ROTATION, 0)[0], -p.rotation, p.rotation)
    return out


@exact
def _maps(degrees, size):
    out = np.empty((len(degrees), 6), np.int64)
    for i in range(len(degrees)):
        affine.rotation(degrees[i], size, out[i])
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> np.ndarray | None:
    """The angles of a batch, as in Draws; None without rotation."""
    if not params.rotation:
        return None
    return angles(params, records.keys[plan.positions], plan.views)


def apply(pixels: torch.Tensor, degrees: np.ndarray) -> torch.Tensor:
    """uint8 pixels [B, S, S, 3], each turned by its own angle, on their device."""
    return affine.apply(pixels, to_device(_maps(degrees, pixels.shape[1]), pixels.device), fill=0)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The setting of a recipe that decides its angles; empty without rotation."""
    return {"rotation": float(recipe.rotation)} if recipe.rotation else {}
