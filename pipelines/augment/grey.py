"""The transform that takes the colours from some views (torchvision's RandomGrayscale on Pillow's images).

Owns its draw, its application to a whole batch on the device, and the setting that decides it.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment import operations
from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_GREY, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records


@exact
def grey_views(p, keys, views):
    """bool [B]: whether a view is grey, with probability p.grey."""
    out = np.empty(len(keys), np.bool_)
    for i in range(len(keys)):
        out[i] = uniform(philox_draw(p.seed, keys[i], views[i], LANE_GREY, 0)[0], 0.0, 1.0) < p.grey
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> np.ndarray | None:
    """Which views of a batch are grey, as in Draws; None where none is."""
    if not params.grey:
        return None
    return grey_views(params, records.keys[plan.positions], plan.views)


def apply(pixels: torch.Tensor, grey: np.ndarray) -> torch.Tensor:
    """uint8 pixels [B, S, S, 3], of which those with grey bool [B] have Image.convert("L") in all channels."""
    return operations.apply(pixels, np.where(grey, operations.COLOR, operations.IDENTITY), np.zeros(len(grey)))


def identity(recipe: Recipe) -> dict[str, Any]:
    """The setting of a recipe that decides which views are grey; empty where none is."""
    return {"grayscale": float(recipe.grayscale)} if recipe.grayscale else {}
