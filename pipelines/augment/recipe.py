"""What a view is made of: the settings of all transforms, and their numbers in the form that compiled code takes.

Owns the allowed values; how the numbers are used is up to each transform (transforms.py).
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from pipelines.philox import log

PAD_CROP, RANDOM_RESIZED_CROP, RESIZE_CROP, CENTER = range(4)  # in @exact code, which a change must compile anew
KINDS = {
    "pad_crop": PAD_CROP,
    "random_resized_crop": RANDOM_RESIZED_CROP,
    "resize_crop": RESIZE_CROP,
    "center": CENTER,
}


NO_POLICY, AUTOAUGMENT_CIFAR10, AUTOAUGMENT_IMAGENET, RANDAUGMENT, TRIVIALAUGMENT = range(5)  # as KINDS
POLICIES = {
    None: NO_POLICY,
    "autoaugment_cifar10": AUTOAUGMENT_CIFAR10,
    "autoaugment_imagenet": AUTOAUGMENT_IMAGENET,
    "randaugment": RANDAUGMENT,
    "trivialaugment": TRIVIALAUGMENT,
}
HOLE_LEVELS = {"grey": 128, "black": 0}  # of 255
NO_MIX, MIXUP, CUTMIX = range(3)  # as KINDS
MIXES = {None: NO_MIX, "mixup": MIXUP, "cutmix": CUTMIX}

_LONGEST_SIDE = 65535  # of a JPEG; its views are at most half as long, as an evaluation needs a longer short side
_MOST_JITTER = 2  # every channel saturates long before
_MOST_OPS, _MOST_MAGNITUDE, _MOST_HOLES = 16, 30, 100
_LEAST_ALPHA, _MOST_ALPHA = 0.05, 100  # for philox.beta: nearly all ratios are near 0 or 1, or near a half


@dataclass(kw_only=True)
class Recipe:
    """How a training view is cut from an image; `evaluation()` is the view for validation and test."""

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
    rotation: float = 0.0
    "degrees: each view is turned by a random angle up to this, either way, with black corners; 0 = none (RIDE's CIFAR: 15)"
    policy: Literal["autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment"] | None = None
    "random operations on the view's colours and shape, as in torchvision (trivialaugment: its Wide); null = none"
    policy_ops: int = 2
    "randaugment: operations for each view, one after another (N of its paper)"
    policy_magnitude: int = 9
    "randaugment: strength of all operations, 0 to 30 (M of its paper)"
    grayscale: float = 0.0
    "share of the views that lose their colours, 0..1"
    cutout: int = 0
    "Cutout: side of a square hole in pixels, at a random place and clipped by the border; 0 = none (CIFAR-10: 16, CIFAR-100: 8)"
    cutout_holes: int = 1
    "cutout: number of holes"
    cutout_fill: Literal["grey", "black"] = "grey"
    "cutout and erasing: what is in a hole before normalisation; grey = 128 of 255"
    erasing: float = 0.0
    "share of the views in which a random rectangle is erased (Random Erasing), 0..1 (published: 0.5)"
    erasing_area: list[float] = field(default_factory=lambda: [0.02, 0.4])
    "erasing: smallest and largest share of the view's area"
    erasing_ratio: list[float] = field(default_factory=lambda: [0.3, 1 / 0.3])
    "erasing: smallest and largest height / width"
    mix: Literal["mixup", "cutmix"] | None = None
    """mix each view with that of another image, their labels too: mixup (a weighted mean) or cutmix (a box of the other);
    null = none; every view is loaded with its partner, so that twice as many images are decoded"""
    mix_alpha: float = 1.0
    "mix: the ratio is drawn from Beta(alpha, alpha); 1 = uniform (mixup: CIFAR 1, ImageNet 0.2; cutmix: 1)"
    mix_share: float = 1.0
    "mix: share of the views that are mixed, above 0, at most 1 (cutmix: CIFAR 0.5)"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LONGEST_SIDE // 2:
            raise ValueError(f"data.recipe.size={self.size}: must be from 1 to {_LONGEST_SIDE // 2} pixels")
        if not 0 <= self.pad <= (self.size if self.crop == "pad_crop" else _LONGEST_SIDE):
            raise ValueError(
                f"data.recipe.pad={self.pad}: must be from 0 to data.recipe.size={self.size}: beyond, views may miss the image"
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"data.recipe.scale={self.scale}: must be [low, high] with 0 < low <= high <= 1")
        if len(self.ratio) != 2 or not 0.1 <= self.ratio[0] <= self.ratio[1] <= 10:
            raise ValueError(f"data.recipe.ratio={self.ratio}: must be [low, high] with 0.1 <= low <= high <= 10")
        if self.short_side is not None and not self.size <= self.short_side <= _LONGEST_SIDE:
            raise ValueError(
                f"data.recipe.short_side={self.short_side}: must be at least size={self.size}, at most {_LONGEST_SIDE} pixels"
            )
        if len(self.jitter) != 3 or not all(0 <= most <= _MOST_JITTER for most in self.jitter):
            raise ValueError(
                f"data.recipe.jitter={self.jitter}: must be [brightness, contrast, saturation], shares in 0..{_MOST_JITTER}: "
                "0.4 is a change by up to 40 %"
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"data.recipe.rotation={self.rotation}: must be from 0 to 180 degrees")
        if not 0 <= self.grayscale <= 1:
            raise ValueError(f"data.recipe.grayscale={self.grayscale}: must be a share from 0 to 1")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"data.recipe.erasing={self.erasing}: must be a share from 0 to 1")
        if len(self.erasing_area) != 2 or not 0 < self.erasing_area[0] <= self.erasing_area[1] <= 1:
            raise ValueError(
                f"data.recipe.erasing_area={self.erasing_area}: must be [low, high] with 0 < low <= high <= 1"
            )
        if len(self.erasing_ratio) != 2 or not 0.1 <= self.erasing_ratio[0] <= self.erasing_ratio[1] <= 10:
            raise ValueError(
                f"data.recipe.erasing_ratio={self.erasing_ratio}: must be [low, high] with 0.1 <= low <= high <= 10"
            )
        if not _LEAST_ALPHA <= self.mix_alpha <= _MOST_ALPHA:
            raise ValueError(f"data.recipe.mix_alpha={self.mix_alpha}: must be from {_LEAST_ALPHA} to {_MOST_ALPHA}")
        if not 0 < self.mix_share <= 1:
            raise ValueError(
                f"data.recipe.mix_share={self.mix_share}: must be above 0 and at most 1; without mixtures, data.recipe.mix=null"
            )
        for name, least, most, unit in (
            ("policy_ops", 1, _MOST_OPS, " operations"),
            ("policy_magnitude", 0, _MOST_MAGNITUDE, ", the strongest"),
            ("cutout", 0, self.size, " pixels, the side of a view"),
            ("cutout_holes", 1, _MOST_HOLES, " holes"),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"data.recipe.{name}={getattr(self, name)}: must be from {least} to {most}{unit}")

    def resolved_short_side(self) -> int:
        """Short side in pixels that `resize_crop` and the evaluation view resize to."""
        if self.short_side is not None:
            return self.short_side
        return self.size if self.crop == "pad_crop" else (self.size * 256 + 112) // 224

    def unmixed(self) -> "Recipe":
        """The same views, none of them mixed."""
        return replace(self, mix=None)

    def evaluation(self) -> "Recipe":
        """The view of validation and test: short side, centre crop, no flip."""
        return Recipe(crop="center", size=self.size, short_side=self.resolved_short_side(), flip=False)


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
    rotation: float
    policy: int
    policy_ops: int
    policy_magnitude: int
    grey: float
    cutout: int
    cutout_holes: int
    cutout_level: int
    erasing: float
    erasing_area_low: float
    erasing_area_high: float
    erasing_ratio_low: float
    erasing_ratio_high: float
    mix: int
    mix_alpha: float
    mix_share: float


def view_params(recipe: Recipe, seed: int) -> ViewParams:
    """The numbers that all transforms draw with; `seed` is data.seed, 0 <= seed < 2**63."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"data.seed={seed}: must be at least 0 and less than 2**63")
    return ViewParams(
        kind=KINDS[recipe.crop],
        size=int(recipe.size),
        short_side=int(recipe.resolved_short_side()),
        pad=int(recipe.pad),
        area_low=float(recipe.scale[0]),
        area_high=float(recipe.scale[1]),
        log_ratio_low=float(log(float(recipe.ratio[0]))),
        log_ratio_high=float(log(float(recipe.ratio[1]))),
        flip=int(recipe.flip),
        seed=int(seed),
        brightness=float(recipe.jitter[0]),
        contrast=float(recipe.jitter[1]),
        saturation=float(recipe.jitter[2]),
        rotation=float(recipe.rotation),
        policy=POLICIES[recipe.policy],
        policy_ops=int(recipe.policy_ops),
        policy_magnitude=int(recipe.policy_magnitude),
        grey=float(recipe.grayscale),
        cutout=int(recipe.cutout),
        cutout_holes=int(recipe.cutout_holes),
        cutout_level=HOLE_LEVELS[recipe.cutout_fill],
        erasing=float(recipe.erasing),
        erasing_area_low=float(recipe.erasing_area[0]),
        erasing_area_high=float(recipe.erasing_area[1]),
        erasing_ratio_low=float(recipe.erasing_ratio[0]),
        erasing_ratio_high=float(recipe.erasing_ratio[1]),
        mix=MIXES[recipe.mix],
        mix_alpha=float(recipe.mix_alpha),
        mix_share=float(recipe.mix_share),
    )
