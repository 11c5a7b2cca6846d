"""Features of ten classes from frequent to rare, one panel for each run: t-SNE, and figures of how far the classes lie apart.

Owns the choice of classes and points, and the figures, all of which are computed from the features and never from the picture.
A feature is the input of the last layer. Invariant: the same runs and options give the same files on one machine.
Shapes: n points, k classes, D features.

Scatter is the trace of the scatter matrix divided by the number of points: within a class, the mean squared distance of its
points from their mean; between classes, the mean over all points of the squared distance of their class's mean from the mean of
all points. For one class: that of its own points. The silhouette is Rousseeuw's, with Euclidean distances.
"""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.errors import UserError, printable, quoted
from tools.command_line import whole
from tools.reporting.output import check_place, write_all
from tools.reporting.runs import Run, open_runs
from tools.reporting.style import COLOURS, MARKERS, fitting, shown, verbatim
from tools.reporting.tables import Table, markdown
from tools.reporting.together import group_of_each, known_counts, notes_on_checkpoints, notes_on_counts, same_images

NAME = "embeddings"
CLASSES = 10
MOST_CLASSES = 20  # more colours with markers than that are not told apart
PERPLEXITY = 30.0
POINTS = 2000
_FEWEST = 6  # points: t-SNE of fewer shows nothing
_PANEL_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Of all points or of one class; None: cannot be computed."""

    within: float
    between: float
    ratio: float | None
    "between / within: does not depend on the scale of the features"
    silhouette: float | None
    "-1 to 1"


@dataclass(frozen=True, kw_only=True)
class ShownClass:
    label: int
    name: str
    train_images: int | None
    group: str
    "many, medium or few; empty: not known"
    images: int
    "points"


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    title: str
    points: np.ndarray
    "float64 [n, 2], by t-SNE; all at 0 where the features are constant"
    whole: Separation
    classes: list[Separation]
    constant: bool
    "the features of all points are the same"


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    classes: list[ShownClass]
    "from frequent to rare"
    of_point: np.ndarray
    "int64 [n]: index into `classes`"
    panels: list[Panel]
    seed: int
    perplexity: float
    normalised: bool
    notes: list[str]


def measure(
    runs: Sequence[Run],
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    perplexity: float = PERPLEXITY,
    points: int = POINTS,
    normalise: bool = False,
) -> Embeddings:
    """The features of the same images in each run, which must hold features.

    classes: names or labels; by default one of each tenth of the classes. points: at most so many.
    normalise: scale each feature vector to length 1.
    """
    rows = same_images(runs)
    first, counts = runs[0].predictions, known_counts(runs)
    labels = first.labels[rows[0]]
    names = [str(name) for name in first.class_names]
    tested = np.bincount(labels, minlength=len(names)) > 0
    chosen, notes = (named(classes, names, tested), []) if classes else spread(counts, tested)
    if counts is not None:
        chosen = sorted(chosen, key=lambda label: (-counts[label], label))
    places, left_out = _some_points(labels, chosen, points, seed)
    if len(places) < _FEWEST:
        raise UserError(f"{len(places)} images of these classes; at least {_FEWEST} are needed for a picture")
    of_point = np.array([chosen.index(label) for label in labels[places].tolist()])
    used = min(perplexity, (len(places) - 1) / 3)
    if used < perplexity:
        notes.append(
            f"perplexity {used:.3g}, a third of the other points, in place of {perplexity:g}: there are few points"
        )
    if left_out:
        notes.append(
            f"{left_out:,} images are left out: of each class a seeded choice of {points // len(chosen):,} is shown"
        )
    groups = group_of_each(counts, len(names))
    panels = [_panel(run, row[places], of_point, seed, used, normalise) for run, row in zip(runs, rows, strict=True)]
    return Embeddings(
        classes=[
            ShownClass(
                label=label,
                name=names[label],
                train_images=None if counts is None else int(counts[label]),
                group=groups[label],
                images=int((of_point == i).sum()),
            )
            for i, label in enumerate(chosen)
        ],
        of_point=of_point,
        panels=panels,
        seed=seed,
        perplexity=used,
        normalised=normalise,
        notes=[*notes, *notes_on_counts(runs), *notes_on_checkpoints(runs)],
    )


def spread(counts: np.ndarray | None, tested: np.ndarray) -> tuple[list[int], list[str]]:
    """Labels of one class of each tenth of the classes by frequency, and notes: the one nearest to the tenth's middle.

    counts: training images, int64 [C]; tested: bool [C], whether a class has images to show.
    """
    if counts is None:
        raise UserError(
            "the training images of the classes are not known, so that none can be chosen by frequency; type --classes NAME ..., "
            "or add `train_counts` [C] to the file of predictions"
        )
    chosen, empty = [], 0
    for tenth in np.array_split(np.argsort(-counts, kind="stable"), min(CLASSES, len(counts))):
        middle = (len(tenth) - 1) / 2
        near = sorted((i for i, label in enumerate(tenth) if tested[label]), key=lambda i: (abs(i - middle), i))
        chosen += [int(tenth[i]) for i in near[:1]]
        empty += not near
    if len(chosen) < 2:
        raise UserError(f"classes with images to show: {len(chosen)}; at least 2 are needed")
    notes = [
        "classes: ranked by training images and cut into ten parts, of each the middle one that has images to show"
    ]
    return chosen, notes + ([f"parts without any image to show, which are left out: {empty}"] if empty else [])


def named(given: Sequence[str], names: Sequence[str], tested: np.ndarray) -> list[int]:
    """Labels of classes that are given by name or, where no class has that name, by label."""
    chosen = [label_named(one, names) for one in given]
    for one, label in zip(given, chosen, strict=True):
        if chosen.count(label) > 1:
            raise UserError(f"--classes {quoted(one)}: class {label}, {quoted(names[label])}, is given twice")
        if not tested[label]:
            raise UserError(f"--classes {quoted(one)}: the split holds no image of this class; name another")
    if not 2 <= len(chosen) <= MOST_CLASSES:
        raise UserError(f"--classes: {len(chosen)} given, 2..{MOST_CLASSES} allowed")
    return chosen


def label_named(given: str, names: Sequence[str]) -> int:
    """The label of a class that --classes gives by name or, where no class has that name, by label."""
    labels = [label for label, name in enumerate(names) if name == given]
    if len(labels) > 1:
        raise UserError(
            f"--classes {quoted(given)}: {len(labels)} classes have this name; give a label: {', '.join(map(str, labels))}"
        )
    if labels:
        return labels[0]
    if given.isdecimal() and len(given) < 10 and int(given) < len(names):
        return int(given)
    lower = {name.lower(): name for name in names}
    near = [lower[name] for name in difflib.get_close_matches(given.lower(), list(lower), n=3, cutoff=0.4)]
    hint = f"nearest: {', '.join(quoted(name) for name in near)}" if near else f"such as {quoted(names[0])}"
    raise UserError(f"--classes {quoted(given)}: no such class; give names ({hint}) or labels 0..{len(names) - 1}")


def _some_points(labels: np.ndarray, chosen: Sequence[int], most: int, seed: int) -> tuple[np.ndarray, int]:
    """Places of the images to show, in order, and how many are left out: at most most / k of each class."""
    rng, parts, left_out = np.random.default_rng(seed), [], 0
    for label in chosen:
        places = np.flatnonzero(labels == label)
        kept = min(len(places), max(1, most // len(chosen)))
        parts.append(rng.choice(places, kept, replace=False))
        left_out += len(places) - kept
    return np.sort(np.concatenate(parts)), left_out


def _panel(run: Run, rows: np.ndarray, of_point: np.ndarray, seed: int, perplexity: float, normalise: bool) -> Panel:
    features = run.predictions.features
    assert features is not None  # open_runs was asked for them
    if features.ndim != 2 or not np.isfinite(features[rows]).all():
        raise UserError(f"{run.title}: features {features.shape} are not finite numbers [n, D]")
    features_nD = features[rows].astype(np.float64)
    if normalise:
        lengths = np.linalg.norm(features_nD, axis=1, keepdims=True)
        features_nD = features_nD / np.where(lengths > 0, lengths, 1)
    constant = not np.ptp(features_nD, axis=0).any()
    total, classes = separation(features_nD, of_point)
    points = np.zeros((len(rows), 2)) if constant else tsne(features_nD, perplexity, seed)
    return Panel(title=run.title, points=points, whole=total, classes=classes, constant=constant)


def separation(features_nD: np.ndarray, of_point: np.ndarray) -> tuple[Separation, list[Separation]]:
    """Scatter and silhouette of all points, and of each class; see the head of this file."""
    k = int(of_point.max()) + 1
    centre = features_nD.mean(axis=0)
    members = [of_point == i for i in range(k)]
    means = [features_nD[of].mean(axis=0) for of in members]
    within = [
        float(((features_nD[of] - mean) ** 2).sum(axis=1).mean()) for of, mean in zip(members, means, strict=True)
    ]
    between = [float(((mean - centre) ** 2).sum()) for mean in means]
    shares = [float(of.mean()) for of in members]
    silhouettes = _silhouettes(features_nD, of_point)
    classes = [
        _one(within[i], between[i], None if silhouettes is None else silhouettes[of]) for i, of in enumerate(members)
    ]
    return _one(float(np.dot(shares, within)), float(np.dot(shares, between)), silhouettes), classes


def _one(within: float, between: float, silhouettes: np.ndarray | None) -> Separation:
    return Separation(
        within=within,
        between=between,
        ratio=between / within if within > 0 else None,
        silhouette=None if silhouettes is None else float(silhouettes.mean()),
    )


def _silhouettes(features_nD: np.ndarray, of_point: np.ndarray) -> np.ndarray | None:
    """float64 [n]; None where no class has two points, or there is one class."""
    if not 2 <= len(np.unique(of_point)) < len(of_point):
        return None
    return _sklearn("metrics").silhouette_samples(features_nD, of_point)


def tsne(features_nD: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """float64 [n, 2]. On one thread, because sums of several threads are added up in any order."""
    manifold = _sklearn("manifold")
    from threadpoolctl import threadpool_limits  # scikit-learn needs it

    if features_nD.shape[1] < 2:  # for the principal components that it begins with
        features_nD = np.pad(features_nD, ((0, 0), (0, 1)))
    with threadpool_limits(1):
        made = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        return made.fit_transform(features_nD).astype(np.float64)


def _sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise  # it is installed, but one of its own dependencies is not
        raise UserError("embeddings need scikit-learn; type: pip install scikit-learn") from error


def draw(measured: Embeddings) -> Figure:
    """A panel for each run, with the same colours and markers; the legend goes from frequent to rare."""
    panels = measured.panels
    columns = 2 if len(panels) == 4 else min(_PANEL_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(
        figsize=(3.7 * columns + 2.7, max(3.9 * lines, 0.24 * len(measured.classes) + 1)), layout="constrained"
    )
    grid = figure.subplots(lines, columns, squeeze=False).flat
    looks = [_look(i) for i in range(len(measured.classes))]
    for axes, panel in zip(grid, panels, strict=False):
        for i, look in enumerate(looks):
            x, y = panel.points[measured.of_point == i].T
            axes.plot(x, y, linestyle="", markersize=4, alpha=0.8, **look)
        axes.set_title(fitting(shown(panel.title), 240, 11), fontsize=11)
        axes.set_xlabel(_in_words(panel), fontsize=9)
        axes.set(xticks=[], yticks=[])
    for axes in list(figure.axes)[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], linestyle="", markersize=6, **look) for look in looks]
    labels = [fitting(_in_legend(one), 165, 9) for one in measured.classes]
    title = "class: training images, group" if measured.classes[0].group else "class"
    figure.legend(handles, labels, title=title, loc="outside right center", fontsize=9, title_fontsize=9)
    verbatim(figure)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Colour and marker of class i, no two alike: each colour first filled, then hollow, each time with another marker."""
    lap, colour = divmod(i, len(COLOURS))
    filled = {"markerfacecolor": COLOURS[colour], "markeredgewidth": 0.0}
    hollow = {"markerfacecolor": "none", "markeredgewidth": 0.9}
    shape = {"marker": MARKERS[(colour + lap) % len(MARKERS)], "markeredgecolor": COLOURS[colour]}
    return shape | (hollow if lap % 2 else filled)


