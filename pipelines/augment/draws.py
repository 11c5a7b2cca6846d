"""The one place where the views of a batch are drawn, for every backend.

A draw is a pure function of (data.seed, sample key, view number): a batch may be drawn in any thread, ahead of its decoding.
"""

from pipelines.augment.colour import colours
from pipelines.augment.geometry import boxes
from pipelines.augment.recipe import ViewParams
from pipelines.batch import Draws, Plan
from pipelines.records.reader import Records


def draw(params: ViewParams, records: Records, plan: Plan) -> Draws:
    """What is drawn for every view of `plan`."""
    at, r = plan.positions, records
    keys, jittered = r.keys[at], params.brightness or params.contrast or params.saturation
    return Draws(
        boxes(params, keys, plan.views, r.widths[at], r.heights[at], r.stored_widths[at], r.stored_heights[at]),
        colours(params, keys, plan.views) if jittered else None,
    )
