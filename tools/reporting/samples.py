"""Test images that one run answers right and another wrong, with what both say; and how often each of the four cases occurs.

Owns which images are shown: drawn by a seeded rule, never picked. Pixels come from the records, as they are stored there.
Invariant: the same runs, records and options give the same files.

The rule: the images that RIGHT answers right and WRONG wrong are divided by the shot group of their class; each group gives as
equal a share of the number as it can, and the images of a group are drawn from its list, in list order, by a seeded generator.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pipelines.backends.reference import ReferenceBackend
from pipelines.errors import UserError, printable
from pipelines.records.reader import Records
from tools.command_line import path, whole
from tools.reporting.output import check_place, write_all
from tools.reporting.runs import Run, open_runs
from tools.reporting.style import DPI, GROUP_COLOURS, GROUP_LETTERS, fitting, shown, verbatim
from tools.reporting.tables import Table, markdown
from tools.reporting.together import group_of_each, known_counts, notes_on_counts, same_images
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE
from train.watch.text import percent

NAME = "samples"
NUMBER = 16
CASES = ("both right", "only RIGHT", "only WRONG", "both wrong")  # answer it right
# Pixels of the PNG. An image is shrunk, or enlarged by a whole number, to fit into a square of _SIDE.
_SIDE, _TILE, _TILE_HEIGHT, _LINE, _GAP, _HEAD = 208, 264, 292, 21, 14, 110
_FEWEST_COLUMNS = 4
_GROUPS = ("many", "medium", "few")


@dataclass(frozen=True, kw_only=True)
class Answer:
    label: int
    confidence: float
    "softmax of the raw logits"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    position: int
    "in the record file"
    name: str
    label: int
    right: Answer
    wrong: Answer
    pixels: np.ndarray
    "uint8 [H, W, 3], as stored"


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    titles: tuple[str, str]
    "of RIGHT and WRONG"
    class_names: list[str]
    groups: list[str]
    "of each class: many, medium, few, or empty: not known"
    cases: dict[str, dict[str, int]]
    "number of test images of each case (CASES): all, and of each shot group that the classes have"
    shown: list[Sample]
    number: int
    "asked for"
    seed: int
    drawn_from: tuple[str, ...]
    "the shot groups"
    notes: list[str]


def measure(
    right: Run,
    wrong: Run,
    records: Records,
    *,
    number: int = NUMBER,
    seed: int = 0,
    groups: Sequence[str] = _GROUPS,
) -> Samples:
    """Draw `number` images, or as many as there are; records: those that the predictions were made of.

    groups: the shot groups to draw from. UserError where there is no such image.
    """
    runs = (right, wrong)
    rows = same_images(runs)
    labels = right.predictions.labels[rows[0]]
    check_records(right, records)
    counts = known_counts(runs)
    of_class = group_of_each(counts, len(right.predictions.class_names))
    if counts is None and set(groups) != set(_GROUPS):
        raise UserError("--groups: the training images of the classes are not known, so that there are no shot groups")
    of_image = np.array(of_class)[labels]
    hits = [run.predictions.answers[row] == labels for run, row in zip(runs, rows, strict=True)]
    wanted = hits[0] & ~hits[1]
    pools = [np.flatnonzero(wanted & (of_image == group)) for group in (groups if counts is not None else ("",))]
    if not sum(map(len, pools)):
        raise UserError(
            f"there is no image that {right.title} answers right and {wrong.title} wrong"
            + (f" in the groups {', '.join(groups)}" if wanted.any() else "")
        )
    places = draw_places([len(pool) for pool in pools], number, seed)
    chosen = np.concatenate([pool[drawn] for pool, drawn in zip(pools, places, strict=True)])
    decoder = ReferenceBackend(records, 1, "first")
    shown = [_sample(right, wrong, int(rows[0][i]), int(rows[1][i]), decoder) for i in chosen.tolist()]
    return Samples(
        titles=(right.title, wrong.title),
        class_names=[str(name) for name in right.predictions.class_names],
        groups=of_class,
        cases=_cases(hits[0], hits[1], of_image),
        shown=shown,
        number=number,
        seed=seed,
        drawn_from=tuple(groups) if counts is not None else (),
        notes=notes_on_counts(runs),
    )


def check_records(run: Run, records: Records) -> None:
    """UserError unless the predictions can have been made of these records."""
    found = run.predictions
    if found.records:
        same = found.records == records.digest
    else:
        same = len(found.labels) == len(records) and 0 <= found.positions.min() <= found.positions.max() < len(records)
        same = same and np.array_equal(records.labels[found.positions], found.labels)
    if not same:
        raise UserError(
            f"{records.path}: {run.title} was evaluated on other records; give those by --records FILE.beton"
        )


def draw_places(sizes: Sequence[int], number: int, seed: int) -> list[np.ndarray]:
    """For pools of these sizes the sorted places to take from each, as equally many as they allow, `number` in all."""
    taken = [0] * len(sizes)
    for _ in range(min(number, sum(sizes))):
        least = min((i for i, size in enumerate(sizes) if taken[i] < size), key=lambda i: taken[i])
        taken[least] += 1
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(size, take, replace=False)) for size, take in zip(sizes, taken, strict=True)]


def _sample(right: Run, wrong: Run, row: int, other: int, decoder: ReferenceBackend) -> Sample:
    found = right.predictions
    position = int(found.positions[row])
    return Sample(
        position=position,
        name=str(found.names[row]),
        label=int(found.labels[row]),
        right=_answer(found.logits[row]),
        wrong=_answer(wrong.predictions.logits[other]),
        pixels=decoder.pixels(position),
    )


def _answer(logits_C: np.ndarray) -> Answer:
    powers = np.exp(logits_C.astype(np.float64) - float(logits_C.max()))
    label = int(logits_C.argmax())
    return Answer(label=label, confidence=float(powers[label] / powers.sum()))


def _cases(right: np.ndarray, wrong: np.ndarray, of_image: np.ndarray) -> dict[str, dict[str, int]]:
    members = (right & wrong, right & ~wrong, ~right & wrong, ~right & ~wrong)
    present = [group for group in _GROUPS if (of_image == group).any()]
    return {
        case: {"all": int(of.sum())} | {group: int((of & (of_image == group)).sum()) for group in present}
        for case, of in zip(CASES, members, strict=True)
    }


def draw(measured: Samples) -> Figure:
    """The images in rows, from many- to few-shot classes, each with its class and the two answers below.

    Places are counted in pixels of the PNG, so that an image that fits is drawn pixel by pixel.
    """
    columns = min(len(measured.shown), max(_FEWEST_COLUMNS, round(len(measured.shown) ** 0.5)))
    lines = -(-len(measured.shown) // columns)
    width, height = max(columns, _FEWEST_COLUMNS) * _TILE + _GAP, _HEAD + lines * _TILE_HEIGHT + _GAP
    figure = Figure(figsize=(width / DPI, height / DPI))
    _head(figure, measured)
    for i, sample in enumerate(measured.shown):
        left, bottom = _GAP + i % columns * _TILE, _HEAD + i // columns * _TILE_HEIGHT + _SIDE
        image = Image.fromarray(sample.pixels)
        fitted = image.resize(fitted_size(*image.size), resample_for(image))
        across, down = fitted.size
        axes = figure.add_axes((left / width, 1 - bottom / height, across / width, down / height))
        axes.imshow(np.asarray(fitted), interpolation="none", aspect="auto")
        axes.set_axis_off()
        for line, (text, label) in enumerate(_caption(i + 1, sample, measured)):
            _write(figure, left, bottom + 4 + line * _LINE, text, measured.groups[label])
    verbatim(figure)
    return figure


def fitted_size(width: int, height: int) -> tuple[int, int]:
    """The size in which an image is shown: enlarged by the largest whole number that fits, or shrunk until it fits."""
    longest = max(width, height)
    if longest <= _SIDE:
        return width * (_SIDE // longest), height * (_SIDE // longest)
    return max(1, round(width * _SIDE / longest)), max(1, round(height * _SIDE / longest))


def resample_for(image: Image.Image) -> Image.Resampling:
    return Image.Resampling.NEAREST if max(image.size) <= _SIDE else Image.Resampling.LANCZOS


def _head(figure: Figure, measured: Samples) -> None:
    right, wrong = measured.titles
    _write(figure, _GAP, 8, f"✓ right: {right}", "", 10, bold=True)
    _write(figure, _GAP, 30, f"✗ wrong: {wrong}", "", 10, bold=True)
    _write(figure, _GAP, 56, "below each image: its class, then both answers with their confidence", "")
    if any(measured.groups):
        words = {
            "many": f"many: more than {MANY_ABOVE} training images",
            "medium": f"medium: {FEW_BELOW} to {MANY_ABOVE}",
            "few": f"few: fewer than {FEW_BELOW}",
        }
        for left, (group, text) in zip((0, 340, 540), words.items(), strict=True):
            _write(figure, _GAP + left, 79, _marked(group) + text, group)


def _caption(number: int, sample: Sample, measured: Samples) -> list[tuple[str, int]]:
    """Lines of text, and the class that decides the colour of each."""
    names = [
        _marked(measured.groups[label]) + measured.class_names[label]
        for label in (sample.label, sample.right.label, sample.wrong.label)
    ]
    return [
        (f"{number}. {names[0]}", sample.label),
        (f"✓ {sample.right.confidence:.0%}  {names[1]}", sample.right.label),
        (f"✗ {sample.wrong.confidence:.0%}  {names[2]}", sample.wrong.label),
    ]


def _marked(group: str) -> str:
    return f"[{GROUP_LETTERS[group]}] " if group else ""


def _write(figure: Figure, left: int, top: int, text: str, group: str, size: float = 8, bold: bool = False) -> None:
    """A line of text at a place in pixels, cut where the tile or, in the head, the page ends."""
    width, height = (DPI * inches for inches in figure.get_size_inches())
    room = width - left - _GAP if top < _HEAD else _TILE - _GAP
    figure.text(
        left / width,
        1 - top / height,
        fitting(shown(text), room * 72 / DPI * (0.88 if bold else 1), size),  # bold letters are wider by an eighth
        fontsize=size,
        fontweight="bold" if bold else "normal",
        color=GROUP_COLOURS.get(group, "black"),
        va="top",
    )


def tables(measured: Samples) -> list[Table]:
    """How often each case occurs, and the images of the picture."""
    right, wrong = (printable(title) for title in measured.titles)
    groups = list(next(iter(measured.cases.values())))
    total = sum(found["all"] for found in measured.cases.values())
    words = ("both right", f"only {right} right", f"only {wrong} right", "both wrong")
    cases = [
        [words[i], *(f"{found[group]:,}" for group in groups), percent(found["all"] / total)]
        for i, found in enumerate(measured.cases.values())
    ]
    names = [printable(name) for name in measured.class_names]
    rows = [
        [str(i), printable(one.name), names[one.label], measured.groups[one.label] or "-"]
        + [f"{names[answer.label]}, {answer.confidence:.1%}" for answer in (one.right, one.wrong)]
        for i, one in enumerate(measured.shown, 1)
    ]
    return [
        Table("Test images by who answers them right", ("", *groups, "share of all"), cases),
        Table("The images of the picture", ("number", "image", "class", "group", right, wrong), rows),
    ]


def notes(measured: Samples) -> list[str]:
    """How to read picture and tables."""
    found = [
        f"images: of the {measured.cases[CASES[1]]['all']:,} that {printable(measured.titles[0])} answers right and "
        f"{printable(measured.titles[1])} wrong, {len(measured.shown)} are drawn by a generator with seed {measured.seed}"
        + (
            f", as equal a number as there are from each shot group ({', '.join(measured.drawn_from)}); none is picked by hand"
            if measured.drawn_from
            else "; none is picked by hand"
        ),
        "percentages beside answers: softmax of the raw logits",
        "pixels: as stored in the records; small images are enlarged without smoothing",
    ]
    if len(measured.shown) < measured.number:
        found.append(f"{measured.number} images were asked for; there are no more")
    return found + measured.notes


def as_json(measured: Samples) -> dict[str, Any]:
    return {
        "right": measured.titles[0],
        "wrong": measured.titles[1],
        "seed": measured.seed,
        "drawn_from": list(measured.drawn_from),
        "cases": measured.cases,
        "images": [
            {
                "position": one.position,
                "name": one.name,
                "class": measured.class_names[one.label],
                "group": measured.groups[one.label],
                "right": asdict(one.right) | {"class": measured.class_names[one.right.label]},
                "wrong": asdict(one.wrong) | {"class": measured.class_names[one.wrong.label]},
            }
            for one in measured.shown
        ],
        "notes": measured.notes,
    }


def page(measured: Samples) -> str:
    """The tables as Markdown, with the picture."""
    right, wrong = map(printable, measured.titles)
    return markdown(f"What {right} answers right and {wrong} wrong", tables(measured), notes(measured), [f"{NAME}.png"])


def add_command(commands: Any, common: Any) -> None:
    sub = commands.add_parser(NAME, parents=[common], help="test images that one run answers right and another wrong")
    sub.add_argument("right", metavar="RIGHT", help="name, folder or file of predictions of the run that is right")
    sub.add_argument("wrong", metavar="WRONG", help="of the one that is wrong")
    sub.add_argument("--number", type=whole(1, 100), default=NUMBER, metavar="N", help="images (default: %(default)s)")
    sub.add_argument("--seed", type=whole(0), default=0, help="of the draw (default: 0)")
    sub.add_argument(
        "--groups",
        nargs="+",
        choices=_GROUPS,
        default=_GROUPS,
        metavar="GROUP",
        help="shot groups: many medium few (default: all)",
    )
    sub.add_argument("--records", type=path, metavar="FILE", help="the record file, where the runs do not name it")
    sub.set_defaults(run=run)


def run(args: Any) -> None:
    check_place(args.out, NAME)  # missing packages and places are told before the work
    right, wrong = open_runs((args.right, args.wrong), args.settings, args.split)
    groups = [group for group in _GROUPS if group in args.groups]
    records = find_records((right, wrong), args.records, args.settings, args.split)
    measured = measure(right, wrong, records, number=args.number, seed=args.seed, groups=groups)
    paths = write_all(args.out, NAME, page(measured), as_json(measured), draw(measured))
    print(f"written: {paths[0]}, {', '.join(one.name for one in paths[1:])}")


def find_records(runs: Sequence[Run], given: Path | None, settings: Sequence[str], split: str) -> Records:
    """The records of the split: as given, as a setting says, or those of the first run that has any."""
    named = [setting.partition("=")[2] for setting in settings if setting.startswith(f"data.{split}=")]
    if given is not None or named:
        return Records(given if given is not None else Path(named[-1]).expanduser())
    found = [run.records for run in runs if run.records is not None]
    if not found:
        raise UserError(f"files of predictions hold no images; add --records FILE.beton, the records of data.{split}")
    return found[0]
