"""Procedural long-tailed demo images: 20 classes drawn with numpy, nothing downloaded.

A class is a silhouette and a pattern ("striped-star"). Every pattern occurs on every silhouette, so a rare
class shares both features with frequent ones and only their pairing is rare. Silhouettes and patterns have
typical colours that overlap; pose, clutter, twigs, light, blur and noise are drawn alike for all classes.
Mirroring an image never changes its class.
Owns the pictures and their counts; knows nothing of records, crops or training.
Invariant: an image is a pure function of (seed, split, frequency rank of its class, number).
"""

import colorsys
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.errors import UserError

SPLITS = ("train", "test")
HEAD_IMAGES, TAIL_IMAGES = 300, 6  # training images of the most frequent and of the rarest class
TEST_IMAGES = 50  # of every class: 1000 in all, so that one accuracy has a standard error of about 1.5 points

# Lengths are in units of half an image's short side, angles in radians, colours in 0..1. These ranges set how
# hard the data is: the wider the colours scatter and the fainter the patterns, the more classes overlap.
SIDES = (40, 96)  # pixels, both ends included
JPEG_QUALITY = (75, 95)  # both ends included
HUE_SCATTER = 0.08  # standard deviation of a silhouette's hue, in turns of the colour wheel
PAINT_SCATTER = 0.22  # standard deviation of a pattern's colour, per channel
PATTERN_CONTRAST = (0.45, 1.0)  # opacity of the pattern's paint
OUTLINE_DEPTH = (0.7, 1.0)  # 0 would be a disc, 1 is the full outline
DISC_RADIUS = 0.8  # the radius of an outline of depth 0
TURN, SQUEEZE, SHIFT = 0.5, 0.2, 0.12  # each is drawn from -value..value
OBJECT_SIZE, CLUTTER_SIZE = (0.7, 0.95), (0.12, 0.34)
MOST_CLUTTER, MOST_TWIGS = 4, 1
MOST_BLUR, MOST_NOISE = 0.5, 0.03

Field = np.ndarray  # float64 [H, W]: one value per pixel of a window
Pixels = np.ndarray  # float64 [H, W, 3], RGB in 0..1
Colour = np.ndarray  # float64 [3], RGB in 0..1
Window = tuple[slice, slice]  # rows and columns of an image
Range = tuple[float, float]
Rng = np.random.RandomState


# Silhouettes: the radius, at most 1.2, at each angle; n, 5 to 7, sets the number of points, petals or teeth.


def _star(angle: Field, n: int) -> Field:
    return 0.45 + 0.55 * (2 / np.pi * np.arcsin(np.cos(n * angle)) + 1) / 2


def _flower(angle: Field, n: int) -> Field:
    return 0.55 + 0.45 * np.abs(np.cos(n * angle / 2))


def _gear(angle: Field, n: int) -> Field:
    return 0.84 + 0.16 * np.clip(3 * np.cos((n + 3) * angle), -1, 1)


def _leaf(angle: Field, n: int) -> Field:
    bend = 1.1 - 0.06 * n  # two arcs through (-1, 0) and (1, 0), centred at (0, -bend) and (0, bend)
    s = np.abs(np.sin(angle))
    return np.sqrt(1 + (bend * s) ** 2) - bend * s


def _heart_outline() -> tuple[np.ndarray, np.ndarray]:
    """Angles from the notch, 0 to pi, and radii from the middle, of half of the usual parametric heart."""
    t = np.linspace(0, np.pi, 181)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) + 2.5
    return np.arctan2(x, y), np.hypot(x, y) / 15.5


_HEART = _heart_outline()


def _heart(angle: Field, n: int) -> Field:
    return np.interp(np.arccos(np.clip(-np.sin(angle), -1, 1)), *_HEART)  # rows count downwards: -sin is up


# Patterns: paint where positive, bare where negative; (u, v) is the place on the surface, in periods.


def _striped(u: Field, v: Field) -> Field:
    return np.cos(2 * np.pi * u)


def _dotted(u: Field, v: Field) -> Field:
    return np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v) - 0.6


