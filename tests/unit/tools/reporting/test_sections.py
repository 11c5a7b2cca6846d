"""All sections together: odd names do no harm, and what does not apply is left out with a reason."""

import html
import warnings

import pytest
from helpers.report_runs import made_run, random_predictions

from tools.reporting import paper_figures
from tools.reporting.page import page
from tools.reporting.sections import SECTIONS, make_sections, needs_features

NAMES = ("<b>", "$\\frac", "\udcff", "a\nb", "_x", "\u65e5\u672c")


def test_odd_names_of_runs_and_classes() -> None:
    """No formula, no hidden label, no character that UTF-8 lacks stops the page; every name can be read in it."""
    titles = ("$\\frac", "_hidden", "\u65e5 <i>")
    runs = [
        made_run(title, predictions=random_predictions(seed, names=NAMES, method="bsce"))
        for seed, title in enumerate(titles)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = make_sections(runs, "test", ("embeddings", "calibration"))
        text = page("t", "", made.sections, made.left_out).decode()
    assert list(made.sections) == ["runs", "settings", "accuracy", "shifted", "confusion", "virtual-examples"]
    assert list(made.left_out) == [name for name in SECTIONS if name not in made.sections]
    assert made.left_out["embeddings"] == "left out by --without" and "metrics.jsonl" in made.left_out["curves"]
    assert all(html.escape(name) in text for name in (*titles, "<b>", "$\\frac", "\\udcff", "a b", "_x"))
    assert text.count("<b>") == text.count("<i>") == 0


def test_an_empty_split_and_one_class() -> None:
    """Sections of nothing are left out or show dashes; none fails."""
    for predictions in (random_predictions(images=0), random_predictions(counts=[3] * 6)):
        made = make_sections([made_run("a", predictions=predictions)], "test", ("embeddings",))
        assert "runs" in made.sections and page("t", "", made.sections, made.left_out)


def test_features_are_wanted_where_they_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs_features(()) == paper_figures.has_tsne() and not needs_features(("embeddings",))
    monkeypatch.setattr(paper_figures, "find_spec", lambda _: None)
    made = make_sections([made_run("a")], "test", [name for name in SECTIONS if name != "embeddings"])
    assert not needs_features(()) and "pip install" in made.left_out["embeddings"]
