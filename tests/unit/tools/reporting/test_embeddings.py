"""Features of ten classes: figures against their definitions, which classes and points are shown, the texts of the picture."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_predictions import made_run, reordered
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipelines.errors import UserError
from tools.figures import main
from tools.reporting import embeddings
from tools.reporting.embeddings import Embeddings, as_json, draw, measure, named, notes, separation, spread, tables
from tools.reporting.runs import Run
from tools.reporting.style import svg

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNTS = (10, 500, 30, 200, 15, 101)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points without t-SNE, for tests of everything else."""
    monkeypatch.setattr(embeddings, "tsne", lambda features, perplexity, seed: features[:, :2].astype(float))


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text]


def predictions_of(run: Run, **changed: Any) -> Run:
    return replace(run, predictions=replace(run.predictions, **changed))


def test_scatter_is_the_trace_of_the_scatter_matrices() -> None:
    rng = np.random.default_rng(1)
    x, of = rng.normal(size=(37, 5)) + 2, np.repeat([0, 1, 2], [20, 10, 7])
    mean, s_w, s_b = x.mean(0), np.zeros((5, 5)), np.zeros((5, 5))
    for c in range(3):
        own = x[of == c].mean(0)
        s_b += (of == c).sum() * np.outer(own - mean, own - mean)
        for row in x[of == c]:
            s_w += np.outer(row - own, row - own)
    whole, classes = separation(x, of)
    assert whole.within == pytest.approx(np.trace(s_w) / 37) and whole.between == pytest.approx(np.trace(s_b) / 37)
    assert whole.ratio == pytest.approx(np.trace(s_b) / np.trace(s_w))
    assert whole.within + whole.between == pytest.approx(x.var(axis=0).sum())
    assert classes[2].within == pytest.approx(x[of == 2].var(axis=0).sum())
    assert classes[1].between == pytest.approx(np.linalg.norm(x[of == 1].mean(0) - mean) ** 2)


def test_silhouettes_by_hand() -> None:
    whole, classes = separation(np.array([[0.0], [1.0], [4.0], [6.0]]), np.array([0, 0, 1, 1]))
    by_hand = [0.8, 0.75, 1.5 / 3.5, 3.5 / 5.5]  # 1 - a / b: the nearer own point, the mean of the other class
    assert whole.silhouette == pytest.approx(np.mean(by_hand))
    assert [one.silhouette for one in classes] == pytest.approx([np.mean(by_hand[:2]), np.mean(by_hand[2:])])


def test_figures_that_cannot_be_computed_are_none() -> None:
    whole, classes = separation(np.array([[0.0], [3.0]]), np.array([0, 1]))  # one point of each class
    assert (whole.within, whole.ratio, whole.silhouette) == (0, None, None) and classes[0].ratio is None


def test_one_class_of_each_tenth_is_the_middle_one_that_has_images() -> None:
    counts = np.arange(1000, 900, -1)[np.argsort(np.random.default_rng(0).permutation(100))]
    ranked = np.argsort(-counts)
    tested = np.full(100, True)
    assert spread(counts, tested)[0] == ranked[4::10].tolist()
    tested[ranked[14]] = False
    tested[ranked[20:30]] = False
    chosen, said = spread(counts, tested)
    assert chosen == [ranked[i] for i in (4, 15, 34, 44, 54, 64, 74, 84, 94)] and "left out: 1" in said[-1]


def test_up_to_ten_classes_are_all_shown() -> None:
    assert spread(np.array(COUNTS), np.full(6, True))[0] == [1, 3, 5, 2, 4, 0]
    assert len(spread(np.arange(13), np.full(13, True))[0]) == 10
    with pytest.raises(UserError, match="classes with images to show: 1; at least 2 are needed"):
        spread(np.array([5, 4]), np.array([True, False]))
    with pytest.raises(UserError, match=r"not known.*type --classes NAME"):
        spread(None, np.full(6, True))


