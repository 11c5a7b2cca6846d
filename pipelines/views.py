"""Views: which crop and flip of a sample a student, a teacher and every backend see.

A view is a pure function of (data.seed, sample key, view number): Philox4x32-10 with key = data.seed and counter =
(key low, key high, view, lane << 16 | draw). One lane per transform, so adding a transform never moves another's draws.
Only integers, + - * /, sqrt and comparisons, compiled without fastmath: the same box on every machine.
This file owns recipes and boxes; it does not touch pixels (resample.py) nor colours (finish.py).
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from pipelines.compiled import exact

LANE_CROP, LANE_FLIP = 0, 1
LANE_COLOUR_ORDER, LANE_BRIGHTNESS, LANE_CONTRAST, LANE_SATURATION = 2, 3, 4, 5  # 6 is reserved for hue
LANE_ORDER, LANE_CLASS_BALANCED = 0xFFFF, 0xFFFE  # the order of an epoch (order.py): far from the lanes of transforms

PAD_CROP, RANDOM_RESIZED_CROP, RESIZE_CROP, CENTER = range(4)
_KINDS = {
    "pad_crop": PAD_CROP,
    "random_resized_crop": RANDOM_RESIZED_CROP,
    "resize_crop": RESIZE_CROP,
    "center": CENTER,
}
VIEWS_VERSION = 1  # raise when any box of any recipe changes; part of a cache's identity


@dataclass(kw_only=True)
class Recipe:
    """How a training view is cut from an image; `evaluation()` is the view that tests see."""

    crop: Literal["pad_crop", "random_resized_crop", "resize_crop", "center"] = "random_resized_crop"
    "pad_crop (CIFAR: zero-pad, crop), random_resized_crop, resize_crop (short side, then random crop) or center"
    size: int = 224
    "side of the square view, in pixels"
    pad: int = 4
    "pad_crop: zero pixels on each side"
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    "random_resized_crop: smallest and largest share of the image's area"
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    "random_resized_crop: smallest and largest width / height"
    short_side: int | None = None
    "resize_crop and evaluation: short side in pixels before the crop; null = size * 256 / 224 (pad_crop: size)"
    flip: bool = True
    "horizontal flip of half of the views"
    jitter: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    "colour jitter: largest change of brightness, contrast and saturation, 0 = none (ImageNet-LT [0.4, 0.4, 0.4])"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"data.recipe.size={self.size}: must be at least 1")
        if self.pad < 0:
            raise ValueError(f"data.recipe.pad={self.pad}: must be 0 or more")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"data.recipe.scale={self.scale}: must be [low, high] with 0 < low <= high <= 1")
        if len(self.ratio) != 2 or not 0.1 <= self.ratio[0] <= self.ratio[1] <= 10:
            raise ValueError(f"data.recipe.ratio={self.ratio}: must be [low, high] with 0.1 <= low <= high <= 10")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"data.recipe.short_side={self.short_side}: must be at least size={self.size}")

        if len(self.jitter) != 3 or min(self.jitter) < 0:
            raise ValueError(f"data.recipe.jitter={self.jitter}: must be [brightness, contrast, saturation], 0 or more")

    def resolved_short_side(self) -> int:
        """Short side in pixels that `resize_crop` and the evaluation view resize to."""
        if self.short_side is not None:
            return self.short_side
        return self.size if self.crop == "pad_crop" else (self.size * 256 + 112) // 224

    def evaluation(self) -> "Recipe":
        """The view of validation and test: short side, centre crop, no flip."""
        return Recipe(crop="center", size=self.size, short_side=self.resolved_short_side(), flip=False)

    def identity(self) -> dict:
        """What decides the pixels of a view and nothing else, for a cache's identity and for comparison."""
        out: dict = {"crop": self.crop, "size": self.size, "flip": self.flip}
        if self.crop == "pad_crop":
            out["pad"] = self.pad
        elif self.crop == "random_resized_crop":
            out["scale"], out["ratio"] = list(self.scale), list(self.ratio)
        else:
            out["short_side"] = self.resolved_short_side()
        if any(self.jitter):
            out["jitter"] = list(self.jitter)
        return out


class ViewParams(NamedTuple):
    """A recipe and its seed as plain numbers, in the form compiled code takes."""

    kind: int
    size: int
    short_side: int
    pad: int
    area_low: float
    area_high: float
    log_ratio_low: float
    log_ratio_high: float
    flip: int
    seed: int
    brightness: float
    contrast: float
    saturation: float


