"""Test images that one run answers right and others wrong, with what each says; and how often who is right.

Owns which images are shown: drawn by a seeded rule, never picked. Pixels come from the records, as they are stored there.
Invariant: the same runs, records and options give the same files.

The rule: the images that RIGHT answers right and each WRONG wrong are divided by the shot group of their class; each group gives
as equal a share of the number as it can, and the images of a group are drawn from its list, in list order, by a seeded generator.
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
from tools.reporting.together import group_of_each, known_counts, notes_on_checkpoints, notes_on_counts, same_images
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE
from train.watch.text import percent

NAME = "samples"
NUMBER = 16
CASES = (
    "all right",
    "only RIGHT right",
    "only RIGHT wrong",
    "all wrong",
    "other cases",
)  # the last with three runs or more
# Pixels of the PNG. An image is shrunk, or enlarged by a whole number, to fit into a square of _SIDE.
_SIDE, _TILE, _LINE, _HEAD_LINE, _GAP = 208, 264, 21, 22, 14
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
    answers: tuple[Answer, ...]
    "of RIGHT, then of each WRONG"
    pixels: np.ndarray
    "uint8 [H, W, 3], as stored"


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    titles: tuple[str, ...]
    "of RIGHT, then of each WRONG"
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
    runs: Sequence[Run],
    records: Records,
    *,
    number: int = NUMBER,
    seed: int = 0,
    groups: Sequence[str] = _GROUPS,
) -> Samples:
    """Draw `number` images, or as many as there are, that the first run answers right and all others wrong.

    records: those that the predictions were made of. groups: the shot groups to draw from. UserError where no image fits.
    """
    right, *wrong = runs
    rows = same_images(runs)
    labels = right.predictions.labels[rows[0]]
    check_records(right, records)
    counts = known_counts(runs)
    of_class = group_of_each(counts, len(right.predictions.class_names))
    if counts is None and set(groups) != set(_GROUPS):
        raise UserError("--groups: the training images of the classes are not known, so that there are no shot groups")
    of_image = np.array(of_class)[labels]
    hits = [run.predictions.answers[row] == labels for run, row in zip(runs, rows, strict=True)]
    wanted = hits[0] & ~np.any(hits[1:], axis=0)
    pools = [np.flatnonzero(wanted & (of_image == group)) for group in (groups if counts is not None else ("",))]
    if not sum(map(len, pools)):
        raise UserError(
            f"there is no image that {right.title} answers right and {_listed([run.title for run in wrong])} wrong"
            + (f" in the groups {', '.join(groups)}" if wanted.any() else "")
        )
    places = draw_places([len(pool) for pool in pools], number, seed)
    chosen = np.concatenate([pool[drawn] for pool, drawn in zip(pools, places, strict=True)])
    decoder = ReferenceBackend(records, 1, "first")
    shown = [_sample(runs, [int(row[i]) for row in rows], decoder) for i in chosen.tolist()]
    return Samples(
        titles=tuple(run.title for run in runs),
        class_names=[str(name) for name in right.predictions.class_names],
        groups=of_class,
        cases=_cases(hits, of_image),
        shown=shown,
        number=number,
        seed=seed,
        drawn_from=tuple(groups) if counts is not None else (),
        notes=[*notes_on_counts(runs), *notes_on_checkpoints(runs)],
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
            f"{records.path}: {run.title} was evaluated on other records; give those to tools/figures.py samples by "
            "--records FILE.beton"
        )


def draw_places(sizes: Sequence[int], number: int, seed: int) -> list[np.ndarray]:
    """For pools of these sizes the sorted places to take from each, as equally many as they allow, `number` in all."""
    taken = [0] * len(sizes)
    for _ in range(min(number, sum(sizes))):
        least = min((i for i, size in enumerate(sizes) if taken[i] < size), key=lambda i: taken[i])
        taken[least] += 1
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(size, take, replace=False)) for size, take in zip(sizes, taken, strict=True)]


def _sample(runs: Sequence[Run], rows: Sequence[int], decoder: ReferenceBackend) -> Sample:
    """rows: the place of the image in the predictions of each run."""
    found, row = runs[0].predictions, rows[0]
    position = int(found.positions[row])
    return Sample(
        position=position,
        name=str(found.names[row]),
        label=int(found.labels[row]),
        answers=tuple(_answer(run.predictions.logits[own]) for run, own in zip(runs, rows, strict=True)),
        pixels=decoder.pixels(position),
    )


def _answer(logits_C: np.ndarray) -> Answer:
    powers = np.exp(logits_C.astype(np.float64) - float(logits_C.max()))
    label = int(logits_C.argmax())
    return Answer(label=label, confidence=float(powers[label] / powers.sum()))


def _cases(hits: Sequence[np.ndarray], of_image: np.ndarray) -> dict[str, dict[str, int]]:
    """hits: bool [n] of each run."""
    right, others = hits[0], np.array(hits[1:])
    any_other, all_others = others.any(axis=0), others.all(axis=0)
    members: list[Any] = [right & all_others, right & ~any_other, ~right & all_others, ~right & ~any_other]
    if len(others) > 1:
        members.append(any_other & ~all_others)
    present = [group for group in _GROUPS if (of_image == group).any()]
    return {
        case: {"all": int(of.sum())} | {group: int((of & (of_image == group)).sum()) for group in present}
        for case, of in zip(CASES, members, strict=False)
    }


def _listed(titles: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


def draw(measured: Samples) -> Figure:
    """The images in rows, from many- to few-shot classes, each with its class and the answers below.

    Places are counted in pixels of the PNG, so that an image that fits is drawn pixel by pixel.
    """
    columns = min(len(measured.shown), max(_FEWEST_COLUMNS, round(len(measured.shown) ** 0.5)))
    lines = -(-len(measured.shown) // columns)
    head, tile = _head_height(measured), _SIDE + (1 + len(measured.titles)) * _LINE + _LINE
    width, height = max(columns, _FEWEST_COLUMNS) * _TILE + _GAP, head + lines * tile + _GAP
    figure = Figure(figsize=(width / DPI, height / DPI))
    _head(figure, measured)
    for i, sample in enumerate(measured.shown):
        left, bottom = _GAP + i % columns * _TILE, head + i // columns * tile + _SIDE
        image = Image.fromarray(sample.pixels)
        fitted = image.resize(fitted_size(*image.size), resample_for(image))
        across, down = fitted.size
        axes = figure.add_axes((left / width, 1 - bottom / height, across / width, down / height))
        axes.imshow(np.asarray(fitted), interpolation="none", aspect="auto")
        axes.set_axis_off()
        for line, (text, label) in enumerate(_caption(i + 1, sample, measured)):
            _write(figure, left, bottom + 4 + line * _LINE, text, measured.groups[label], _TILE - _GAP)
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


def _head_height(measured: Samples) -> int:
    return len(measured.titles) * _HEAD_LINE + 66


def _head(figure: Figure, measured: Samples) -> None:
    right, *wrong = measured.titles
    room = figure.get_size_inches()[0] * DPI - 2 * _GAP
    for line, text in enumerate([f"✓ right: {right}", *(f"✗ wrong: {title}" for title in wrong)]):
        _write(figure, _GAP, 8 + line * _HEAD_LINE, text, "", room, 10, bold=True)
    top = 12 + len(measured.titles) * _HEAD_LINE
    order = "the answers in this order" if wrong[1:] else "both answers"
    _write(figure, _GAP, top, f"below each image: its class, then {order} with their confidence", "", room)
    if any(measured.groups):
        words = {
            "many": f"many: more than {MANY_ABOVE} training images",
            "medium": f"medium: {FEW_BELOW} to {MANY_ABOVE}",
            "few": f"few: fewer than {FEW_BELOW}",
        }
        for left, (group, text) in zip((0, 340, 540), words.items(), strict=True):
            _write(figure, _GAP + left, top + 23, _marked(group) + text, group, room - left)


def _caption(number: int, sample: Sample, measured: Samples) -> list[tuple[str, int]]:
    """Lines of text, and the class that decides the colour of each."""

    def name(label: int) -> str:
        return _marked(measured.groups[label]) + measured.class_names[label]

    answers = [
        (f"{mark} {answer.confidence:.0%}  {name(answer.label)}", answer.label)
        for mark, answer in zip("✓" + "✗" * len(sample.answers[1:]), sample.answers, strict=True)
    ]
    return [(f"{number}. {name(sample.label)}", sample.label), *answers]


def _marked(group: str) -> str:
    return f"[{GROUP_LETTERS[group]}] " if group else ""


def _write(
    figure: Figure, left: int, top: int, text: str, group: str, room: float, size: float = 8, bold: bool = False
) -> None:
    """A line of text at a place in pixels, cut where it is wider than `room`."""
    width, height = (DPI * inches for inches in figure.get_size_inches())
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
    titles = [printable(title) for title in measured.titles]
    groups = list(next(iter(measured.cases.values())))
    total = sum(found["all"] for found in measured.cases.values())
    cases = [
        [case.replace("RIGHT", titles[0]), *(f"{found[group]:,}" for group in groups), percent(found["all"] / total)]
        for case, found in measured.cases.items()
    ]
    names = [printable(name) for name in measured.class_names]
    rows = [
        [str(i), printable(one.name), names[one.label], measured.groups[one.label] or "-"]
        + [f"{names[answer.label]}, {answer.confidence:.1%}" for answer in one.answers]
        for i, one in enumerate(measured.shown, 1)
    ]
    return [
        Table("Test images by who answers them right", ("", *groups, "share of all"), cases),
        Table("The images of the picture", ("number", "image", "class", "group", *titles), rows),
    ]


def notes(measured: Samples) -> list[str]:
    """How to read picture and tables."""
    right, *wrong = map(printable, measured.titles)
    of_groups = f", as equal a number as there are from each shot group ({', '.join(measured.drawn_from)})"
    found = [
        f"images: of the {measured.cases[CASES[1]]['all']:,} that {right} answers right and {_listed(wrong)} wrong, "
        f"{len(measured.shown)} are drawn by a generator with seed {measured.seed}"
        f"{of_groups if measured.drawn_from else ''}; none is picked by hand",
        "percentages beside answers: softmax of the raw logits",
        "pixels: as stored in the records; small images are enlarged without smoothing",
    ]
    if len(measured.shown) < measured.number:
        found.append(f"{measured.number} images were asked for; there are no more")
    return [*found, *map(printable, measured.notes)]


def as_json(measured: Samples) -> dict[str, Any]:
    return {
        "right": measured.titles[0],
        "wrong": list(measured.titles[1:]),
        "seed": measured.seed,
        "drawn_from": list(measured.drawn_from),
        "cases": measured.cases,
        "images": [
            {
                "position": one.position,
                "name": one.name,
                "class": measured.class_names[one.label],
                "group": measured.groups[one.label],
                "answers": {
                    title: asdict(answer) | {"class": measured.class_names[answer.label]}
                    for title, answer in zip(measured.titles, one.answers, strict=True)
                },
            }
            for one in measured.shown
        ],
        "notes": measured.notes,
    }


def page(measured: Samples) -> str:
    """The tables as Markdown, with the picture."""
    right, *wrong = map(printable, measured.titles)
    return markdown(
        f"What {right} answers right and {_listed(wrong)} wrong", tables(measured), notes(measured), [f"{NAME}.png"]
    )


def add_command(commands: Any, common: Any) -> None:
    sub = commands.add_parser(NAME, parents=[common], help="test images that one run answers right and others wrong")
    sub.add_argument("right", metavar="RIGHT", help="name, folder or file of predictions of the run that is right")
    sub.add_argument("wrong", nargs="+", metavar="WRONG", help="of those that are wrong, all of them")
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
    runs = open_runs((args.right, *args.wrong), args.settings, args.split)
    groups = [group for group in _GROUPS if group in args.groups]
    records = find_records(runs, args.records, args.settings, args.split)
    measured = measure(runs, records, number=args.number, seed=args.seed, groups=groups)
    paths = write_all(args.out, NAME, page(measured), as_json(measured), draw(measured))
    print(f"written: {paths[0]}, {', '.join(one.name for one in paths[1:])}")


def find_records(runs: Sequence[Run], given: Path | None, settings: Sequence[str], split: str) -> Records:
    """The records of the split: as given, as a setting says, or those of the first run that has any."""
    named = [setting.partition("=")[2] for setting in settings if setting.startswith(f"data.{split}=")]
    if given is not None or named:
        return Records(given if given is not None else Path(named[-1]).expanduser())
    found = [run.records for run in runs if run.records is not None]
    if not found:
        raise UserError(
            f"files of predictions hold no images; give the records of data.{split} to tools/figures.py samples by "
            "--records FILE.beton"
        )
    return found[0]
