"""How images are stored: what each --recipe keeps of an image. Invariant: under every recipe, parts that are not for training
hold only the evaluation view.
"""

import argparse
from dataclasses import replace
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.records.encoding import AS_THEY_ARE, Encoding


class Storage(NamedTuple):
    """What a training recipe needs from an image, and where that recipe is used."""

    encoding: Encoding
    use: str


# A random resized crop may take as little as 8 % of the area, which is enlarged to 224 already: any smaller copy loses detail.
# A resize to a fixed short side loses nothing if the stored copy has that short side. Measured in docs/storage.md.
RECIPES = {
    "imagenet_lt": Storage(AS_THEY_ARE, "random_resized_crop 224: configs/imagenet_lt"),
    "imagenet_lt_resize": Storage(Encoding(short_side=256), "resize_crop 224 of short side 256"),
    "inat18": Storage(AS_THEY_ARE, "random_resized_crop 224: configs/inat18"),
    "evaluation": Storage(Encoding(short_side=256), "val and test of all of them: centre 224 of short side 256"),
}


def encoding_of(args: argparse.Namespace, part: str = "train") -> Encoding:
    """How the files of one part are stored; under --recipe, parts that are not for training hold the evaluation view."""
    if not args.recipe:
        return Encoding(args.short_side, args.max_side, args.quality, args.grey_bits, not args.no_restarts)
    if args.short_side or args.max_side:
        raise UserError(
            f"--recipe {args.recipe} means: {RECIPES[args.recipe].encoding}; give either --recipe, or --short-side "
            "and --max-side"
        )
    name = args.recipe if part == "train" else "evaluation"
    encoding = RECIPES[name].encoding
    return replace(encoding, quality=args.quality, grey_bits=args.grey_bits, restarts=not args.no_restarts)


def recipe_table() -> str:
    """What each --recipe stores, for --help."""
    width = max(map(len, RECIPES))
    rows = [f"  {name:{width}}  {str(kind.encoding):25}  {kind.use}" for name, kind in RECIPES.items()]
    return "\n".join(["what --recipe stores (costs: docs/storage.md):", *rows])
