"""How probability is spread over frequent and rare classes: by the teacher over the training images, by each run over the split.

The first needs the cache that a run was trained from; pipelines/logits/flatness.py owns the distribution. Invariant: a cache is
used only where its identity has the hash that the run recorded.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.logits import Ensemble, LogitCache
from pipelines.logits.flatness import virtual_examples
from pipelines.logits.folder import open_folder
from pipelines.logits.identity import identity_hash
from pipelines.records.reader import Records
from tools.caches.flatness import group_means
from tools.reporting.entries import Entry
from tools.reporting.runs import Run
from tools.reporting.scores import mean_probabilities
from tools.reporting.section import (
    GROUPS,
    Key,
    Material,
    Picture,
    Section,
    bars,
    decimal,
    groups_of,
    legend_of,
    plot,
    with_groups,
)
from tools.reporting.style import COLOURS
from tools.reporting.tables import Table
from train.config import Config
from train.objectives.methods import METHODS, settings_of
from train.run.facts import Facts

_MOST = 400_000_000  # logits that are read of one cache; of a larger one, every k-th image
_IMAGES, _RAW, _SOFT = "#8a929b", COLOURS[4], COLOURS[3]


class Virtual(NamedTuple):
    """counts: training images [C]; raw, soft: virtual examples at T = 1 and at `temperature`, float64 [C].

    every: k where they are of every k-th image.
    """

    temperature: float
    counts: np.ndarray
    raw: np.ndarray
    soft: np.ndarray
    every: int


class Mass(NamedTuple):
    """Shares by shot group, as fractions [3], NaN for a group without classes: of softmax mass, of predictions, of images."""

    mass: np.ndarray
    predicted: np.ndarray
    images: np.ndarray


def has_teacher(run: Run) -> bool:
    """Whether the run was trained here, by a method with soft targets."""
    return run.config is not None and run.folder is not None and METHODS[run.config.distill.method].targets


def of_teacher(run: Run) -> Virtual:
    """Of the caches that a run with a teacher was trained from; UserError, worded for the report, where they are gone."""
    config = run.config
    assert config is not None and run.folder is not None and has_teacher(run)
    if not config.cache.paths:
        raise UserError(f"{run.title} asked its teacher online, and kept no logits")
    if why := _why_others(config):
        raise UserError(
            f"{run.title} was not trained on its teacher's softmax, each image as often as the others: {why}"
        )
    facts = Facts.of_run(run.folder)
    if facts.caches is None or facts.tau is None:
        raise UserError(f"{run.title} does not say which cache and temperature it was trained with")
    caches = [_cache(run, path, facts.caches) for path in config.cache.paths]
    power = config.distill.p if "p" in METHODS[config.distill.method].settings else 1
    temperature = facts.tau / power
    rows = _trained_on(run, open_folder(caches[0].folder).rows)
    every = -(-len(rows) * caches[0].classes // _MOST)
    keys = rows["key"][::every]
    source = Ensemble(caches, config.cache.weights, config.cache.average)
    raw, soft = (every * virtual_examples(source.at(t), keys, [t])[0] for t in (1.0, temperature))
    return Virtual(temperature, np.bincount(rows["label"], minlength=caches[0].classes), raw, soft, every)


def _why_others(config: Config) -> str | None:
    """Why the targets of a training are not those that are counted here, in words."""
    distill, read = config.distill, settings_of(config.distill)
    reasons = {
        f"{distill.method} has no temperature": "tau" not in read,
        "distill.zscore=true standardises the logits": distill.zscore and "zscore" in read,
        f"{distill.method} weights their classes (distill.bkd_beta)": distill.bkd_beta and "bkd_beta" in read,
        f"data.sampling={config.data.sampling} draws the images by class": config.data.sampling != "instance",
    }
    return next((words for words, holds in reasons.items() if holds), None)


def _trained_on(run: Run, rows: np.ndarray) -> np.ndarray:
    """The rows of a cache's index that the run was trained on: a student may take a part of its cache."""
    counts = run.predictions.train_counts
    if counts is None or np.array_equal(np.bincount(rows["label"], minlength=len(counts)), counts):
        return rows
    assert run.config is not None and run.config.data.train is not None
    records = Records(Path(run.config.data.train))
    own = rows[np.isin(rows["key"], records.keys)]
    if not np.array_equal(np.bincount(own["label"], minlength=len(counts)), counts):
        raise UserError(
            f"{run.title} was trained on a part of its cache, and {run.config.data.train} holds other images now"
        )
    return own


def _cache(run: Run, path: str, hashes: Sequence[str]) -> LogitCache:
    """The cache at `path`, or in that folder, that has one of these hashes."""
    place = Path(path)
    for folder in (place, *sorted(place.glob("*/"))):
        if (folder / "identity.json").is_file() and identity_hash(open_folder(folder).identity).hex() in hashes:
            return LogitCache(folder)
    raise UserError(
        f"the cache of {run.title} is not at hand: {path} does not hold it; if it was moved, type cache.paths=[FOLDER]"
    )


def of_run(entry: Entry) -> Mass:
    """Of an entry's runs together, at T = 1."""
    mass, predicted, images = np.zeros((3, len(entry.runs), 3))
    for number, run in enumerate(entry.runs):
        found = run.predictions
        shares = mean_probabilities(found)
        n = len(found.labels)
        for place, members in enumerate(groups_of(run).values()):
            mass[number, place] = shares[members].sum()
            predicted[number, place] = members[found.answers].sum() / n
            images[number, place] = members[found.labels].sum() / n
    return Mass(mass.mean(axis=0), predicted.mean(axis=0), images.mean(axis=0))


