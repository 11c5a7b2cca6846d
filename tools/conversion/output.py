"""Writes record files with a progress bar, and prints what was written. Invariant: all files come from the same split."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.writing import Sample, UnreadableImages, check_output, write_records
from tools.command_line import progress_bar
from tools.conversion.splits import PARTS, split_samples
from tools.conversion.storage import encoding_of
from train.run.endings import one_line
from train.watch.text import megabytes

SHOWN = 20  # unreadable images listed one by one


def convert(
    out: Path, samples: Sequence[Sample], class_names: Sequence[str], args: argparse.Namespace, **more: Any
) -> None:
    """Write one record file with a progress bar, and print what was written."""
    try:
        with progress_bar(out.name, len(samples)) as progress:
            skipped = write_records(
                out, samples, class_names, workers=args.workers, force=args.force, progress=progress, **more
            )
    except UnreadableImages as error:
        list_unreadable(error.images)
        raise
    list_unreadable(skipped)
    report(Records(out), f", {len(skipped)} unreadable images left out" if skipped else "")


def report(records: Records, more: str = "") -> None:
    """Print one line about a new file, and a note on classes without images."""
    path, size = one_line(str(records.path)), megabytes(records.data.size)
    print(f"{path}: {len(records)} images, {records.num_classes} classes, {size}, digest {records.digest}{more}")
    empty = int((records.class_counts == 0).sum())
    if empty:
        print(f"note: {empty} of {records.num_classes} classes have no image in {records.path}", file=sys.stderr)


def list_unreadable(images: Sequence[Any]) -> None:
    for image in images[:SHOWN]:
        print(f"unreadable: {one_line(f'{image.name}: {image.reason}')}", file=sys.stderr)
    if len(images) > SHOWN:
        print(f"unreadable: and {len(images) - SHOWN} more", file=sys.stderr)


def convert_images(
    out: Path,
    samples: list[Sample],
    class_names: Sequence[str],
    args: argparse.Namespace,
    *,
    part: str = "train",
    **options: Any,
) -> None:
    options |= {"strip_prefix": args.strip_prefix, "recipe": args.recipe}
    encoding = encoding_of(args, part)
    kind, skip_bad = args.command, args.skip_bad
    convert(out, samples, class_names, args, kind=kind, options=options, encoding=encoding, skip_bad=skip_bad)


def part_outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The record file of each part that --val and --test ask for, after checking that it may be written."""
    if args.val + args.test >= 1:
        raise UserError(f"--val {args.val:g} and --test {args.test:g} leave nothing to train; give less than 1 in all")
    if args.out.suffix == ".beton" or args.out.is_file():
        raise UserError(f"--out {args.out}: with --val or --test give a folder, for train.beton and the others")
    wanted = {"train": True, "val": args.val > 0, "test": args.test > 0}
    outputs = {part: args.out / f"{part}.beton" for part in PARTS if wanted[part]}
    for part in PARTS:
        if part in outputs:
            check_output(outputs[part], args.force)
        elif (args.out / f"{part}.beton").exists():
            raise UserError(f"{args.out / part}.beton exists, of another split; remove it, or give --{part} a share")
    return outputs


def convert_parts(
    outputs: dict[str, Path], samples: list[Sample], class_names: Sequence[str], args: argparse.Namespace
) -> None:
    """Write train.beton and the other parts, from one split."""
    parts = split_samples(samples, args.val, args.test, args.split_seed)
    for part in outputs:
        if not parts[part]:
            largest = int(np.bincount([sample.label for sample in samples]).max())
            share = getattr(args, part)
            raise UserError(f"--{part} {share:g} of classes of at most {largest} images is none; give a larger share")
    for out in outputs.values():  # an interrupted run must not leave parts of two splits side by side
        try:
            out.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{out} cannot be overwritten: {error.strerror}") from error
    split = {"val": args.val, "test": args.test, "split_seed": args.split_seed}
    for part, out in outputs.items():
        convert_images(out, parts[part], class_names, args, part=part, split=part, **split)
