"""The figures of the paper's supplementary as sections: the same measurements and pictures as of tools/figures.py.

Owns which runs they are about and the words around them; a run that does not say what a figure needs is named in a note.
"""

from dataclasses import replace
from importlib.util import find_spec

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pipelines.errors import UserError
from tools.reporting import embeddings, samples, shifted
from tools.reporting.runs import Run
from tools.reporting.scores import scores
from tools.reporting.section import Material, Picture, Section, plain
from tools.reporting.style import verbatim


def has_tsne() -> bool:
    return find_spec("sklearn") is not None


def _at_home(figure: Figure) -> Figure:
    """In the report's manner, and no longer known to pyplot."""
    plt.close(figure)
    for axes in figure.axes:
        plain(axes)
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
    verbatim(figure)
    return figure


def shifted_section(material: Material) -> Section:
    """Table 2 of the supplementary."""
    runs = [run for run in material.runs if run.predictions.train_counts is not None and run.rule]
    if not runs:
        raise UserError("no run says how and on which images it was trained; tools/figures.py shifted asks for that")
    others = [run.title for run in material.runs if run not in runs]
    measured = shifted.measure(runs)
    figure = _at_home(shifted.draw(measured))
    alt = "Expected accuracy of every run, with and without post-compensation, over the test sets; the table has the figures."
    return Section(
        title=shifted.TITLE,
        intro=(
            "The test set made long-tailed: forward (F) as the training set is, backward (B) in reverse order, or uniform (U). "
            "Post-compensation (PC) tells the network the class frequencies of the test set."
        ),
        tables=shifted.tables(measured),
        figures=[Picture(figure, "Accuracy on shifted test sets", alt, wide=True)],
        notes=[*shifted.notes(measured), *([f"Not known of {', '.join(others)}."] * bool(others))],
    )


def embeddings_section(material: Material) -> Section:
    """Its Figure 2: of the runs with features, one of each entry."""
    if not has_tsne():
        raise UserError("scikit-learn is not installed; type: pip install -e '.[report]'")
    runs = [entry.runs[0] for entry in material.entries if entry.runs[0].predictions.features is not None]
    if not runs:
        raise UserError(
            "no run has features: files of predictions hold them after train/evaluate.py RUN features=FILE.npz"
        )
    left = [run.title for run in material.runs if run not in runs]
    measured = embeddings.measure(runs)
    alt = "t-SNE of the features of the same images, a panel for each run; the tables have the figures of their separation."
    # Two panels beside the legend are as much as can be read.
    parts = [
        replace(measured, panels=measured.panels[start : start + 2]) for start in range(0, len(measured.panels), 2)
    ]
    return Section(
        title="Embeddings",
        intro="Features, the input of the last layer, of classes from frequent to rare, by t-SNE.",
        tables=embeddings.tables(measured),
        figures=[Picture(embeddings.draw(part), _names(part), alt, wide=True) for part in parts],
        notes=[*map(_sentence, embeddings.notes(measured)), *([f"Not shown: {', '.join(left)}."] * bool(left))],
    )


def samples_section(material: Material) -> Section:
    """Its Figure 3: of the first two entries; the better one is the one that answers right."""
    if len(material.entries) < 2:
        raise UserError("one run: pictures that one answers right and another wrong need two")
    first, second = (entry.runs[0] for entry in material.entries[:2])
    right, wrong = (first, second) if _top1(first) >= _top1(second) else (second, first)
    records = samples.find_records((right, wrong), None, (), material.split)
    measured = samples.measure((right, wrong), records)
    words = f"Images that {right.title} answers right and {wrong.title} wrong"
    alt = f"{words}, each with its class and both answers; the table names them."
    return Section(
        title="Sample pictures",
        intro="Drawn by a seeded rule from each shot group, none picked by hand.",
        tables=samples.tables(measured),
        figures=[Picture(samples.draw(measured), words, alt, wide=True, pixels=True)],
        notes=[*map(_sentence, samples.notes(measured))],
    )


def _names(part: embeddings.Embeddings) -> str:
    return f"Features of the same images: {' and '.join(panel.title for panel in part.panels)}"


def _top1(run: Run) -> float:
    return scores(run.predictions)["top1"] or 0.0


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"