def test_classes_by_name_or_label() -> None:
    tested = np.array([True] * 5 + [False])
    assert named(["cat", "0"], NAMES, tested) == [2, 0]
    with pytest.raises(UserError, match="class 0, 3, is given twice"):
        named(["3", "0"], ("3", "b", "c", "d"), tested)
    for given, message in (
        (["cat", "Eal"], r"--classes Eal: no such class; give names \(nearest: eel\) or labels 0..5"),
        (["cat", "6"], "--classes 6: no such class"),
        (["cat", "2"], "--classes cat: class 2, cat, is given twice"),
        (["cat", "fox"], "--classes fox: the split holds no image of this class"),
        (["cat"], r"--classes: 1 given, 2..20 allowed"),
    ):
        with pytest.raises(UserError, match=message):
            named(given, NAMES, tested)


@pytest.mark.usefixtures("quick")
def test_every_run_shows_the_same_images_whatever_the_order_of_its_rows() -> None:
    run = made_run("a", NAMES, COUNTS)
    other = Run(title="b", predictions=reordered(run.predictions, np.random.default_rng(0).permutation(36)))
    first, second = measure([run, other], points=12).panels
    assert np.array_equal(first.points, second.points) and first.whole == second.whole and len(first.points) == 12
    relisted = predictions_of(other, positions=np.arange(36))  # of records in another order
    assert np.array_equal(measure([run, relisted]).panels[1].points, measure([run]).panels[0].points)
    numbered = predictions_of(run, keys=np.arange(36))  # as of another program
    assert np.array_equal(measure([other, numbered]).panels[0].points, measure([other, numbered]).panels[1].points)


@pytest.mark.usefixtures("quick")
def test_runs_on_other_images_or_other_counts() -> None:
    run = made_run("a", NAMES, COUNTS)
    found = run.predictions
    with pytest.raises(
        UserError, match="b holds predictions of other images than a; evaluate both on the same records"
    ):
        measure([run, replace(predictions_of(run, keys=found.keys + 1), title="b")])
    with pytest.raises(UserError, match="b holds predictions of other images than, or other labels than, a"):
        measure([run, replace(predictions_of(run, labels=(found.labels + 1) % 6), title="b")])
    balanced = replace(predictions_of(run, train_counts=np.full(6, 50)), title="b")
    measured = measure([run, balanced])
    assert measured.notes[-1] == "training images and shot groups are those of a; trained on others: b"
    unknown = replace(predictions_of(run, train_counts=None), title="c")
    assert [one.train_images for one in measure([unknown, run]).classes] == sorted(COUNTS, reverse=True)


@pytest.mark.usefixtures("quick")
def test_few_and_many_points() -> None:
    measured = measure([made_run("a", NAMES, COUNTS)], points=18)
    assert [one.images for one in measured.classes] == [3] * 6 and measured.perplexity == pytest.approx(17 / 3)
    assert any(note.startswith("18 images are left out") for note in measured.notes)
    assert any(
        note.startswith("perplexity 5.67, a third of the other points, in place of 30") for note in measured.notes
    )
    assert measure([made_run("a", NAMES, COUNTS, each=20)]).perplexity == 30
    with pytest.raises(UserError, match="4 images of these classes; at least 6"):
        measure([made_run("a", NAMES[:2], COUNTS[:2], each=2)])


def test_features_that_do_not_differ_or_are_no_numbers() -> None:
    run = made_run("a", NAMES, COUNTS)
    measured = measure([predictions_of(run, features=np.ones((36, 8), np.float32))])
    (panel,) = measured.panels
    assert panel.constant and not panel.points.any() and panel.whole.ratio is None
    assert "the features of all images are the same" in texts(draw(measured))
    with pytest.raises(UserError, match="a: features .* are not finite numbers"):
        measure([predictions_of(run, features=np.full((36, 8), np.nan, np.float32))])


@pytest.mark.usefixtures("quick")
def test_normalised_features_have_length_one() -> None:
    run = made_run("a", NAMES, COUNTS)
    features = run.predictions.features
    assert features is not None
    longer = predictions_of(run, features=features * np.arange(1, 37, dtype=np.float32)[:, None])
    same, other = (measure([one], normalise=True).panels[0].whole for one in (run, longer))
    assert same.ratio == pytest.approx(other.ratio, rel=1e-5) and same.within + same.between <= 1
    assert measure([longer]).panels[0].whole.within > 100 * same.within


