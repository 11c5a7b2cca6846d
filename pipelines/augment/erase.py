"""The transform that erases holes, the last before normalisation: squares (Cutout, DeVries and Taylor, arXiv 1708.04552) and a
rectangle (Random Erasing, Zhong et al. 2020, arXiv 1708.04896).

Owns its draw, its application to a whole batch on the device, which finish.py calls, and the settings that decide it.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Holes, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_CUTOUT, LANE_ERASING, below, uniform
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


@exact
def rectangles(p, keys, views):
    """int32 [B, 1, 4]: the rectangle erased from each view, as a hole; empty where none is, which has probability 1 - p.erasing.

    As in the published code: area and height / width are uniform in their ranges until the rectangle is smaller than the view in
    both directions, in at most 100 attempts, and all places inside the view are equally likely.
    """
    out = np.zeros((len(keys), 1, 4), np.int32)
    for i in range(len(keys)):
        chance, _b, _c, _d = philox_draw(p.seed, keys[i], views[i], LANE_ERASING, 0)
        if uniform(chance, 0.0, 1.0) >= p.erasing:
            continue
        for attempt in range(1, 101):
            a, b, c, d = philox_draw(p.seed, keys[i], views[i], LANE_ERASING, attempt)
            area = uniform(a, p.erasing_area_low, p.erasing_area_high) * np.float64(p.size * p.size)
            ratio = uniform(b, p.erasing_ratio_low, p.erasing_ratio_high)
            height, width = np.int64(np.sqrt(area * ratio) + 0.5), np.int64(np.sqrt(area / ratio) + 0.5)
            if height < p.size and width < p.size:
                left, top = below(c, p.size - width + 1), below(d, p.size - height + 1)
                out[i, 0, 0], out[i, 0, 1], out[i, 0, 2], out[i, 0, 3] = left, top, left + width, top + height
                break
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> tuple[np.ndarray, int] | None:
    """The holes of a batch and their level, as in Draws; None without holes."""
    keys = records.keys[plan.positions]
    drawn = [holes(params, keys, plan.views)] if params.cutout else []
    drawn += [rectangles(params, keys, plan.views)] if params.erasing else []
    return (np.concatenate(drawn, axis=1), params.cutout_level) if drawn else None


def apply(images: torch.Tensor, holes: Holes, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Erase holes from normalised images [B, 3, S, S], in place.

    scale, shift: of the normalisation, level * scale + shift, so that a hole holds what its level is normalised to.
    """
    level = (holes.level * scale + shift).to(images.dtype)
    return torch.where(covered(holes.boxes, images.shape[-1])[:, None], level, images, out=images)


def covered(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """bool [B, S, S]: which pixels lie in one of the boxes int32 [B, N, 4] (left, top, right, bottom) of their image."""
    at = torch.arange(size, device=boxes.device)
    inside = torch.zeros((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    for left, top, right, bottom in (box.unsqueeze(2).unbind(1) for box in boxes.unbind(1)):
        across, down = (at >= left) & (at < right), (at >= top) & (at < bottom)
        inside |= down[:, :, None] & across[:, None, :]
    return inside


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide its holes; empty without them."""
    out: dict[str, Any] = {}
    if recipe.cutout:
        out |= {"cutout": recipe.cutout, "cutout_holes": recipe.cutout_holes, "cutout_fill": recipe.cutout_fill}
    if recipe.erasing:
        ranges = {"erasing_area": list(recipe.erasing_area), "erasing_ratio": list(recipe.erasing_ratio)}
        out |= {"erasing": float(recipe.erasing), **ranges, "cutout_fill": recipe.cutout_fill}
    return out