def _ringed(u: Field, v: Field) -> Field:
    return np.cos(2 * np.pi * np.hypot(u, v))


def _checked(u: Field, v: Field) -> Field:
    return 1.6 * np.cos(2 * np.pi * u / 1.3) * np.cos(2 * np.pi * v / 1.3)


class Silhouette(NamedTuple):
    radius: Callable[[Field, int], Field]
    hue: float  # typical, in turns


class Pattern(NamedTuple):
    wave: Callable[[Field, Field], Field]
    paint: Callable[[Colour], Colour]  # typical, given the colour underneath


SILHOUETTES = {
    "star": Silhouette(_star, 0.03),
    "heart": Silhouette(_heart, 0.92),
    "gear": Silhouette(_gear, 0.58),
    "leaf": Silhouette(_leaf, 0.36),
    "flower": Silhouette(_flower, 0.77),
}
PATTERNS = {
    "striped": Pattern(_striped, lambda under: np.array([0.95, 0.95, 0.95])),
    "dotted": Pattern(_dotted, lambda under: np.array([0.1, 0.1, 0.1])),
    "ringed": Pattern(_ringed, lambda under: np.array([0.95, 0.85, 0.1])),
    "checked": Pattern(_checked, lambda under: 0.9 * (1 - under)),
}
CLASSES = len(SILHOUETTES) * len(PATTERNS)


def class_name(rank: int) -> str:
    """The class at a frequency rank, 0 = most frequent: striped-star, dotted-heart, ... checked-flower.

    Both lists are cycled through. Their lengths, 5 and 4, have no common divisor, so all 20 pairs
    come up, and each silhouette and each pattern occurs at every level of frequency. Labels are
    independent of this: they follow the sorted names.
    """
    return f"{list(PATTERNS)[rank % len(PATTERNS)]}-{list(SILHOUETTES)[rank % len(SILHOUETTES)]}"


def image_count(split: str, rank: int) -> int:
    """Images of one class: TEST_IMAGES in test, falling exponentially from HEAD_IMAGES to TAIL_IMAGES in train."""
    if split == "test":
        return TEST_IMAGES
    return round(HEAD_IMAGES * (TAIL_IMAGES / HEAD_IMAGES) ** (rank / (CLASSES - 1)))


class Look(NamedTuple):
    """All random properties of one thing, except its place and size."""

    base: Colour
    n: int  # of points, petals or teeth
    x: float
    y: float
    turn: float
    squeeze: float  # height over width
    depth: float  # of the outline
    period: float  # of the pattern, in sizes
    grain: float  # direction of the pattern
    warp: float  # how far the pattern is bent, in periods
    phase: tuple[float, float]  # of the pattern, in periods
    contrast: float
    paint: Colour
    light: float  # direction the light comes from


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _any_hue(rng: Rng, saturation: Range, value: Range) -> Colour:
    return _hsv(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))


def _look(rng: Rng, silhouette: Silhouette, pattern: Pattern, spread: float) -> Look:
    base = _hsv(silhouette.hue + rng.normal(0, HUE_SCATTER), rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.95))
    return Look(
        base=base,
        n=rng.randint(5, 8),
        x=rng.uniform(-spread, spread),
        y=rng.uniform(-spread, spread),
        turn=rng.uniform(-TURN, TURN),
        squeeze=rng.uniform(1 - SQUEEZE, 1 + SQUEEZE),
        depth=rng.uniform(*OUTLINE_DEPTH),
        period=rng.uniform(0.55, 0.85),
        grain=rng.uniform(-np.pi / 2, np.pi / 2),
        warp=rng.uniform(0, 0.25),
        phase=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
        contrast=rng.uniform(*PATTERN_CONTRAST),
        paint=np.clip(pattern.paint(base) + rng.normal(0, PAINT_SCATTER, 3), 0, 1),
        light=rng.uniform(0, 2 * np.pi),
    )


