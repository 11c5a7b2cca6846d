"""Writes record files with a progress bar, and prints what was written. Invariant: all files come from the same split."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipelines.errors import UserError, printable
from pipelines.files import Held, fsync_folder, lock, write_bytes_atomic
from pipelines.records.encoding import Note, Stored
from pipelines.records.reader import Records
from pipelines.records.workers import Sample, Unreadable
from pipelines.records.writing import UnreadableImages, check_output, write_records
from tools.conversion.dry_run import describe
from tools.conversion.splits import PARTS, split_samples
from tools.conversion.storage import encoding_of
from train.watch.progress import progress_bar
from train.watch.text import megabytes

SHOWN = 20  # unreadable images listed one by one


def unreadable_list(out: Path) -> Path:
    """The file beside a record file that lists its unreadable images, where they are more than are shown."""
    return out.with_name(f"{out.name}.unreadable.txt")


class Notes:
    """What the user should know of images that were stored: one line for each kind, with the first image as its example."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[str, Stored]] = {}
        self.all: list[Note] = []

    def add(self, name: str, stored: Stored) -> None:
        for note in stored.notes:
            self.first.setdefault(note.kind, (printable(name), stored))
            self.all.append(note)

    def show(self, grey_bits: int) -> None:
        for kind, (name, stored) in self.first.items():
            used = [note.bits for note in self.all if note.kind == kind]
            images, bits = f"{len(used)} images", max(used)
            size = f"{stored.width}x{stored.height} as {stored.stored_width}x{stored.stored_height}"
            text = {
                "shrunk": f"{images} do not fit a record at their size and are stored smaller, such as {name} ({size})",
                "dark": f"{images} of 16-bit grey use at most {bits} of their bits, such as {name}, and are stored nearly "
                f"black; --grey-bits {max(8, bits)} scales them",
                "clipped": f"{images} of 16-bit grey use up to {bits} bits, such as {name}; what --grey-bits {grey_bits} "
                "cannot hold is white",
                "dark colour": f"{images} of 16-bit colour, or of grey with alpha, use at most {bits} of their bits, such as "
                f"{name}, and are stored nearly black; save them with 8 bits, as --grey-bits does not scale them",
            }
            print(f"note: {text[kind]}", file=sys.stderr)


def convert(
    out: Path,
    samples: Sequence[Sample],
    class_names: Sequence[str],
    args: argparse.Namespace,
    *,
    into: Path | None = None,
    **more: Any,
) -> None:
    """Write one record file, whose place was checked, with a progress bar, and print what was written.

    into: where it is written instead, to be moved to `out` and reported by the caller.
    """
    forget_unreadable(out)
    notes = Notes()
    try:
        with progress_bar(out.name, len(samples)) as progress:
            skipped = write_records(
                into or out,
                samples,
                class_names,
                workers=args.workers,
                force=args.force,
                progress=progress,
                noted=notes.add,
                **more,
            )
    except UnreadableImages as error:
        list_unreadable(error.images, unreadable_list(out))
        raise
    list_unreadable(skipped, unreadable_list(out))
    notes.show(getattr(args, "grey_bits", 16))
    if into is None:
        report_new(out)


def refuse(missing: Sequence[Unreadable], samples: int, args: argparse.Namespace) -> NoReturn:
    """Refuse a conversion some of whose images are known to be missing, before it reads the others."""
    if not args.dry_run:
        forget_unreadable(args.out)
        list_unreadable(missing, unreadable_list(args.out))
    raise UnreadableImages(missing, samples)


def forget_unreadable(out: Path) -> None:
    """Remove the list that an earlier run has left for the same record file."""
    if os.path.isfile(unreadable_list(out)):
        remove(unreadable_list(out))


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be overwritten: {error.strerror}") from error


def report_new(out: Path) -> None:
    """Print one line about a file that was converted."""
    records = Records(out)
    skipped = records.manifest["made"]["skipped"]
    report(records, f", {len(skipped)} unreadable images left out" if skipped else "")


