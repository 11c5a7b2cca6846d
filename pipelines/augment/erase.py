"""The transform that erases square holes (Cutout, DeVries and Taylor, arXiv 1708.04552), the last before normalisation.

Owns its draw, its application to a whole batch on the device, which finish.py calls, and the settings that decide it.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Holes, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_CUTOUT, below
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records


@exact
def holes(p, keys, views):
    """int32 [B, N, 4]: left, top, right, bottom of each hole in pixels, right and bottom outside it.

    As in the paper's code: the centre is uniform over the pixels of the view, and the border clips what lies beyond.
    """
    out = np.empty((len(keys), p.cutout_holes, 4), np.int32)
    for i in range(len(keys)):
        for n in range(p.cutout_holes):
            a, b, _c, _d = philox_draw(p.seed, keys[i], views[i], LANE_CUTOUT, n)
            x, y = below(a, p.size) - p.cutout // 2, below(b, p.size) - p.cutout // 2
            out[i, n, 0], out[i, n, 1] = max(x, 0), max(y, 0)
            out[i, n, 2], out[i, n, 3] = min(x + p.cutout, p.size), min(y + p.cutout, p.size)
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> tuple[np.ndarray, int] | None:
    """The holes of a batch and their level, as in Draws; None without holes."""
    if not params.cutout:
        return None
    return holes(params, records.keys[plan.positions], plan.views), params.cutout_level


def apply(images: torch.Tensor, holes: Holes, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Erase holes from normalised images [B, 3, S, S], in place.

    scale, shift: of the normalisation, level * scale + shift, so that a hole holds what its level is normalised to.
    """
    at = torch.arange(images.shape[-1], device=images.device)
    erased = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for left, top, right, bottom in (hole.unsqueeze(2).unbind(1) for hole in holes.boxes.unbind(1)):
        across, down = (at >= left) & (at < right), (at >= top) & (at < bottom)
        erased |= down[:, :, None] & across[:, None, :]
    return torch.where(erased[:, None], (holes.level * scale + shift).to(images.dtype), images, out=images)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide its holes; empty without them."""
    if not recipe.cutout:
        return {}
    return {"cutout": recipe.cutout, "cutout_holes": recipe.cutout_holes, "cutout_fill": recipe.cutout_fill}
