"""Table 2 for any runs: figures, page and picture of made-up predictions, and what has to be said of foreign ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_runs import config
from helpers.small_caches import make_records, some_samples
from PIL import Image

from pipelines.errors import UserError
from tools.figures import main
from tools.reporting.runs import Run
from tools.reporting.shifted import as_json, draw, measure, notes, page, tables
from train.evaluation.predictions import Predictions
from train.evaluation.shifted import first_images

CLASSES, EACH = 5, 40
TRAIN = np.array([200, 10, 60, 25, 10])  # ranks: 0 2 3 1 4


def predictions(method: str = "bsce", train: np.ndarray | None = TRAIN, seed: int = 0, **other: Any) -> Predictions:
    """Noisy logits that lean to frequent classes; rows in another order than the list."""
    rng = np.random.default_rng(seed)
    n = CLASSES * EACH
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(CLASSES), EACH))
    logits = rng.normal(size=(n, CLASSES)) + 1.5 * np.eye(CLASSES)[labels] + 0.3 * np.log(TRAIN)
    fields: dict[str, Any] = {
        "keys": np.arange(n) * 7,
        "labels": labels,
        "logits": logits.astype(np.float16),
        "positions": np.random.default_rng(8).permutation(n),
        "names": np.array([f"{i}.jpg" for i in range(n)]),
        "class_names": np.array(["ant", "bee", "cat", "dog", "eel"]),
        "train_counts": train,
        "method": method,
        "records": "r",
    }
    return Predictions(**(fields | other))


def run(title: str, **fields: Any) -> Run:
    return Run(title=title, predictions=predictions(**fields))


PAIR = (run("plain", method="ce"), run("mine", method="dive", seed=1))


def test_every_figure_is_that_of_its_set() -> None:
    """Counted here anew from the list: images, answers without and with the priors, right ones."""
    measured = measure(PAIR, [4, 2])
    assert [one.name for one in measured.sets] == ["F4", "F2", "U", "B2", "B4"]
    assert measured.sets[0].counts.tolist() == [40, 14, 28, 20, 10]
    assert [(line.title, measured.rules[line.run]) for line in measured.lines] == [
        ("plain", "softmax"),
        ("mine", "balanced"),
        ("plain + PC", "softmax"),
        ("mine + PC", "balanced"),
    ]
    for line in measured.lines:
        given = next(one.predictions for one in PAIR if one.title == line.run)
        in_list = np.argsort(given.positions)
        labels, logits = given.labels[in_list], given.logits[in_list].astype(float)
        for one, found in zip(measured.sets, line.accuracies, strict=True):
            prior = np.log(one.counts / one.counts.sum()) * line.compensated
            trained = np.log(TRAIN / TRAIN.sum()) * (line.compensated and given.method == "ce")
            right = (logits + prior - trained).argmax(axis=1) == labels
            assert found.first == right[first_images(labels, one.counts)].mean()
            shares = [right[labels == label].mean() for label in range(CLASSES)]
            assert found.expected == pytest.approx(np.average(shares, weights=one.counts))
    uniform = [line.accuracies[2] for line in measured.lines]
    assert uniform[1] == uniform[3] and uniform[0] != uniform[2] and uniform[0].standard_error == 0


def test_the_tables_and_the_json_hold_the_same() -> None:
    measured = measure(PAIR, [4])
    first, expected, sets = tables(measured)
    names, data = ["F4", "U", "B4"], as_json(measured)
    assert list(first.columns) == list(expected.columns) == ["run", *names] and list(sets.columns) == ["", *names]
    for row, spread_row, line in zip(first.rows, expected.rows, data["lines"], strict=True):
        assert row[0] == spread_row[0] == line["run"] + " + PC" * line["compensated"]
        for name, cell, spread_cell in zip(names, row[1:], spread_row[1:], strict=True):
            figures = line["accuracy"][name]
            assert cell == f"{100 * figures['first']:.2f}"
            assert spread_cell == f"{100 * figures['expected']:.2f} ± {100 * figures['standard_error']:.2f}"
    assert [row[1:] for row in sets.rows] == [["112", "200", "112"], ["40", "40", "40"], ["10", "40", "10"]]
    assert [sum(one["counts"]) for one in data["sets"]] == [112, 200, 112]
    json.dumps(data, allow_nan=False)


def test_the_notes_name_the_rules_and_what_does_not_fit() -> None:
    half = replace(PAIR[1], step=500)
    assert notes(measure([PAIR[0], half], [4]))[-1].startswith(
        "mine is unfinished: its figures are those of its newest"
    )
    (said,) = [note for note in notes(measure(PAIR, [4])) if note.startswith("PC")]
    assert "log p_train + log p_test) for plain; argmax(f + log p_test) for mine." in said
    assert not [note for note in notes(measure(PAIR, [4])) if "not balanced" in note or "at most" in note]
    kept = np.arange(CLASSES * EACH)[predictions().labels != 1]
    few = np.concatenate([kept, np.flatnonzero(predictions().labels == 1)[:3]])
    rows = {name: getattr(predictions(), name)[few] for name in ("keys", "labels", "logits", "positions", "names")}
    found = notes(measure([run("short", **rows)], [50, 2]))
    assert "The test set is not balanced: 3 to 40 images of a class. The sets are made for 3 of each; " in found[3]
    assert found[4] == "With 3 images of a class, the imbalance of F50, B50 is 3 at most."


def test_the_picture_shows_all_runs() -> None:
    """Each in a colour of its own, twice, with the first images beside the expectation."""
    figure = draw(measure([run(f"run {i}", seed=i) for i in range(9)], [4, 2]))
    (axes,) = figure.axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.get_lines()}
    assert (
        len(axes.get_lines()) == 9 * 2 * 2 and len({(colour, mark) for colour, mark, _ in looks if mark != "None"}) == 9
    )
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()][:2] == ["run 0", "run 1"]


def test_names_of_runs_are_shown_as_they_are() -> None:
    """No formula; what UTF-8 lacks is escaped, in picture, tables and notes."""
    measured = measure([run("lr$\\frac$"), run("caf\udce9")], [4])
    figure = draw(measured)
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][:2] == ["lr$\\frac$", "caf\\udce9"]
    assert "caf\\udce9 + PC" in page(measured) and page(measured).encode()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"labels": predictions().labels[::-1]}, "other images than one, or in another order"),
        ({"keys": np.arange(CLASSES * EACH) * 11}, "other images than one, or in another order"),
        ({"train": TRAIN[::-1]}, "other frequent classes than one"),
        ({"train": np.array([200, 9, 60, 25, 10])}, "other frequent classes than one"),
        ({"method": "ce", "train": np.array([200, 10, 60, 25, 0])}, "class eel has no training images"),
    ],
)
def test_runs_that_cannot_stand_beside_each_other_are_refused(second: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure([run("one"), run("two", **second)])


def test_another_imbalance_of_the_same_classes_can_stand_beside() -> None:
    assert len(measure([run("one"), run("two", train=np.array([400, 5, 90, 35, 5]))], [4]).lines) == 4


def test_a_class_without_two_test_images_is_refused() -> None:
    for kept, words in ((0, "no images of class cat"), (1, "1 image of class cat")):
        labels = predictions().labels
        rows = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:kept]])
        fields = {
            name: getattr(predictions(), name)[rows] for name in ("keys", "labels", "logits", "positions", "names")
        }
        with pytest.raises(UserError, match=words):
            measure([run("one", **fields)])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """own.npz, as train/evaluate.py writes it; theirs.npz with labels and logits alone; counts.txt."""
    monkeypatch.chdir(tmp_path)
    predictions().save(tmp_path / "own.npz")
    order = predictions().by_list
    np.savez(tmp_path / "theirs.npz", labels=predictions().labels[order], logits=predictions().logits[order])
    (tmp_path / "counts.txt").write_text("".join(f"{count}\n" for count in TRAIN))
    return tmp_path


def test_the_command_writes_page_data_and_picture(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shifted", "own.npz", "--out", "new/figures", "--imbalances", "4,2.5"]) == 0
    assert capsys.readouterr().out == "written: new/figures/shifted.md, shifted.json, shifted.svg, shifted.png\n"
    page = (files / "new/figures/shifted.md").read_text()
    assert "![shifted.svg](shifted.svg)" in page and "| run | F4 | F2.5 | U | B2.5 | B4 |" in page
    assert b"<svg" in (files / "new/figures/shifted.svg").read_bytes()
    with Image.open(files / "new/figures/shifted.png") as image:
        assert image.size[0] > 800


def test_a_foreign_network_gives_the_figures_of_ones_own(files: Path) -> None:
    """Once the user has said what its file does not."""
    assert main(["shifted", "own.npz", "--out", "a"]) == 0
    for name in ("theirs", "theirs.npz"):
        words = ["--balanced", name, "--train-counts", "counts.txt"]
        assert main(["shifted", "theirs.npz", "--out", "b", *words]) == 0
        own, theirs = (json.loads((files / folder / "shifted.json").read_text()) for folder in "ab")
        assert [line | {"run": "own"} for line in theirs["lines"]] == own["lines"] and theirs["sets"] == own["sets"]
    assert main(["shifted", "theirs.npz", "--out", "b", "--softmax", "theirs", "--train-counts", "counts.txt"]) == 0
    assert json.loads((files / "b" / "shifted.json").read_text())["lines"][0]["rule"] == "softmax"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["theirs.npz", "--balanced", "theirs"], "type --train-counts FILE"),
        (["theirs.npz", "--train-counts", "counts.txt"], "type --balanced theirs (balanced softmax"),
        (["theirs.npz", "--balanced", "their"], "--balanced their: not one of the runs given: theirs, theirs.npz"),
        (["theirs.npz", "--balanced", "theirs", "--softmax", "theirs.npz"], "both name theirs.npz"),
        (["own.npz", "--softmax", "own"], "own was trained by method bsce; leave --softmax out"),
        (["own.npz", "--train-counts", "counts.txt"], "--train-counts: every run says its own; leave it out"),
        (["theirs.npz", "--balanced", "theirs", "--train-counts", "none.txt"], "none.txt: No such file"),
        (["theirs.npz", "--balanced", "theirs", "--train-counts", "own.npz"], "a whole number in each line expected"),
        (
            ["theirs.npz", "--balanced", "theirs", "--train-counts", "short.txt"],
            "theirs has 5 classes, --train-counts 2",
        ),
        (["theirs.npz", "--balanced", "theirs", "--train-counts", "zero.txt"], "numbers of images expected"),
        (["own.npz", "--imbalances", "5,1"], "numbers above 1 with commas between them allowed"),
        (["own.npz", "--imbalances", "nan"], "numbers above 1 with commas between them allowed"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    files: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "short.txt").write_text("5\n4\n")
    (files / "zero.txt").write_text("0\n0\n")
    assert main(["shifted", *words, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (files / "out").exists()


@pytest.mark.parametrize(
    ("sampling", "rule", "how", "formula"),
    [
        ("class_balanced", "balanced", "so that --balanced holds", "argmax(f + log p_test)"),
        ("square_root", "square_root", "with data.sampling=square_root", "argmax(f - log p_train / 2 + log p_test)"),
    ],
)
def test_a_run_sampled_by_class_has_the_rule_of_its_sampling(sampling: str, rule: str, how: str, formula: str) -> None:
    """Its predictions name no method, as cross-entropy has the other rule; its settings say it."""
    own = replace(run("mine", method=""), config=config(method="ce"))
    assert own.config is not None and own.rule == "softmax"
    sampled = replace(own, config=replace(own.config, data=replace(own.config.data, sampling=sampling)))
    measured = measure([sampled], [4])
    assert measured.rules == {"mine": rule} and f"the answer is {formula} for mine" in " ".join(notes(measured))
    with pytest.raises(UserError, match=f"mine was trained {how}; leave --softmax out"):
        measure([sampled], [4], {"mine": "softmax"})


def test_records_of_other_classes_do_not_state_the_counts(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = predictions().by_list
    fields = {"labels": predictions().labels[order], "logits": predictions().logits[order]}
    np.savez(files / "named.npz", class_names=predictions().class_names, **fields)
    make_records(files / "other.beton", some_samples(11), list("vwxyz"))
    words = ("--balanced", "named", "--train-counts", "other.beton", "--out", "b")
    assert main(["shifted", "named.npz", *words]) == 2
    assert "--train-counts other.beton: its classes are not those of the network" in capsys.readouterr().err
    np.savez(files / "named.npz", **fields)  # names no classes
    assert main(["shifted", "named.npz", *words]) == 0


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "taken" / "shifted.svg").mkdir(parents=True)
    for out in ("counts.txt", "taken"):
        assert main(["shifted", "missing.npz", "--out", out]) == 2
        assert f"--out {out}: cannot write" in capsys.readouterr().err
