"""Tables as Markdown and LaTeX."""

from tools.reporting.tables import Table, latex


def test_latex_shows_text_as_it_is_written() -> None:
    table = Table(
        "Title\nof 5 %", ["run", "all, %"], [["a_b & {c} \\\\ ~^", "45.3 ± 0.2"], ["–", "-0.5"], ["[a]", "*"]]
    )
    assert latex(table).splitlines() == [
        "% Title of 5 %",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"run & all, \% \\",
        r"\midrule",
        r"a\_b \& \{c\} \textbackslash{}\textbackslash{} \textasciitilde{}\textasciicircum{} & 45.3 $\pm$ 0.2 \\",
        r"-- & $-$0.5 \\",
        r"{}[a] & {}* \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
