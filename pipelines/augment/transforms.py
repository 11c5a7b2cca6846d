"""The list of transforms, and their sum: what is drawn for a batch, and which settings of a recipe decide its views.

A transform is one module with its draw, its application and its identity. Draws are made here and nowhere else, for every
backend. Each is a pure function of (data.seed, sample key, view number), so a batch may be drawn in any thread, ahead of its
decoding.
"""

from typing import Any, Protocol

from pipelines.augment import colour, erase, geometry, grey, mix, policy, rotation
from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Draws, Plan
from pipelines.records.reader import Records


class Transform(Protocol):
    """What a transform's module has, besides its application, which takes the draws and the pixels."""

    def draw(self, params: ViewParams, records: Records, plan: Plan) -> Any:
        """The random draws for each view of a batch, on the host; None where the transform is off."""
        ...

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Exactly the settings that decide its pixels, for a cache's identity; empty where it is off."""
        ...


TRANSFORMS: dict[str, Transform] = {  # by their field in Draws
    "boxes": geometry,
    "colours": colour,
    "angles": rotation,
    "operations": policy,
    "grey": grey,
    "holes": erase,
    "mix": mix,
}


def draw(params: ViewParams, records: Records, plan: Plan) -> Draws:
    """The draws for every view of `plan`."""
    return Draws(**{field: transform.draw(params, records, plan) for field, transform in TRANSFORMS.items()})


def identity(recipe: Recipe) -> dict[str, Any]:
    """Exactly the settings that decide the pixels of a view, for a cache's identity and for comparison."""
    return {name: value for transform in TRANSFORMS.values() for name, value in transform.identity(recipe).items()}