def report(records: Records, more: str = "") -> None:
    """Print one line about a new file, and a note on classes without images."""
    path, size = printable(str(records.path)), megabytes(records.data.size)
    print(f"{path}: {len(records)} images, {records.num_classes} classes, {size}, digest {records.digest}{more}")
    empty = int((records.class_counts == 0).sum())
    if empty:
        print(f"note: {empty} of {records.num_classes} classes have no image in {records.path}", file=sys.stderr)


def list_unreadable(images: Sequence[Unreadable], path: Path) -> None:
    """Print the first images and, if there are more, write all of them to `path`, one a line."""
    lines = [printable(f"{image.name}: {image.reason}") for image in images]
    for line in lines[:SHOWN]:
        print(f"unreadable: {line}", file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"unreadable: and {len(lines) - SHOWN} more", file=sys.stderr)
        try:
            write_bytes_atomic(path, "".join(f"{line}\n" for line in lines).encode())
            print(f"note: {printable(str(path))} lists all {len(lines)}", file=sys.stderr)
        except OSError as error:
            print(f"note: {printable(str(path))}, a list of all, cannot be written: {error.strerror}", file=sys.stderr)


def convert_images(
    out: Path,
    samples: list[Sample],
    class_names: Sequence[str],
    args: argparse.Namespace,
    *,
    part: str = "train",
    into: Path | None = None,
    **options: Any,
) -> None:
    """Write or, with --dry-run, describe one record file. into: as in convert."""
    options |= {"strip_prefix": args.strip_prefix, "recipe": args.recipe}
    encoding = encoding_of(args, part)
    if args.dry_run:
        describe(out, samples, class_names, encoding, args.skip_bad)
        return
    more = {"kind": args.command, "options": options, "encoding": encoding, "skip_bad": args.skip_bad}
    convert(out, samples, class_names, args, into=into, **more)


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
    split = {"val": args.val, "test": args.test, "split_seed": args.split_seed}
    with contextlib.nullcontext() if args.dry_run else _together(args.out, outputs.values()) as folder:
        for part, out in outputs.items():
            into = folder and folder / out.name
            convert_images(out, parts[part], class_names, args, part=part, into=into, split=part, **split)
    if not args.dry_run:
        for out in outputs.values():
            report_new(out)


@contextlib.contextmanager
def _together(folder: Path, outputs: Collection[Path]) -> Iterator[Path]:
    """A hidden folder in `folder` for parts, which take their places once all of them are there.

    Parts of an earlier split stay until then; those of two splits never lie side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / ".parts.partial"
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            # Some file systems cannot lock folders.
            with contextlib.suppress(OSError):
                lock(handle)
        except Held:
            raise UserError(f"{folder}: another conversion is writing parts in this folder; wait for its end") from None
        shutil.rmtree(hidden, ignore_errors=True)  # a killed run left it
        try:
            yield hidden
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        try:
            _exchange(hidden, folder / ".parts.old", outputs)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        fsync_folder(folder)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path, outputs: Collection[Path]) -> None:
    """Put the parts in the folder `new` into their places; all old ones stay or return where one of them cannot be moved.

    All old ones go before the first new one comes, as this process may be killed between two renames.
    """
    shutil.rmtree(old, ignore_errors=True)
    came: list[Path] = []
    out = old
    try:
        old.mkdir()
        for out in outputs:
            if os.path.lexists(out):
                os.rename(out, old / out.name)
        for out in outputs:
            os.rename(new / out.name, out)
            came.append(out)
    except OSError as error:
        for place in came:
            os.rename(place, new / place.name)
        for place in outputs:
            if os.path.lexists(old / place.name):
                os.rename(old / place.name, place)
        raise UserError(f"{out} cannot be overwritten: {error.strerror}; the old files are still there") from error
    finally:
        with contextlib.suppress(OSError):  # a folder of which something could not be put back stays
            shutil.rmtree(old) if len(came) == len(outputs) else old.rmdir()