def test_tsne_keeps_clouds_together_and_takes_one_feature() -> None:
    run = made_run("a", NAMES, COUNTS, each=8, spread=30.0)
    measured = measure([run])
    points = measured.panels[0].points
    for i in range(6):
        own = points[measured.of_point == i]
        others = points[measured.of_point != i]
        reach = np.linalg.norm(own - own.mean(0), axis=1).max()
        assert np.linalg.norm(others - own.mean(0), axis=1).min() > reach
    features = run.predictions.features
    assert features is not None
    assert np.isfinite(measure([predictions_of(run, features=features[:, :1])]).panels[0].points).all()


def odd_names() -> Embeddings:
    names = ("$x$", "_hidden", r"\frac{", "a$b", "W" * 90, "名\udcff\n")
    return measure([made_run("$run_1$", names, COUNTS)])


@pytest.mark.usefixtures("quick")
def test_the_picture_shows_names_as_they_are() -> None:
    measured = odd_names()
    figure = draw(measured)
    found = texts(figure)
    assert "$run_1$" in found
    legend = [text for text in found if text.endswith((", many", ", medium", ", few"))]
    assert [text.rpartition(":")[0] for text in legend[:2]] == ["_hidden", "a$b"] and legend[5] == "$x$: 10, few"
    assert (
        legend[2] == r"\u540d\udcff: 101, many" and legend[4].startswith("WWWW") and legend[4].endswith("W…: 15, few")
    )
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if isinstance(text, Text))
    assert svg(figure)  # draws every text
    cells = [row[0] for row in tables(measured)[1].rows]
    assert cells[2] == r"名\udcff" and "_hidden" in cells


@pytest.mark.usefixtures("quick")
def test_classes_differ_in_colour_and_marker_and_agree_in_all_panels() -> None:
    names = [f"class {i}" for i in range(20)]
    runs = [made_run(title, names, range(40, 20, -1)) for title in ("a", "b", "c", "d")]
    figure = draw(measure(runs, classes=names))
    looks = [
        [(line.get_markeredgecolor(), line.get_marker(), line.get_markerfacecolor()) for line in axes.get_lines()]
        for axes in figure.axes
    ]
    assert len(looks) == 4 and len(set(looks[0])) == 20 and all(one == looks[0] for one in looks)
    assert len({(colour, face == "none") for colour, _, face in looks[0][:10]}) == 10


@pytest.mark.usefixtures("quick")
def test_tables_json_and_notes_have_the_figures() -> None:
    measured = measure([made_run("a", NAMES, COUNTS), made_run("b", NAMES, COUNTS)], seed=3)
    whole, first, _ = tables(measured)
    assert [row[0] for row in whole.rows] == ["a", "b"] and first.rows[0][:4] == ["bee", "500", "many", "6"]
    value = as_json(measured)
    assert value["runs"][0]["all"]["silhouette"] == measured.panels[0].whole.silhouette and value["seed"] == 3
    assert f"{value['runs'][0]['classes'][1]['within']:.3f}" == first.rows[1][4]
    assert "36 images" in notes(measured)[0] and "not normalised" in notes(measured)[1]


def test_the_same_command_writes_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        made_run(name, NAMES, COUNTS, each=10, seed=seed).predictions.save(tmp_path / f"{name}.npz")
    command = ["embeddings", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--seed", "5", "--out"]
    for out in ("first", "second"):
        assert main([*command, str(tmp_path / out)]) == 0
    for suffix in ("md", "json", "svg", "png"):
        one, two = ((tmp_path / out / f"embeddings.{suffix}").read_bytes() for out in ("first", "second"))
        assert one == two and one
    assert "first/embeddings.md" in capsys.readouterr().out


def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.npz"
    made_run("a", NAMES, COUNTS).predictions.save(file)

    def refusal(*words: str) -> str:
        assert main(["embeddings", str(file), "--out", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert "no such class; give names (nearest: cat" in refusal("--classes", "bat", "dog")
    assert "--perplexity" in refusal("--perplexity", "nan") and "--perplexity" in refusal("--perplexity", "0")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert refusal() == "error: embeddings need scikit-learn; type: pip install scikit-learn\n"
    monkeypatch.delitem(sys.modules, "tools.reporting.style")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "sklearn.manifold")
    assert refusal() == "error: pictures need matplotlib; type: pip install matplotlib\n"
    assert not (tmp_path / "out").exists()
    made_run("a", NAMES, COUNTS, features=None).predictions.save(file)
    monkeypatch.undo()
    assert "holds no features; give the run in its place" in refusal()
