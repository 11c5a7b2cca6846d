"""Shows what a record file holds, checks it, and copies it without damaged images. The file itself is not changed."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cores import usable_cores
from pipelines.errors import UserError
from pipelines.records.encoding import Encoding
from pipelines.records.reader import Records
from pipelines.records.writing import check_output
from tools.conversion.output import report
from tools.conversion.repair import Damaged, find_damaged, rebuild
from train.watch.progress import progress_bar
from train.watch.text import megabytes


def size_range(widths: np.ndarray, heights: np.ndarray) -> str:
    """Smallest and largest width and height, in pixels."""
    low, high = f"{widths.min()}x{heights.min()}", f"{widths.max()}x{heights.max()}"
    if low == high:
        return low
    return f"{low} to {high}, median {np.median(widths):.0f}x{np.median(heights):.0f}"


def stored_as(records: Records, encoding: dict[str, Any] | None) -> str:
    if encoding is None:
        return "raw pixels" if records.raw.all() else "JPEG"
    return f"JPEG, {Encoding(**encoding)}; quality {encoding['quality']} where encoded anew"


def info_rows(records: Records) -> Iterator[tuple[str, str]]:
    counts, made = records.class_counts, dict(records.manifest["made"])
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    yield "samples", str(len(records))
    yield "classes", str(records.num_classes)
    yield "largest class", f"{counts[largest]} ({records.class_names[largest]})"
    yield "smallest class", f"{counts[smallest]} ({records.class_names[smallest]})"
    yield "stored as", stored_as(records, made.pop("encoding", None))
    if not records.raw.all():
        yield (
            "decoded in part",
            f"{records.manifest.get('restarts', 0)} of {len(records)} images: those with restart markers",
        )
    size = int(records.sizes.sum())
    yield "images", f"{megabytes(size)} of {megabytes(records.data.size)}, {size / len(records) / 1000:.1f} kB each"
    yield "stored size", size_range(records.stored_widths, records.stored_heights)
    yield "original size", size_range(records.widths, records.heights)
    yield "digest", records.digest
    skipped = made.pop("skipped", [])
    if skipped:
        yield "left out", f"{len(skipped)} unreadable images, such as {skipped[0]}"
    dropped = made.pop("dropped", [])
    if dropped:
        yield "dropped", f"{len(dropped)} damaged images, such as {dropped[0]['name']} ({dropped[0]['why']})"
    yield "made: kind", made.pop("kind")
    for key, value in made.items():
        entries = value.items() if isinstance(value, dict) else [(key, value)]
        yield from ((f"made: {name}", str(entry)) for name, entry in entries if entry not in (None, ""))


def run_info(args: argparse.Namespace) -> None:
    records = Records(args.file)
    table = Table("", escape(str(args.file)))
    for name, value in info_rows(records):
        table.add_row(name, escape(value.encode("utf-8", "replace").decode()))
    Console().print(table)
    if args.check:
        damaged = checked(records, usable_cores())
        if damaged:
            raise records.damaged(damaged[0].position, f"is damaged: {damaged[0].why}")
        print(f"{args.file}: all {len(records)} images are intact")


def checked(records: Records, workers: int) -> list[Damaged]:
    """Lists the damaged images, and returns them."""
    with progress_bar("checking", len(records)) as progress:
        damaged = find_damaged(records, workers, progress)
    for image in damaged:
        print(f"damaged: {image.name} (key {image.key}): {image.why}", file=sys.stderr)
    return damaged


def run_repair(args: argparse.Namespace) -> None:
    if args.out.resolve() == args.file.resolve():
        raise UserError(f"--out {args.out} is the file to repair, which stays as it is; name another file")
    check_output(args.out, args.force)
    records = Records(args.file)
    damaged = checked(records, args.workers)
    if not damaged:
        print(f"{args.file}: all {len(records)} images are intact; nothing to repair, nothing was written")
        return
    with progress_bar(args.out.name, len(records) - len(damaged)) as progress:
        rebuild(records, damaged, args.out, args.force, progress)
    repaired = Records(args.out)
    for label in np.flatnonzero((records.class_counts > 0) & (repaired.class_counts == 0)):
        print(f"note: class {records.class_names[label]} has lost all its images", file=sys.stderr)
    report(repaired, f", {len(damaged)} damaged images dropped")
