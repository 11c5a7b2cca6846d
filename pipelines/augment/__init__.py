"""Views: what is drawn for each view, and how it is applied. Each transform is one module."""

from pipelines.augment.finish import Finish
from pipelines.augment.geometry import boxes, view_box
from pipelines.augment.recipe import Recipe, ViewParams, view_params

__all__ = ["Finish", "Recipe", "ViewParams", "boxes", "view_box", "view_params"]