def _in_words(panel: Panel) -> str:
    if panel.constant:
        return "the features of all images are the same"
    return f"between / within {_number(panel.whole.ratio)}, silhouette {_number(panel.whole.silhouette)}"


def _in_legend(one: ShownClass) -> str:
    return fitting(shown(one.name), 95, 9) + (f": {one.train_images:,}, {one.group}" if one.group else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def tables(measured: Embeddings) -> list[Table]:
    """All runs side by side, then each run class by class."""
    figures = ("within", "between", "between / within", "silhouette")
    found = [Table("All classes", ("run", *figures), [[printable(p.title), *_cells(p.whole)] for p in measured.panels])]
    for panel in measured.panels:
        rows = [
            [
                printable(one.name),
                "-" if one.train_images is None else f"{one.train_images:,}",
                one.group or "-",
                f"{one.images:,}",
            ]
            + _cells(figures)
            for one, figures in zip(measured.classes, panel.classes, strict=True)
        ]
        found.append(
            Table(printable(panel.title), ("class", "training images", "group", "images shown", *figures), rows)
        )
    return found


def _cells(one: Separation) -> list[str]:
    return [_number(value) for value in (one.within, one.between, one.ratio, one.silhouette)]


def notes(measured: Embeddings) -> list[str]:
    """How to read picture and tables."""
    return [
        f"{len(measured.of_point):,} images, the same in every panel; t-SNE with perplexity {measured.perplexity:.3g} and seed "
        f"{measured.seed}, begun at the first two principal components",
        f"feature vectors are {'scaled to length 1' if measured.normalised else 'taken as they are, not normalised'}",
        "the figures are of the features (the input of the last layer) and not of the picture, in which distances between "
        "groups of points, and their sizes, mean little",
        "within: mean squared distance of a point from the mean of its class (trace of S_W / n); between: mean squared distance "
        "of its class's mean from the mean of all points (trace of S_B / n). Only their ratio can be compared across runs",
        "silhouette: from -1 to 1; above 0, points lie nearer to their own class than to the nearest other one",
        *map(printable, measured.notes),
    ]


def as_json(measured: Embeddings) -> dict[str, Any]:
    return {
        "seed": measured.seed,
        "perplexity": measured.perplexity,
        "normalised": measured.normalised,
        "images": len(measured.of_point),
        "classes": [asdict(one) for one in measured.classes],
        "runs": [
            {"run": panel.title, "all": asdict(panel.whole), "classes": [asdict(one) for one in panel.classes]}
            for panel in measured.panels
        ],
        "notes": measured.notes,
    }


def page(measured: Embeddings) -> str:
    """The tables as Markdown, with the picture."""
    return markdown("Features of classes from frequent to rare", tables(measured), notes(measured), [f"{NAME}.png"])


def add_command(commands: Any, common: Any) -> None:
    sub = commands.add_parser(
        NAME, parents=[common], help="t-SNE of the features of ten classes, and how far they lie apart"
    )
    sub.add_argument("runs", nargs="+", metavar="RUN", help="names, folders or files of predictions with features")
    sub.add_argument(
        "--classes", nargs="+", default=(), metavar="NAME", help="classes by name or label (default: ten, by frequency)"
    )
    sub.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="of t-SNE and of the choice of points (default: 0)"
    )
    sub.add_argument(
        "--perplexity",
        type=_perplexity,
        default=PERPLEXITY,
        metavar="P",
        help="of t-SNE, at most a third of the points (default: %(default)g)",
    )
    sub.add_argument(
        "--points", type=whole(10, 20_000), default=POINTS, metavar="N", help="at most (default: %(default)s)"
    )
    sub.add_argument(
        "--normalise", action="store_true", help="scale each feature vector to length 1 (default: as it is)"
    )
    sub.set_defaults(run=run)


def _perplexity(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1000:
        raise ValueError
    return value


def run(args: Any) -> None:
    _sklearn("manifold")  # missing packages and places are told before the work
    check_place(args.out, NAME)
    runs = open_runs(args.runs, args.settings, args.split, features=True)
    measured = measure(
        runs,
        classes=args.classes,
        seed=args.seed,
        perplexity=args.perplexity,
        points=args.points,
        normalise=args.normalise,
    )
    paths = write_all(args.out, NAME, page(measured), as_json(measured), draw(measured))
    print(f"written: {paths[0]}, {', '.join(one.name for one in paths[1:])}")
