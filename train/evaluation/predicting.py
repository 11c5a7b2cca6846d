"""Predictions for images without labels: the work of train/predict.py.

Owns how the images of all processes come into one table, what becomes of unreadable ones, and which correction a stated class
distribution means. Invariant: every image is in the table or in the list of unreadable ones, in their order.
Shapes: C classes.
"""

import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipelines.errors import UserError, printable
from pipelines.files import write_bytes_atomic
from pipelines.loader import ahead_of
from pipelines.records.encoding import Note
from pipelines.records.workers import Unreadable
from train.config import Config
from train.evaluation.compensation import logit_shift, read_counts, require_classes, rule_of_training
from train.evaluation.ranking import Ranked, rank, table
from train.evaluation.subject import Subject, evaluation_loader
from train.evaluation.unlabelled import Images
from train.networks.probe import explained
from train.watch.progress import progress_bar
from train.watch.text import counted

_SHOWN = 20  # unreadable images that are listed on the screen

Answered = tuple[list[str], Ranked]


def prior_shift(prior: str | None, config: Config, subject: Subject) -> np.ndarray:
    """What is added to the logits, float64 [C], for images of the class distribution `prior`, as in PredictConfig.

    config: with the settings of the training, which decide what the logits hold. UserError where the correction is not defined.
    """
    train_counts, origin = subject.train_counts, f"run {subject.folder}"
    if prior is None:
        return np.zeros(len(train_counts))
    rule = rule_of_training(config.distill, config.data.sampling)
    if rule is None:
        raise UserError(
            f"prior={prior}: {origin} was trained by {config.distill.method} (margins, class weights, smoothed labels or a "
            "teacher's targets), after which it is not known which class distribution its logits hold; leave prior out"
        )
    named = {"uniform": np.ones(len(train_counts), np.int64), "train": train_counts}
    if prior not in named and not Path(prior).is_file():
        allowed = "uniform, train, records (.beton) or a text file with the number of images of a class in each line"
        raise UserError(f"prior={prior}: {'a folder' if Path(prior).is_dir() else 'no such file'}; give {allowed}")
    counts = named[prior] if prior in named else read_counts(Path(prior), "prior=")
    if len(counts) != len(train_counts):
        raise UserError(f"prior={prior} has {len(counts)} classes, {origin} has {len(train_counts)}")
    if prior not in named:
        require_classes(Path(prior), "prior=", subject.class_names)
    try:
        return logit_shift(rule, train_counts, counts)
    except ValueError as error:
        raise UserError(f"prior={prior}, training images of {origin}: {error}") from error


def predict(
    subject: Subject,
    images: Images,
    config: Config,
    accelerator: Accelerator,
    shift: np.ndarray,
    top: int,
    out: Path,
    given: str,
) -> str:
    """Write the table `out`, and beside it the list of unreadable images if there are any; a line that says so.

    shift: as of `prior_shift`. given: the images, as the user named them. All processes call it; the first one writes. UserError
    where no image can be read.
    """
    top = min(top, len(subject.class_names))
    writes = accelerator.is_main_process
    unreadable: list[Unreadable] = []
    noted: list[tuple[str, Note]] = []
    network = accelerator.unwrap_model(subject.network).eval()
    parts = ahead_of(_walk(images, accelerator), 1)  # files are read while the network works
    with (
        closing(parts),
        progress_bar("predicting", len(images)) if writes else nullcontext(_ignored) as count,
        table(out, subject.class_names, top) if writes else nullcontext(_ignored) as write,
    ):
        for part in parts:
            own = 0
            answers: list[Answered] = []
            if part.records is not None:
                loader, _ = evaluation_loader(subject, part.records, config, accelerator)
                names = [part.records.name(int(position)) for position in part.positions]
                with explained(subject.spec, loader.recipe.size, f"run {subject.folder}"):
                    found = rank(network, loader, part.positions, config.eval.batch, shift, top, count, given)
                answers, own = [(names, found)], len(names)
            mine = [(answers, part.unreadable, part.noted)]
            for theirs, bad, notes in gather_object(mine):  # of all processes, in their order
                unreadable += bad
                noted += notes
                for names, found in theirs:
                    write(names, found)
            count(part.size - own)
        if len(unreadable) == len(images):
            raise UserError(f"none of the {len(images)} images can be read, first {_line(unreadable[0])}")
    if not writes:
        return ""
    _tell(noted)
    return _told(out, len(images), unreadable)


def _walk(images: Images, accelerator: Accelerator) -> Any:
    yield from images.parts(accelerator.process_index, accelerator.num_processes)


def _ignored(*_: Any) -> None:
    """What the first process does with this, the others do not."""


def _line(image: Unreadable) -> str:
    return printable(f"{image.name}: {image.reason}")


def _tell(noted: Sequence[tuple[str, Note]]) -> None:
    """One line on the images of 16 bits that the network did not see as a person would, for each kind."""
    words = {
        "dark": "of 16-bit grey, of which at most {bits} bits are used, such as {name}, came to the network nearly black: its "
        "training images were not converted with --grey-bits {bits}",
        "clipped": "of 16-bit grey, of which up to {bits} bits are used, such as {name}, came to the network partly white: its "
        "training images were converted with fewer --grey-bits",
        "dark colour": "of 16-bit colour, or of grey with alpha, of which at most {bits} bits are used, such as {name}, came to "
        "the network nearly black: save such images with 8 bits",
    }
    for kind, text in words.items():
        if of_kind := [(name, note.bits) for name, note in noted if note.kind == kind]:
            told = text.format(bits=max(8, *(bits for _, bits in of_kind)), name=printable(of_kind[0][0]))
            print(f"note: {counted(len(of_kind), 'image')} {told}", file=sys.stderr)


def _told(out: Path, images: int, unreadable: list[Unreadable]) -> str:
    """List the unreadable images, on the screen and beside the table, and give the last line."""
    beside = out.with_name(f"{out.name}.unreadable.txt")
    beside.unlink(missing_ok=True)  # of an earlier prediction
    said = f"{out}: {counted(images - len(unreadable), 'image')}"
    if not unreadable:
        return said
    for image in unreadable[:_SHOWN]:
        print(f"unreadable: {_line(image)}", file=sys.stderr)
    write_bytes_atomic(beside, "".join(f"{_line(image)}\n" for image in unreadable).encode())
    return f"{said}; {len(unreadable):,} cannot be read and are left out, listed in {beside}"
