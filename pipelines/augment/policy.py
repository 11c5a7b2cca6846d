"""The transform that applies random operations to a view: AutoAugment, RandAugment, TrivialAugment.

Owns the policies, their magnitudes, the draw of operations for each view, and the settings that decide them; operations.py has
the operations. Policies and magnitudes are those of torchvision's AutoAugment, RandAugment and TrivialAugmentWide on Pillow's
images; what lies outside an image is grey 128, as in the code of AutoAugment's and RandAugment's authors, where torchvision's
default is black.
"""

from typing import Any

import numpy as np
import torch

from pipelines.augment import operations
from pipelines.augment.operations import (
    AUTOCONTRAST,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    EQUALIZE,
    IDENTITY,
    INVERT,
    POSTERIZE,
    ROTATE,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    SOLARIZE,
    TRANSLATE_X,
    TRANSLATE_Y,
)
from pipelines.augment.recipe import AUTOAUGMENT_CIFAR10, AUTOAUGMENT_IMAGENET, RANDAUGMENT, Recipe, ViewParams
from pipelines.batch import Operations, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_POLICY, below, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records

# AutoAugment (Cubuk et al., arXiv 1805.09501, its appendix): 25 pairs of (operation, tenths of its probability, magnitude
# 0..9); a view has one pair, each operation of it with its probability.
CIFAR10 = np.array(
    [
        [[INVERT, 1, 0], [CONTRAST, 2, 6]],
        [[ROTATE, 7, 2], [TRANSLATE_X, 3, 9]],
        [[SHARPNESS, 8, 1], [SHARPNESS, 9, 3]],
        [[SHEAR_Y, 5, 8], [TRANSLATE_Y, 7, 9]],
        [[AUTOCONTRAST, 5, 0], [EQUALIZE, 9, 0]],
        [[SHEAR_Y, 2, 7], [POSTERIZE, 3, 7]],
        [[COLOR, 4, 3], [BRIGHTNESS, 6, 7]],
        [[SHARPNESS, 3, 9], [BRIGHTNESS, 7, 9]],
        [[EQUALIZE, 6, 0], [EQUALIZE, 5, 0]],
        [[CONTRAST, 6, 7], [SHARPNESS, 6, 5]],
        [[COLOR, 7, 7], [TRANSLATE_X, 5, 8]],
        [[EQUALIZE, 3, 0], [AUTOCONTRAST, 4, 0]],
        [[TRANSLATE_Y, 4, 3], [SHARPNESS, 2, 6]],
        [[BRIGHTNESS, 9, 6], [COLOR, 2, 8]],
        [[SOLARIZE, 5, 2], [INVERT, 0, 0]],
        [[EQUALIZE, 2, 0], [AUTOCONTRAST, 6, 0]],
        [[EQUALIZE, 2, 0], [EQUALIZE, 6, 0]],
        [[COLOR, 9, 9], [EQUALIZE, 6, 0]],
        [[AUTOCONTRAST, 8, 0], [SOLARIZE, 2, 8]],
        [[BRIGHTNESS, 1, 3], [COLOR, 7, 0]],
        [[SOLARIZE, 4, 5], [AUTOCONTRAST, 9, 0]],
        [[TRANSLATE_Y, 9, 9], [TRANSLATE_Y, 7, 9]],
        [[AUTOCONTRAST, 9, 0], [SOLARIZE, 8, 3]],
        [[EQUALIZE, 8, 0], [INVERT, 1, 0]],
        [[TRANSLATE_Y, 7, 9], [AUTOCONTRAST, 9, 0]],
    ]
)
IMAGENET = np.array(
    [
        [[POSTERIZE, 4, 8], [ROTATE, 6, 9]],
        [[SOLARIZE, 6, 5], [AUTOCONTRAST, 6, 0]],
        [[EQUALIZE, 8, 0], [EQUALIZE, 6, 0]],
        [[POSTERIZE, 6, 7], [POSTERIZE, 6, 6]],
        [[EQUALIZE, 4, 0], [SOLARIZE, 2, 4]],
        [[EQUALIZE, 4, 0], [ROTATE, 8, 8]],
        [[SOLARIZE, 6, 3], [EQUALIZE, 6, 0]],
        [[POSTERIZE, 8, 5], [EQUALIZE, 10, 0]],
        [[ROTATE, 2, 3], [SOLARIZE, 6, 8]],
        [[EQUALIZE, 6, 0], [POSTERIZE, 4, 6]],
        [[ROTATE, 8, 8], [COLOR, 4, 0]],
        [[ROTATE, 4, 9], [EQUALIZE, 6, 0]],
        [[EQUALIZE, 0, 0], [EQUALIZE, 8, 0]],
        [[INVERT, 6, 0], [EQUALIZE, 10, 0]],
        [[COLOR, 6, 4], [CONTRAST, 10, 8]],
        [[ROTATE, 8, 8], [COLOR, 10, 2]],
        [[COLOR, 8, 8], [SOLARIZE, 8, 7]],
        [[SHARPNESS, 4, 7], [INVERT, 6, 0]],
        [[SHEAR_X, 6, 5], [EQUALIZE, 10, 0]],
        [[COLOR, 4, 0], [EQUALIZE, 6, 0]],
        [[EQUALIZE, 4, 0], [SOLARIZE, 2, 4]],
        [[SOLARIZE, 6, 5], [AUTOCONTRAST, 6, 0]],
        [[INVERT, 6, 0], [EQUALIZE, 10, 0]],
        [[COLOR, 6, 4], [CONTRAST, 10, 8]],
        [[EQUALIZE, 8, 0], [EQUALIZE, 6, 0]],
    ]
)
# RandAugment (Cubuk et al., arXiv 1909.13719) and TrivialAugment (Müller and Hutter, arXiv 2103.10158) draw from these.
DRAWN_FROM = np.array(
    [
        IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS, POSTERIZE,
        SOLARIZE, AUTOCONTRAST, EQUALIZE,
    ]
)  # fmt: skip
_MAGNITUDES = 31  # of RandAugment and TrivialAugment, 0..30; AutoAugment has ten


