"""The list of transforms: identities as they stand in caches on disk, and the draws of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.boxes import box_rows

from pipelines.augment.colour import colours
from pipelines.augment.erase import holes
from pipelines.augment.geometry import view_box
from pipelines.augment.grey import grey_views
from pipelines.augment.mix import mixtures
from pipelines.augment.policy import operations_of
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.rotation import angles
from pipelines.augment.transforms import TRANSFORMS, draw, identity
from pipelines.batch import Draws, Plan
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"crop": "pad_crop", "size": 32}, {"crop": "pad_crop", "size": 32, "flip": True, "pad": 4}),
        (
            {"jitter": [0.4, 0.4, 0.0]},
            {
                "crop": "random_resized_crop",
                "size": 224,
                "flip": True,
                "scale": [0.08, 1.0],
                "ratio": [0.75, 4 / 3],
                "jitter": [0.4, 0.4, 0.0],
            },
        ),
        (
            {"crop": "pad_crop", "size": 32, "rotation": 15.0, "policy": "randaugment", "grayscale": 0.2, "cutout": 16},
            {
                "crop": "pad_crop",
                "size": 32,
                "flip": True,
                "pad": 4,
                "rotation": 15.0,
                "policy": "randaugment",
                "policy_ops": 2,
                "policy_magnitude": 9,
                "grayscale": 0.2,
                "cutout": 16,
                "cutout_holes": 1,
                "cutout_fill": "grey",
            },
        ),
        (
            {"crop": "pad_crop", "size": 32, "erasing": 0.5, "cutout_fill": "black"},
            {
                "crop": "pad_crop",
                "size": 32,
                "flip": True,
                "pad": 4,
                "erasing": 0.5,
                "erasing_area": [0.02, 0.4],
                "erasing_ratio": [0.3, 1 / 0.3],
                "cutout_fill": "black",
            },
        ),
        (
            {"crop": "pad_crop", "size": 32, "mix": "cutmix"},
            {
                "crop": "pad_crop",
                "size": 32,
                "flip": True,
                "pad": 4,
                "mix": "cutmix",
                "mix_alpha": 1.0,
                "mix_share": 1.0,
            },
        ),
        ({"crop": "resize_crop"}, {"crop": "resize_crop", "size": 224, "flip": True, "short_side": 256}),
        ({"crop": "center", "flip": False}, {"crop": "center", "size": 224, "flip": False, "short_side": 256}),
    ],
)
def test_identities_are_those_of_the_caches_on_disk(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """The order counts too: the benchmark prints it. A recipe can be made of its identity again."""
    assert list(identity(Recipe(**settings)).items()) == list(expected.items())
    assert identity(Recipe(**expected)) == expected


def test_no_two_transforms_say_the_same() -> None:
    recipe = Recipe(
        jitter=[0.1, 0.2, 0.3], rotation=15, policy="randaugment", grayscale=0.2, cutout=16, erasing=0.5, mix="mixup"
    )
    said = [name for transform in TRANSFORMS.values() for name in transform.identity(recipe)]
    assert len(said) == len(set(said))
    assert tuple(TRANSFORMS) == Draws._fields


STRONG = {
    "jitter": [0.0, 0.3, 0.0],
    "rotation": 15.0,
    "policy": "autoaugment_cifar10",
    "grayscale": 0.5,
    "cutout": 4,
    "cutout_fill": "black",
    "mix": "cutmix",
    "mix_share": 0.7,
}


@pytest.mark.parametrize("settings", [{}, STRONG], ids=["plain", "strong"])
def test_a_batch_is_drawn_row_by_row(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Each view is as when drawn alone, wherever the sample lies in the file and in the batch."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9 + i, 30 - i, 3), np.uint8) for i in range(12)]
    write_records(tmp_path / "r.beton", [Sample(f"{i}", 0, x) for i, x in enumerate(images)], ["a"], kind="test")
    records, params = Records(tmp_path / "r.beton"), view_params(Recipe(size=8, **settings), 3)
    plan = Plan(np.array([7, 0, 7, 11]), np.array([2, 2, 5, 0], np.int32))
    plan = plan._replace(partners=plan.positions[::-1], partner_views=plan.views)
    found = draw(params, records, plan)
    rows = box_rows(found.boxes)
    for row, (i, view) in enumerate(zip(plan.positions, plan.views, strict=True)):
        size = records.widths[i], records.heights[i]
        assert rows[row].tolist() == list(view_box(params, records.keys[i], view, *size, *size))
    if not settings:
        assert set(found[1:]) == {None}
        return
    of = params, records.keys[plan.positions], plan.views
    assert found.colours and found.operations and found.holes and found.angles is not None and found.grey is not None
    for got, expected in (
        *zip(found.colours, colours(*of), strict=True),
        *zip(found.operations, operations_of(*of), strict=True),
        *((found.angles, angles(*of)), (found.grey, grey_views(*of)), (found.holes[0], holes(*of))),
    ):
        np.testing.assert_array_equal(got, expected)
    assert found.holes[1] == 0 and draw(params, records, Plan(*plan[:2])).mix is None, "there are no partners"
    ratios, boxes = mixtures(*of)
    assert found.mix and found.mix[0].dtype == np.float32 and np.array_equal(found.mix[0], ratios.astype(np.float32))
    np.testing.assert_array_equal(found.mix[1], boxes)
    alone = [draw(params, records, Plan(plan.positions[i : i + 1], plan.views[i : i + 1])) for i in range(4)]
    assert [float(one.angles[0]) for one in alone if one.angles is not None] == found.angles.tolist()
    assert [one.holes[0][0].tolist() for one in alone if one.holes] == found.holes[0].tolist()
    assert [one.operations.codes[0].tolist() for one in alone if one.operations] == found.operations.codes.tolist()
    assert [one.operations.values[0].tolist() for one in alone if one.operations] == found.operations.values.tolist()
