"""Confusion against counts made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.report_runs import made_run, material, predictions

from tools.reporting.confusion import between_groups, pairs, section

# Two images of each class; classes 0, 1 are many-shot, 2, 3 medium, 4, 5 few.
LABELS = np.repeat(np.arange(6), 2)
ANSWERS = np.array([0, 1, 1, 1, 2, 0, 0, 3, 0, 0, 4, 1])


def runs(**known: object):
    return material(made_run("a", predictions=predictions(np.eye(6)[ANSWERS], LABELS, **known)))


def test_shares_between_groups() -> None:
    found = between_groups(runs().entries[0])
    assert found.groups == pytest.approx(np.array([[4, 0, 0], [2, 2, 0], [3, 0, 1]]) / 4)
    assert found.right == pytest.approx([3 / 4, 2 / 4, 0]) and found.images.tolist() == [4, 4, 4]


def test_the_pairs_confused_most() -> None:
    first, second, *others = pairs(runs().entries[0])
    assert first == ("eel", "ant", 2, 1.0) and second == ("ant", "bee", 1, 0.5) and len(others) == 4 - 0
    assert all(pair.true != pair.predicted for pair in (first, second, *others))


def test_pairs_of_classes_with_one_name_have_their_labels() -> None:
    names = ["ant", "crane", "crane", "dog", "eel", "fox"]
    found = predictions(np.eye(6)[[2, 1, 3]], np.array([1, 2, 0]))
    (entry,) = material(made_run("a", predictions=replace(found, class_names=np.array(names)))).entries
    assert {(pair.true, pair.predicted) for pair in pairs(entry)} == {
        ("crane (label 1)", "crane (label 2)"),
        ("crane (label 2)", "crane (label 1)"),
        ("ant", "dog"),
    }


def test_pairs_need_no_training_images() -> None:
    made = section(runs(counts=None))
    assert [table.title for table in made.tables] == ["Most confused by a"] and made.notes and not made.figures


def test_a_group_without_classes_has_no_row() -> None:
    made = section(runs(counts=[500] * 4 + [1, 1]))
    assert [row[1] for row in made.tables[0].rows] == ["many", "few"]
