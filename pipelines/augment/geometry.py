"""The transform that every view begins with: which box of an image it shows, and whether it is mirrored.

Owns its draw and the settings of a recipe that decide its boxes. It is applied while images are decoded: by `apply` on the CPU
(resample.py has the filter), or by a backend's own decoder. Invariant: the same box on every machine and from every backend.
"""

from typing import Any

import numpy as np

from pipelines.augment.recipe import PAD_CROP, RANDOM_RESIZED_CROP, RESIZE_CROP, Recipe, ViewParams
from pipelines.augment.resample import crop_resize_flip
from pipelines.batch import Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_CROP, LANE_FLIP, below, exp, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records

VIEWS_VERSION = 1  # raise when any box of any recipe changes; part of a cache's identity


@exact
def _round(x):
    return np.int64(np.floor(x + 0.5))


@exact
def _half(n):
    """n / 2 rounded half to even, as torchvision's centre crop rounds."""
    half = n // 2
    return half + (n % 2) * (half % 2)


@exact
def _random_resized(p, key, view, width, height):
    """(x, y, w, h) in pixels of the original image: torchvision's ten attempts, then its central fallback."""
    area = np.float64(width) * np.float64(height)
    for attempt in range(10):
        a, b, c, d = philox_draw(p.seed, key, view, LANE_CROP, attempt)
        target = area * uniform(a, p.area_low, p.area_high)
        aspect = exp(uniform(b, p.log_ratio_low, p.log_ratio_high))
        w, h = _round(np.sqrt(target * aspect)), _round(np.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return below(c, width - w + 1), below(d, height - h + 1), w, h
    w, h = np.int64(width), np.int64(height)
    low, high = exp(p.log_ratio_low), exp(p.log_ratio_high)
    if width < low * height:
        h = _round(width / low)  # may be 0 on a thin image; `view_box` makes it one pixel
    elif width > high * height:
        w = _round(height * high)
    return (width - w) // 2, (height - h) // 2, w, h


@exact
def view_box(p, key, view, width, height, stored_width, stored_height):
    """The box of one view on the STORED image, in pixels: (x, y, w, h, flip).

    width, height are the original size: boxes are fractions of it, so that a view shows the same part of an image
    at whatever size it is stored. pad_crop boxes may reach outside (those pixels are 0) and are never resized.
    """
    flip = np.int64(0)
    if p.flip:
        flip = np.int64(philox_draw(p.seed, key, view, LANE_FLIP, 0)[0] >> np.uint64(31))
    if p.kind == PAD_CROP:
        a, b, _c, _d = philox_draw(p.seed, key, view, LANE_CROP, 0)
        x, y = below(a, 2 * p.pad + 1) - p.pad, below(b, 2 * p.pad + 1) - p.pad
        return x, y, np.int64(p.size), np.int64(p.size), flip
    if p.kind == RANDOM_RESIZED_CROP:
        ox, oy, ow, oh = _random_resized(p, key, view, width, height)
        fx, fy = ox / np.float64(width), oy / np.float64(height)
        fw, fh = ow / np.float64(width), oh / np.float64(height)
    else:
        # Resize the short side to `short_side` (long side truncated, as torchvision does), then crop `size`.
        short = np.int64(min(width, height))
        rw, rh = p.short_side * np.int64(width) // short, p.short_side * np.int64(height) // short
        if p.kind == RESIZE_CROP:
            a, b, _c, _d = philox_draw(p.seed, key, view, LANE_CROP, 0)
            cx, cy = below(a, rw - p.size + 1), below(b, rh - p.size + 1)
        else:
            cx, cy = _half(rw - p.size), _half(rh - p.size)
        fx, fy, fw, fh = cx / np.float64(rw), cy / np.float64(rh), p.size / np.float64(rw), p.size / np.float64(rh)
    w, h = max(np.int64(1), _round(fw * stored_width)), max(np.int64(1), _round(fh * stored_height))
    x = min(_round(fx * stored_width), stored_width - w)
    y = min(_round(fy * stored_height), stored_height - h)
    return x, y, w, h, flip


@exact
def boxes(p, keys, views, widths, heights, stored_widths, stored_heights):
    """`view_box` for a batch: int32[B, 5] of (x, y, w, h, flip)."""
    out = np.empty((len(keys), 5), np.int32)
    for i in range(len(keys)):
        x, y, w, h, flip = view_box(p, keys[i], views[i], widths[i], heights[i], stored_widths[i], stored_heights[i])
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = x, y, w, h, flip
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> np.ndarray:
    """The boxes of a batch, as in Draws."""
    at, r = plan.positions, records
    return boxes(params, r.keys[at], plan.views, r.widths[at], r.heights[at], r.stored_widths[at], r.stored_heights[at])


@exact
def apply(image, box, out):
    """Write the view of uint8 image[H, W, 3] that `box`, a row of Draws.boxes, shows into uint8 out[S, S, 3]."""
    x, y, w, h, flip = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3]), np.int64(box[4])
    crop_resize_flip(image, x, y, w, h, flip, out)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide where its boxes lie."""
    out: dict[str, Any] = {"crop": recipe.crop, "size": recipe.size, "flip": recipe.flip}
    if recipe.crop == "pad_crop":
        out["pad"] = recipe.pad
    elif recipe.crop == "random_resized_crop":
        out["scale"], out["ratio"] = list(recipe.scale), list(recipe.ratio)
    else:
        out["short_side"] = recipe.resolved_short_side()
    return out
