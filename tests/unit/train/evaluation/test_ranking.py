"""The first classes of images, and the files that hold them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from train.evaluation.ranking import Ranked, _first, table


def test_the_first_class_is_the_argmax() -> None:
    """Of ties the first in label order; and of logits that differ, but whose probabilities are equal by rounding."""
    logits = torch.randint(0, 3, (200, 8), generator=torch.Generator().manual_seed(0)).double()
    logits[:100] *= 1e-30
    classes, chances = _first(logits, 3)
    assert torch.equal(classes[:, 0], torch.from_numpy(logits.numpy().argmax(axis=1)))
    assert torch.equal(chances, logits.softmax(1).gather(1, classes)) and classes.shape == (200, 3)


def test_names_of_files_and_classes_stay_as_they_are(tmp_path: Path) -> None:
    odd = ['a,"b".jpg', "new\nline.png", b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"), "é.jpg"]
    ranked = Ranked(np.array([[1, 0]] * 4), np.array([[0.75, 0.25]] * 4))
    with table(tmp_path / "t.csv", ["x; y", "zwölf, 12"], 2) as write:
        write(odd[:2], Ranked(*(part[:2] for part in ranked)))
        write(odd[2:], Ranked(*(part[2:] for part in ranked)))
    data = (tmp_path / "t.csv").read_bytes()
    assert data.startswith(
        b'file,label,class,probability,class_2,probability_2\n"a,""b"".jpg",1,"zw\xc3\xb6lf, 12",0.75,x; y,0.25\n'
    )
    assert b'"new\nline.png",1' in data and b"\n\xff\xfe.jpg,1," in data


def test_a_carriage_return_in_a_name_tears_no_row(tmp_path: Path) -> None:
    names = ["x\ry.png", "\r\n.png", "z.png"]
    with table(tmp_path / "t.csv", ["a\rb", "c"], 2) as write:
        write(names, Ranked(np.array([[1, 0]] * 3), np.array([[0.75, 0.25]] * 3)))
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names and {tuple(row[1:]) for row in rows[1:]} == {
        ("1", "c", "0.75", "a\rb", "0.25")
    }


def test_a_table_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), table(tmp_path / "t.csv", ["a", "b"], 1) as write:
        write(["x"], Ranked(np.array([[1]]), np.array([[1.0]])))
        raise KeyError
    assert list(tmp_path.iterdir()) == []