def _window(image: Pixels, x: float, y: float, reach: float, unit: float) -> Window:
    """The part of the image within `reach` of (x, y): for speed, small things are painted only there."""
    rows, columns = image.shape[:2]
    row, column, r = rows / 2 + y * unit, columns / 2 + x * unit, reach * unit + 2
    return (
        slice(max(0, int(row - r)), max(0, min(rows, int(row + r) + 1))),
        slice(max(0, int(column - r)), max(0, min(columns, int(column + r) + 1))),
    )


def _grid(image: Pixels, window: Window, unit: float) -> tuple[Field, Field]:
    """x and y of a window's pixel centres; the origin is the middle of the image, `unit` is pixels per unit."""
    rows, columns = image.shape[:2]
    y = (np.arange(window[0].start, window[0].stop) + 0.5 - rows / 2) / unit
    x = (np.arange(window[1].start, window[1].stop) + 0.5 - columns / 2) / unit
    return np.broadcast_to(x, (len(y), len(x))), np.broadcast_to(y[:, None], (len(y), len(x)))


def _whole(image: Pixels) -> Window:
    return slice(0, image.shape[0]), slice(0, image.shape[1])


def _cover(image: Pixels, opacity: Field, colour: np.ndarray) -> None:
    image += opacity[..., None] * (colour - image)


def _surface(look: Look, pattern: Pattern, u: Field, v: Field) -> Pixels:
    """Base colour and pattern; u and v are in sizes of the thing."""
    c, s = np.cos(look.grain), np.sin(look.grain)
    p, q = (c * u + s * v) / look.period + look.phase[0], (c * v - s * u) / look.period + look.phase[1]
    wave = pattern.wave(p + look.warp * np.sin(2 * q), q + look.warp * np.sin(2 * p))
    opacity = look.contrast * (0.5 + 0.5 * np.clip(1.5 * wave, -1, 1))
    return look.base + opacity[..., None] * (look.paint - look.base)


def _paint(rng: Rng, image: Pixels, name: str, spread: float, sizes: Range, unit: float) -> None:
    """Paint one thing of class `name` with its shadow, at most `spread` from the middle both ways, in place."""
    first, second = name.split("-")
    pattern, silhouette = PATTERNS[first], SILHOUETTES[second]
    size = rng.uniform(*sizes)
    look = _look(rng, silhouette, pattern, spread)
    window = _window(image, look.x, look.y, 1.8 * size, unit)  # outline, squeeze and shadow together
    part = image[window]
    if not part.size:
        return
    x, y = _grid(image, window, unit)
    x, y = (x - look.x) / size, (y - look.y) / size
    c, s = np.cos(look.turn), np.sin(look.turn)
    u, v = c * x + s * y, (c * y - s * x) / look.squeeze
    radius = np.hypot(u, v)
    outline = DISC_RADIUS + look.depth * (silhouette.radius(np.arctan2(v, u), look.n) - DISC_RADIUS)
    inside = outline - radius  # approximately the signed distance to the outline, in sizes
    _cover(part, 0.35 * np.clip(1.2 + 4 * inside, 0, 1), np.zeros(3))  # a soft shadow all round
    light = 1 + 0.3 * (np.cos(look.light) * x + np.sin(look.light) * y) - 0.25 * (radius / outline) ** 4
    surface = np.clip(_surface(look, pattern, u, v) * light[..., None], 0, 1)
    _cover(part, np.clip(0.5 + inside * size * unit, 0, 1), surface)  # the edge is one pixel soft


def _background(rng: Rng, image: Pixels, unit: float) -> None:
    """Paint two muted colours in smooth waves, in place."""
    first, second = _any_hue(rng, (0, 0.4), (0.25, 0.9)), _any_hue(rng, (0, 0.4), (0.25, 0.9))
    x, y = _grid(image, _whole(image), unit)
    waves = np.zeros(x.shape)
    for _ in range(4):
        angle, frequency, phase = rng.uniform(0, 2 * np.pi), rng.uniform(1, 7), rng.uniform(0, 2 * np.pi)
        waves += np.cos(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    image[:] = first + np.clip(0.5 + 0.2 * waves, 0, 1)[..., None] * (second - first)


def _twig(rng: Rng, image: Pixels, unit: float) -> None:
    """Paint a straight twig right across the image, in place."""
    x, y = _grid(image, _whole(image), unit)
    angle, offset, half = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6), rng.uniform(0.04, 0.13)
    away = np.abs(np.cos(angle) * x + np.sin(angle) * y - offset)
    colour = _any_hue(rng, (0.05, 0.6), (0.1, 0.9))
    shade = 1 - 0.5 * np.clip(away / half, 0, 1) ** 2
    _cover(image, np.clip(0.5 + (half - away) * unit, 0, 1), shade[..., None] * colour)


