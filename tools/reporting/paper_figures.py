"""The figures of the paper's supplementary as sections: the same measurements and pictures as of tools/figures.py.

Owns which runs they are about and the words around them; a run that does not say what a figure needs is named in a note.
"""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pipelines.errors import UserError
from tools.reporting import shifted
from tools.reporting.section import Material, Picture, Section, plain
from train.evaluation.compensation import rule_of


def _at_home(figure: Figure) -> Figure:
    """In the report's manner, and no longer known to pyplot."""
    plt.close(figure)
    for axes in figure.axes:
        plain(axes)
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
    return figure


def shifted_section(material: Material) -> Section:
    """Table 2."""
    runs = [
        run for run in material.runs if run.predictions.train_counts is not None and rule_of(run.predictions.method)
    ]
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
