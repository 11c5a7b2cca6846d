"""The list of transforms, and what all of them together say: what is drawn for a batch, what of a recipe decides its views.

A transform is one module with its draw, its application and its identity. Draws are made here and nowhere else, for every
backend. Each is a pure function of (data.seed, sample key, view number): a batch may be drawn in any thread, ahead of its
decoding.
"""

from typing import Any, Protocol

from pipelines.augment import colour, geometry
from pipelines.augment.recipe import Recipe, ViewParams
from pipelines.batch import Draws, Plan
from pipelines.records.reader import Records


class Transform(Protocol):
    """What a transform's module has, beside its application, which takes what was drawn and the pixels."""

    def draw(self, params: ViewParams, records: Records, plan: Plan) -> Any:
        """What chance decides about each view of a batch, on the host; None where the transform is off."""
        ...

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that decide its pixels and no others, for a cache's identity; nothing where it is off."""
        ...


TRANSFORMS: dict[str, Transform] = {"boxes": geometry, "colours": colour}  # by their field of Draws


def draw(params: ViewParams, records: Records, plan: Plan) -> Draws:
    """What is drawn for every view of `plan`."""
    return Draws(**{field: transform.draw(params, records, plan) for field, transform in TRANSFORMS.items()})


def identity(recipe: Recipe) -> dict[str, Any]:
    """What decides the pixels of a view and nothing else, for a cache's identity and for comparison."""
    return {name: value for transform in TRANSFORMS.values() for name, value in transform.identity(recipe).items()}