def _blur(image: Pixels, amount: float) -> Pixels:
    """Blur with three taps along both axes; `amount`, 0 to 1, is the total weight of the two neighbours."""
    padded = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    image = (1 - amount) * image + amount / 2 * (padded[:-2] + padded[2:])
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return (1 - amount) * image + amount / 2 * (padded[:, :-2] + padded[:, 2:])


def _sides(rng: Rng) -> tuple[int, int]:
    """Height and width within SIDES, up to 3:2 either way."""
    short = rng.randint(SIDES[0], SIDES[1] * 3 // 4)
    long = min(SIDES[1], int(short * rng.uniform(1, 1.5)))
    return (short, long) if rng.uniform() < 0.5 else (long, short)


def draw(rng: Rng, name: str) -> np.ndarray:
    """One image of class `name`, uint8 [H, W, 3]."""
    rows, columns = _sides(rng)
    unit = min(rows, columns) / 2
    image = np.empty((rows, columns, 3))
    _background(rng, image, unit)
    for _ in range(rng.randint(MOST_CLUTTER + 1)):
        _paint(rng, image, class_name(rng.randint(CLASSES)), 1.1, CLUTTER_SIZE, unit)
    _paint(rng, image, name, SHIFT, OBJECT_SIZE, unit)
    for _ in range(rng.randint(MOST_TWIGS + 1)):
        _twig(rng, image, unit)
    image = _blur(image, rng.uniform(0, MOST_BLUR))
    image = (image - 0.5) * rng.uniform(0.6, 1.1) + 0.5 + rng.uniform(-0.12, 0.12)  # contrast and brightness
    image += rng.uniform(0, MOST_NOISE) * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _jpeg(seed: int, split: str, rank: int, number: int) -> bytes:
    # numpy promises never to change RandomState's streams; one generator per image keeps images independent.
    rng = np.random.RandomState([seed, SPLITS.index(split), rank, number])
    pixels = draw(rng, class_name(rank))
    quality = int(rng.randint(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _check_replaceable(folder: Path) -> None:
    """UserError unless everything in `folder`, which need not exist, may come from an earlier demo."""
    if folder.is_symlink() or folder.is_file():
        raise UserError(f"{folder} is no plain folder, and it is to be replaced; give another folder")
    names = {class_name(rank) for rank in range(CLASSES)}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).parts
        numbered = len(place) == 2 and re.fullmatch(r"\d{4}\.jpg", place[1])
        if place[0] not in names or not (len(place) == 1 or numbered):
            raise UserError(f"{path} is no demo image, and {folder} is to be replaced; give another folder")


def write_demo(out: Path, seed: int = 0) -> None:
    """Write out/train/<class>/NNNN.jpg (long-tailed) and out/test/<class>/NNNN.jpg (balanced).

    Images of an earlier demo are replaced, each split as a whole once it is complete; anything else in these
    two folders is a UserError before a file is touched, and so is a seed outside 0..2^32-1.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is not in 0..{2**32 - 1}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    for split in SPLITS:
        _check_replaceable(out / split)
    for split in SPLITS:
        unfinished = out / f".{split}.unfinished"  # images left by a killed run are drawn again
        shutil.rmtree(unfinished, ignore_errors=True)
        for rank in range(CLASSES):
            folder = unfinished / class_name(rank)
            folder.mkdir(parents=True)
            for number in range(image_count(split, rank)):
                (folder / f"{number:04d}.jpg").write_bytes(_jpeg(seed, split, rank, number))
        if (out / split).exists():
            shutil.rmtree(out / split)
        os.replace(unfinished, out / split)
