"""The transform that every view begins with: which box of an image it shows, and whether it is mirrored.

Owns its draw and the settings of a recipe that decide its boxes. It is applied while images are decoded: by `apply` on the CPU
(resample.py has the filter), or by a backend's own decoder. Invariant: the same box on every machine and from every backend.
"""

from typing import Any

import numpy as np

from pipelines.augment.recipe import CENTER, PAD_CROP, RANDOM_RESIZED_CROP, RESIZE_CROP, Recipe, ViewParams
from pipelines.augment.resample import crop_resize_flip
from pipelines.batch import Boxes, Plan
from pipelines.compiled import exact
from pipelines.philox import LANE_CROP, LANE_FLIP, below, exp, uniform
from pipelines.philox import draw as philox_draw
from pipelines.records.reader import Records

# Raise one when any box of the recipe changes: part of a cache's identity.
VERSIONS = {"pad_crop": 1, "random_resized_crop": 1, "resize_crop": 2, "center": 2}


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
    """The box of one view on the STORED image, in pixels: float (x, y, w, h), flip.

    width, height are the original size: boxes are fractions of it, so that a view shows the same part of an image
    at whatever size it is stored. Those of resize_crop and center have fractions, as a pixel of the resized image need not
    begin at one of the stored image; the others are whole numbers. pad_crop boxes may reach outside (those pixels are 0) and
    are never resized.
    """
    flip = np.int64(0)
    if p.flip:
        flip = np.int64(philox_draw(p.seed, key, view, LANE_FLIP, 0)[0] >> np.uint64(31))
    if p.kind == PAD_CROP:
        a, b, _c, _d = philox_draw(p.seed, key, view, LANE_CROP, 0)
        x, y = below(a, 2 * p.pad + 1) - p.pad, below(b, 2 * p.pad + 1) - p.pad
        return np.float64(x), np.float64(y), np.float64(p.size), np.float64(p.size), flip
    if p.kind == RANDOM_RESIZED_CROP:
        ox, oy, ow, oh = _random_resized(p, key, view, width, height)
        fx, fy = ox / np.float64(width), oy / np.float64(height)
        fw, fh = ow / np.float64(width), oh / np.float64(height)
        w, h = max(np.int64(1), _round(fw * stored_width)), max(np.int64(1), _round(fh * stored_height))
        x = min(_round(fx * stored_width), stored_width - w)
        y = min(_round(fy * stored_height), stored_height - h)
        return np.float64(x), np.float64(y), np.float64(w), np.float64(h), flip
    # Resize the short side to `short_side` (long side truncated, as torchvision does), then crop `size`.
    short = np.int64(min(width, height))
    rw, rh = p.short_side * np.int64(width) // short, p.short_side * np.int64(height) // short
    if p.kind == RESIZE_CROP:
        a, b, _c, _d = philox_draw(p.seed, key, view, LANE_CROP, 0)
        cx, cy = below(a, rw - p.size + 1), below(b, rh - p.size + 1)
    else:
        cx, cy = _half(rw - p.size), _half(rh - p.size)
    # The product first: it is exact, and so is its quotient where the stored image has the resized one's size.
    return (
        cx * stored_width / rw,
        cy * stored_height / rh,
        p.size * stored_width / rw,
        p.size * stored_height / rh,
        flip,
    )


@exact
def _reach(start, length, size, whole):
    """(first, number) of the pixels of a line of `whole` that its resampling reads: `length` from `start` on become `size`.

    They are those of the box, and those beside it that the triangle filter reaches.
    """
    if length == size and start == np.floor(start):  # copied
        return np.int64(start), np.int64(length)
    support = max(length / size, 1.0)
    low, high = np.int64(np.floor(start - support)), np.int64(np.ceil(start + length + support))
    low, high = max(low, 0), min(high, np.int64(whole))
    return low, high - low


@exact
def _fill(p, keys, views, widths, heights, stored_widths, stored_heights, out):
    for i in range(len(keys)):
        x, y, w, h, flip = view_box(p, keys[i], views[i], widths[i], heights[i], stored_widths[i], stored_heights[i])
        left, top, width, height = np.int64(x), np.int64(y), np.int64(w), np.int64(h)
        if p.kind == RESIZE_CROP or p.kind == CENTER:
            left, width = _reach(x, w, p.size, stored_widths[i])
            top, height = _reach(y, h, p.size, stored_heights[i])
        window, inside = out.windows[i], out.insides[i]
        window[0], window[1], window[2], window[3] = left, top, width, height
        inside[0], inside[1], inside[2], inside[3] = x - left, y - top, w, h
        out.flips[i] = flip


def boxes(p, keys, views, widths, heights, stored_widths, stored_heights) -> Boxes:
    """`view_box` for a batch, with the pixels that each view reads.

    random_resized_crop and pad_crop read the pixels of the box. `resize_crop` and `center` resize the whole image before they
    crop, so that their filter reads pixels beside the box as well.
    """
    out = Boxes(np.empty((len(keys), 4), np.int32), np.empty((len(keys), 4)), np.empty(len(keys), np.int32))
    _fill(p, keys, views, widths, heights, stored_widths, stored_heights, out)
    return out


def draw(params: ViewParams, records: Records, plan: Plan) -> Boxes:
    """The boxes of a batch, as in Draws."""
    at, r = plan.positions, records
    return boxes(params, r.keys[at], plan.views, r.widths[at], r.heights[at], r.stored_widths[at], r.stored_heights[at])


@exact
def apply(image, left, top, window, inside, flip, out):
    """Write the view of an image that a row of Boxes (window, inside, flip) shows into uint8 out[S, S, 3].

    image: uint8 [h, w, 3], the image or a part of it, whose corner lies at (left, top).
    """
    crop_resize_flip(image, (window[0] - left, window[1] - top, window[2], window[3]), inside, flip, out)


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
