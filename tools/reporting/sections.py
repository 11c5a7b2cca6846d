"""The sections of the report, in order: one line for each.

A section is a function of Material that returns a Section, or raises UserError where it does not apply; the page then says why.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pipelines.errors import UserError
from tools.reporting import (
    accuracy,
    calibration,
    confusion,
    curves,
    overview,
    paper_figures,
    settings,
    speed,
    virtual_examples,
)
from tools.reporting.entries import entries_of
from tools.reporting.runs import Run
from tools.reporting.section import Maker, Material, Section

SECTIONS: dict[str, Maker] = {
    "runs": overview.section,
    "settings": settings.section,
    "curves": curves.section,
    "accuracy": accuracy.section,
    "shifted": paper_figures.shifted_section,
    "confusion": confusion.section,
    "calibration": calibration.section,
    "virtual-examples": virtual_examples.section,
    "embeddings": paper_figures.embeddings_section,
    "samples": paper_figures.samples_section,
    "speed": speed.section,
}


class Made(NamedTuple):
    """sections, and why others are not there, both by name."""

    sections: dict[str, Section]
    left_out: dict[str, str]


def needs_features(without: Collection[str]) -> bool:
    """Whether a section that is not left out shows features."""
    return "embeddings" not in without and paper_figures.has_tsne()


def make_sections(runs: Sequence[Run], split: str, without: Collection[str] = ()) -> Made:
    """All sections that apply, but for those named in `without`."""
    material, made = Material(runs, entries_of(runs), split), Made({}, {})
    for name, maker in SECTIONS.items():
        if name in without:
            made.left_out[name] = "left out by --without"
            continue
        try:
            made.sections[name] = maker(material)
        except UserError as error:
            made.left_out[name] = str(error)
    return made