def view_params(recipe: Recipe, seed: int) -> ViewParams:
    """Numbers for `view_box` and `boxes`; `seed` is data.seed, 0 <= seed < 2**63."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"data.seed={seed}: must be at least 0 and less than 2**63")
    return ViewParams(
        kind=_KINDS[recipe.crop],
        size=int(recipe.size),
        short_side=int(recipe.resolved_short_side()),
        pad=int(recipe.pad),
        area_low=float(recipe.scale[0]),
        area_high=float(recipe.scale[1]),
        log_ratio_low=float(_log(float(recipe.ratio[0]))),
        log_ratio_high=float(_log(float(recipe.ratio[1]))),
        flip=int(recipe.flip),
        seed=int(seed),
        brightness=float(recipe.jitter[0]),
        contrast=float(recipe.jitter[1]),
        saturation=float(recipe.jitter[2]),
    )


@exact
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit counter words and two key words to four 32-bit words."""
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = np.uint64(c0) & mask, np.uint64(c1) & mask, np.uint64(c2) & mask, np.uint64(c3) & mask
    k0, k1 = np.uint64(k0) & mask, np.uint64(k1) & mask
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


@exact
def draw(seed, key, view, lane, index):
    """Four 32-bit words (as uint64) of draw number `index` of `lane` for one view of one sample."""
    shift = np.uint64(32)
    key64, seed64 = np.uint64(key), np.uint64(seed)
    last = np.uint64(lane) << np.uint64(16) | np.uint64(index)
    return philox(key64, key64 >> shift, np.uint64(view), last, seed64, seed64 >> shift)


@exact
def _uniform(word, low, high):
    return low + (high - low) * (np.float64(word) * 2.0**-32)


@exact
def _below(word, n):
    """An integer in 0 .. n-1 from a 32-bit word (multiply and shift; n < 2**31)."""
    return np.int64((np.uint64(word) * np.uint64(n)) >> np.uint64(32))


@exact
def _exp(x):
    """exp for |x| < 2.5 by its Taylor series: libm's last bit differs between machines, + * / do not."""
    total = 1.0
    for k in range(24, 0, -1):
        total = 1.0 + x * total / k
    return total


@exact
def _log(x):
    """log for 0.1 <= x <= 10 as 2 atanh((x-1)/(x+1)), for the same reason as `_exp`."""
    z = (x - 1.0) / (x + 1.0)
    total = 0.0
    for k in range(199, 0, -2):
        total = total * (z * z) + 1.0 / k
    return 2.0 * z * total


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
        a, b, c, d = draw(p.seed, key, view, LANE_CROP, attempt)
        target = area * _uniform(a, p.area_low, p.area_high)
        aspect = _exp(_uniform(b, p.log_ratio_low, p.log_ratio_high))
        w, h = _round(np.sqrt(target * aspect)), _round(np.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _below(c, width - w + 1), _below(d, height - h + 1), w, h
    w, h = np.int64(width), np.int64(height)
    low, high = _exp(p.log_ratio_low), _exp(p.log_ratio_high)
    if width < low * height:
        h = _round(width / low)  # may be 0 on a thin image; `view_box` makes it one pixel
    elif width > high * height:
        w = _round(height * high)
    return (width - w) // 2, (height - h) // 2, w, h


@exact
def view_box(p, key, view, width, height, stored_width, stored_height):
    """The box of one view on the STORED image, in pixels: (x, y, w, h, flip).

    width, height are the original size: boxes are fractions of it, so that one view shows the same part of an image
    whatever size it is stored at. pad_crop boxes may reach outside (those pixels are 0) and are never resized.
    """
    flip = np.int64(0)
    if p.flip:
        flip = np.int64(draw(p.seed, key, view, LANE_FLIP, 0)[0] >> np.uint64(31))
    if p.kind == PAD_CROP:
        a, b, _c, _d = draw(p.seed, key, view, LANE_CROP, 0)
        x, y = _below(a, 2 * p.pad + 1) - p.pad, _below(b, 2 * p.pad + 1) - p.pad
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
            a, b, _c, _d = draw(p.seed, key, view, LANE_CROP, 0)
            cx, cy = _below(a, rw - p.size + 1), _below(b, rh - p.size + 1)
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


@exact
def colours(p, keys, views):
    """Colour jitter of a batch: (factors float32[B, 3] of brightness, contrast, saturation; order int64[B, 3]).

    torchvision's ColorJitter without hue: each factor uniform in [max(0, 1 - j), 1 + j], the three in any of their six
    orders; order[i, n] is the n-th transform of sample i (0 brightness, 1 contrast, 2 saturation).
    """
    factors, order = np.empty((len(keys), 3), np.float32), np.empty((len(keys), 3), np.int64)
    for i in range(len(keys)):
        for k, lane, most in (
            (0, LANE_BRIGHTNESS, p.brightness),
            (1, LANE_CONTRAST, p.contrast),
            (2, LANE_SATURATION, p.saturation),
        ):
            factors[i, k] = _uniform(draw(p.seed, keys[i], views[i], lane, 0)[0], max(0.0, 1.0 - most), 1.0 + most)
        which = _below(draw(p.seed, keys[i], views[i], LANE_COLOUR_ORDER, 0)[0], 6)
        first = which // 2
        low, high = (1 if first == 0 else 0), (1 if first == 2 else 2)  # the two that are left, in order
        order[i, 0] = first
        order[i, 1], order[i, 2] = (low, high) if which % 2 == 0 else (high, low)
    return factors, order
