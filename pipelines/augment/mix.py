"""Mixtures of two views: mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899).

Owns which views are mixed, in which ratio and where, the mixing of finished images, and the settings that decide it; order.py
draws the partners. Both views are augmented, each as its own key and view number say, before they are mixed. A mixture is a
function of (data.seed, key, view) and of the set of keys, from which the partner is drawn.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment.erase import covered
from pipelines.augment.recipe import CUTMIX, Recipe, ViewParams
from pipelines.batch import Mix, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_MIX, below, beta, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records


@exact
def mixtures(p, keys, views):
    """(ratios float64 [B], boxes int32 [B, 4]): the share of the view itself, and the partner's box (CutMix).

    A view is mixed with probability p.mix_share; else its ratio is 1 and its box empty. The ratio is drawn from
    Beta(p.mix_alpha, p.mix_alpha). CutMix (its equation 2): the sides of the box are sqrt(1 - ratio) of the view's, its centre is
    uniform over the pixels, the border clips what lies beyond, and the ratio is then the exact share of pixels outside the box.
    A box of an odd side has that side, where the published code makes it one pixel smaller.
    """
    ratios, boxes = np.ones(len(keys), np.float64), np.zeros((len(keys), 4), np.int32)
    for i in range(len(keys)):
        chance, a, b, _d = philox_draw(p.seed, keys[i], views[i], LANE_MIX, 0)
        if uniform(chance, 0.0, 1.0) >= p.mix_share:
            continue
        ratios[i] = beta(p.seed, keys[i], views[i], LANE_MIX, 1, p.mix_alpha)
        if p.mix == CUTMIX:
            side = np.int64(p.size * np.sqrt(1.0 - ratios[i]))
            left, top = below(a, p.size) - side // 2, below(b, p.size) - side // 2
            boxes[i, 0], boxes[i, 2] = max(left, 0), min(left + side, p.size)
            boxes[i, 1], boxes[i, 3] = max(top, 0), min(top + side, p.size)
            area = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            ratios[i] = 1.0 - np.float64(area) / np.float64(p.size * p.size)
    return ratios, boxes


def draw(params: ViewParams, records: Records, plan: Plan) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The ratios and boxes of a batch, as in Draws; None where nothing is mixed, or in a plan of partners."""
    if not params.mix or plan.partners is None:
        return None
    ratios, boxes = mixtures(params, records.keys[plan.positions], plan.views)
    return ratios.astype(np.float32), boxes if params.mix == CUTMIX else None


def apply(images: torch.Tensor, partners: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Mix normalised images [B, 3, S, S] with those of their partners, in place. A ratio of 1 leaves an image as it is."""
    if mix.boxes is None:  # in float32, which the ratios need
        return images.copy_(torch.lerp(partners.float(), images.float(), mix.ratios[:, None, None, None]))
    return torch.where(covered(mix.boxes[:, None], images.shape[-1])[:, None], partners, images, out=images)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide its mixtures; empty without them."""
    if recipe.mix is None:
        return {}
    return {"mix": recipe.mix, "mix_alpha": float(recipe.mix_alpha), "mix_share": float(recipe.mix_share)}