@exact
def _value(code, magnitude, magnitudes, wide, negative, size):
    """The value of an operation, as operations.py takes it.

    magnitude: 0 .. magnitudes - 1. wide: TrivialAugment's ranges; negative: the other of its two directions, if it has two.
    """
    share, sign = magnitude / (magnitudes - 1.0), -1.0 if negative else 1.0
    if code in (SHEAR_X, SHEAR_Y):
        return sign * (0.99 if wide else 0.3) * share
    if code in (TRANSLATE_X, TRANSLATE_Y):  # whole pixels
        return sign * np.floor((32.0 if wide else 150.0 / 331.0 * size) * share)
    if code == ROTATE:
        return sign * (135.0 if wide else 30.0) * share
    if code in (BRIGHTNESS, COLOR, CONTRAST, SHARPNESS):
        return 1.0 + sign * (0.99 if wide else 0.9) * share
    if code == POSTERIZE:
        return 8.0 - np.floor((6.0 if wide else 4.0) * share + 0.5)
    if code == SOLARIZE:
        return 255.0 * (magnitudes - 1.0 - magnitude) / (magnitudes - 1.0)
    return 0.0


@exact
def operations_of(p, keys, views):
    """The operations of each view, one after another: (codes int64 [B, L], values float64 [B, L]).

    AutoAugment has L = 2, RandAugment p.policy_ops, TrivialAugment 1. What a pair's probability leaves out is IDENTITY.
    """
    searched = p.policy in (AUTOAUGMENT_CIFAR10, AUTOAUGMENT_IMAGENET)
    random = p.policy == RANDAUGMENT
    layers = 2 if searched else p.policy_ops if random else 1
    codes, values = np.zeros((len(keys), layers), np.int64), np.zeros((len(keys), layers), np.float64)
    for i in range(len(keys)):
        pair = below(philox_draw(p.seed, keys[i], views[i], LANE_POLICY, 0)[0], len(CIFAR10))
        for n in range(layers):
            which, chance, direction, strength = philox_draw(p.seed, keys[i], views[i], LANE_POLICY, n + 1)
            negative = direction >> np.uint64(31) == 1
            if searched:
                row = CIFAR10[pair, n] if p.policy == AUTOAUGMENT_CIFAR10 else IMAGENET[pair, n]
                if uniform(chance, 0.0, 10.0) < row[1]:
                    codes[i, n], values[i, n] = row[0], _value(row[0], row[2], 10, False, negative, p.size)
            else:
                code = DRAWN_FROM[below(which, len(DRAWN_FROM))]
                magnitude = p.policy_magnitude if random else below(strength, _MAGNITUDES)
                codes[i, n] = code
                values[i, n] = _value(code, magnitude, _MAGNITUDES, not random, negative, p.size)
    return codes, values


def draw(params: ViewParams, records: Records, plan: Plan) -> Operations | None:
    """The operations of a batch, as in Draws; None without a policy."""
    if not params.policy:
        return None
    return Operations(*operations_of(params, records.keys[plan.positions], plan.views))


def apply(pixels: torch.Tensor, drawn: Operations) -> torch.Tensor:
    """uint8 pixels [B, S, S, 3], each after its operations, on their device."""
    for codes, values in zip(drawn.codes.T, drawn.values.T, strict=True):
        pixels = operations.apply(pixels, codes, values)
    return pixels


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide its operations; empty without a policy."""
    if recipe.policy is None:
        return {}
    chosen = {"policy_ops": recipe.policy_ops, "policy_magnitude": recipe.policy_magnitude}
    return {"policy": recipe.policy} | (chosen if recipe.policy == "randaugment" else {})