# ---- the report ----


def section(material: Material) -> Section:
    teachers, notes = _teachers(material.runs)
    entries, others = with_groups(material)
    if not any(len(run.predictions.labels) for run in material.runs):
        entries = []
    if not teachers and not entries:
        raise UserError("; ".join([*notes, *others]))
    masses = {entry.title: of_run(entry) for entry in entries}
    figures: list[Picture] = []
    for title, found in teachers.items():
        figures += [_bar_picture(title, found), _class_picture(title, found)]
    tables = [_table(title, found) for title, found in teachers.items()]
    if masses:
        figures.append(_mass_picture(entries, masses))
        tables.append(_mass_table(masses, material.split))
    return Section(
        title="Virtual examples",
        intro=(
            "The virtual examples of a class are the teacher's probabilities for it, summed over the training images; DiVE "
            "distils them at T = τ/p. Where the predictions go is the same question to the runs themselves: the share of softmax "
            f"probability (T = 1) and of predictions that each shot group gets over the {material.split} split."
        ),
        tables=tables,
        figures=figures,
        notes=[*notes, *others],
    )


def _teachers(runs: Sequence[Run]) -> tuple[dict[str, Virtual], list[str]]:
    """(run's title -> its teacher's virtual examples, why there are none of others); runs of equal caches and T are one."""
    found: dict[str, Virtual] = {}
    notes = []
    for run in filter(has_teacher, runs):
        try:
            one = of_teacher(run)
        except UserError as error:
            notes.append(f"No virtual examples: {error}.")
            continue
        same = next((title for title, other in found.items() if _same(one, other)), None)
        if same is not None:
            found = {(f"{title}, {run.title}" if title == same else title): other for title, other in found.items()}
        else:
            found[run.title] = one
    if not found and not notes:
        notes.append("No run was distilled from a teacher, so there are no virtual examples.")
    return found, notes


def _same(one: Virtual, other: Virtual) -> bool:
    return one.temperature == other.temperature and np.array_equal(one.soft, other.soft)


def _rows_of(found: Virtual) -> Iterator[tuple[str, np.ndarray]]:
    yield "training images", found.counts
    yield "virtual examples, T = 1", found.raw
    yield f"virtual examples, T = {found.temperature:g}", found.soft


def _table(title: str, found: Virtual) -> Table:
    rows = []
    for name, values in _rows_of(found):
        means = group_means(values, found.counts)
        rows.append([name, *(decimal(means[group], 1) for group in GROUPS)])
    some = "" if found.every == 1 else f", from every {found.every}th image"
    return Table(f"Mean per class, teacher of {title}{some}", ["", *GROUPS], rows)


def _bar_picture(title: str, found: Virtual) -> Picture:
    figure, axes = plot()
    heights = [[group_means(values, found.counts)[group] for group in GROUPS] for _, values in _rows_of(found)]
    bars(axes, heights, (_IMAGES, _RAW, _SOFT), GROUPS)
    axes.set_ylabel("mean per class")
    words = f"Mean virtual examples of a class by shot group: teacher of {title}"
    return Picture(figure, words, f"Bars. {words}. The table has the figures.", legend=_legend(found))


def _class_picture(title: str, found: Virtual) -> Picture:
    figure, axes = plot()
    order = np.argsort(-found.counts, kind="stable")
    for (_, values), colour in zip(_rows_of(found), (_IMAGES, _RAW, _SOFT), strict=True):
        axes.plot(np.where(values > 0, values, np.nan)[order], color=colour, linewidth=1.5)
    axes.set_yscale("log")
    axes.set_xticks([])
    axes.set_xlabel("classes, from frequent to rare")
    words = f"Virtual examples of each class: teacher of {title}"
    return Picture(figure, words, f"Lines. {words}, beside its training images.", legend=_legend(found, "-"))


def _legend(found: Virtual, line: str = "") -> list[Key]:
    names = (name for name, _ in _rows_of(found))
    return [Key(name, colour, line) for name, colour in zip(names, (_IMAGES, _RAW, _SOFT), strict=True)]


def _mass_picture(entries: Sequence[Entry], masses: dict[str, Mass]) -> Picture:
    figure, axes = plot()
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = [masses[entry.title].mass / masses[entry.title].images for entry in entries]
    heights = [[float(value) if np.isfinite(value) else None for value in row] for row in ratios]
    bars(axes, heights, [entry.colour for entry in entries], GROUPS)
    axes.axhline(1, color="0.5", linewidth=1, linestyle="--")
    axes.set_ylabel("1 = as much as there are")
    told = [
        f"{entry.title}: "
        + ", ".join(f"{group} {decimal(height, 2)}" for group, height in zip(GROUPS, row, strict=True))
        for entry, row in zip(entries, heights, strict=True)
    ]
    words = "Where the predictions go: probability that a shot group gets, over its share of the images"
    return Picture(figure, words, f"Bars. {words}. {'; '.join(told)}", legend=legend_of(entries, areas=True))


def _mass_table(masses: dict[str, Mass], split: str) -> Table:
    rows = []
    for title, found in masses.items():
        for place, group in enumerate(GROUPS):
            if found.images[place] or found.mass[place]:
                shares = (found.images[place], found.mass[place], found.predicted[place])
                rows.append([title, group, *(f"{100 * share:.1f}" for share in shares)])
    columns = ["run", "group", "images, %", "probability, %", "predictions, %"]
    return Table(f"Where the predictions go, {split} split", columns, rows)
