"""Turn images into record files (.beton), and show what a record file holds.

    python tools/convert.py {cifar100-lt,cifar10-lt,folder,list,demo,info} --help

Owns the command line, the class list and the names of samples; reads no pixels and writes no records itself.
Invariant: names and labels depend on what is given (a list's lines, paths inside a folder, an archive), not
on where it lies or in which order the file system lists it.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.errors import UserError
from pipelines.records import Records
from pipelines.writing import Encoding, Sample, UnreadableImages, check_output, write_records
from tools.cifar import Split, draw_long_tail, long_tail_counts, read_cifar
from tools.demo_images import write_demo

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
MAX_CLASSES = 1_000_000  # a larger label is a mistake, such as a key in the label's place
SHOWN = 20  # unreadable images listed one by one


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call once per image done: a bar on a terminal, else a line at each tenth; on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

        yield count
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda: progress.advance(task)


def convert(
    out: Path, samples: Sequence[Sample], class_names: Sequence[str], args: argparse.Namespace, **more: Any
) -> None:
    """Write one record file with a progress bar, and say what was written."""
    with progress_bar(out.name, len(samples)) as progress:
        skipped = write_records(
            out, samples, class_names, workers=args.workers, force=args.force, progress=progress, **more
        )
    list_unreadable(skipped)
    records = Records(out)
    print(
        f"{out}: {len(records)} images, {records.num_classes} classes, {megabytes(records.data.size)}, "
        f"digest {records.digest}" + (f", {len(skipped)} unreadable images left out" if skipped else "")
    )
    empty = int((records.class_counts == 0).sum())
    if empty:
        print(f"note: {empty} of {records.num_classes} classes have no image in {out}", file=sys.stderr)


def list_unreadable(images: Sequence[Any]) -> None:
    for image in images[:SHOWN]:
        print(f"unreadable: {image.name}: {image.reason}", file=sys.stderr)
    if len(images) > SHOWN:
        print(f"unreadable: and {len(images) - SHOWN} more", file=sys.stderr)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def encoding_of(args: argparse.Namespace) -> Encoding:
    return Encoding(args.short_side, args.max_side, args.quality)


def stripped(name: str, prefix: str, where: str) -> str:
    """A name without --strip-prefix; one that lacks it would have another key than its twin elsewhere."""
    if not name.startswith(prefix):
        raise UserError(f"{where}: {name} does not start with {prefix}, the --strip-prefix given")
    return name.removeprefix(prefix)


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file; bytes that are no UTF-8 survive, as in file names."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror}") from None


def read_classes(path: Path) -> list[str]:
    """Class names, one per line, in label order."""
    names = [line.strip() for line in read_lines(path, "the class list")]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise UserError(f"{path}, line {names.index('') + 1}: a class name expected, an empty line found")
    if not names:
        raise UserError(f"{path}: class names expected, one per line; the file is empty")
    return names


# Sources of samples


def cifar_samples(split: Split, positions: np.ndarray) -> list[Sample]:
    return [Sample(split.names[i], int(split.labels[i]), split.images[i]) for i in positions]


def class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder whose sub-folders are the classes")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not hidden(entry.name))
    if not names:
        raise UserError(f"{root}: no sub-folders found; every class needs its own, with its images in it")
    return names


def hidden(name: str) -> bool:
    return name.startswith(".")  # .ipynb_checkpoints is no class, ._0001.jpg no image


def folder_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, in an order that depends on their names alone."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(parent, name), folder)


def folder_samples(root: Path, class_names: Sequence[str], prefix: str) -> list[Sample]:
    """Every image file below the class folders; other files are counted and named."""
    labels = {name: label for label, name in enumerate(class_names)}
    if len(labels) < len(class_names):
        raise UserError("--classes names a class twice; every folder needs one label")
    samples: list[Sample] = []
    others: list[str] = []
    for folder in class_folders(root):
        if folder not in labels:
            raise UserError(f"{root / folder}: this class is not in the class list")
        for file in folder_files(root / folder):
            name = f"{folder}/{file}"
            if hidden(os.path.basename(file)) or os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:
                others.append(name)
                continue
            samples.append(Sample(stripped(name, prefix, str(root)), labels[folder], str(root / name)))
    if others:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        print(f"note: {len(others)} files left out (not {known}), such as {others[0]}", file=sys.stderr)
    return samples


def list_samples(root: Path, path: Path, prefix: str, classes: int | None) -> list[Sample]:
    """One sample per `path label` line; the path may hold spaces. Empty lines are passed over."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root is the folder that the list's paths start from")
    samples = []
    for number, line in enumerate(read_lines(path, "the list"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
            raise UserError(f"{where}: 'path label' expected, a label from 0 up, found: {line.strip()}")
        file, label = parts
        if int(label) >= (classes or MAX_CLASSES):
            raise UserError(f"{where}: label {label} is not in 0..{(classes or MAX_CLASSES) - 1}")
        samples.append(Sample(stripped(file, prefix, where), int(label), str(root / file)))
    return samples


# Commands


def run_cifar(args: argparse.Namespace) -> None:
    kind = args.command.removesuffix("-lt")
    outputs = [args.out / "train.beton", args.out / "test.beton"]
    for out in outputs:
        check_output(out, args.force)
    cifar = read_cifar(args.archive)
    if cifar.kind != kind:
        raise UserError(f"{args.archive} is a {cifar.kind} archive; type {cifar.kind}-lt, or give one of {kind}")
    classes = len(cifar.class_names)
    head = int(np.bincount(cifar.train.labels).max())
    if not long_tail_counts(head, classes, args.imbalance)[-1]:
        raise UserError(f"--imbalance {args.imbalance} leaves a class without images; give at most {head}")
    drawn = draw_long_tail(cifar.train.labels, classes, args.imbalance)
    samples = cifar_samples(cifar.train, drawn)
    options = {"split": "train", "imbalance": args.imbalance}
    convert(outputs[0], samples, cifar.class_names, args, kind=args.command, options=options)
    samples = cifar_samples(cifar.test, np.arange(len(cifar.test.labels)))
    convert(outputs[1], samples, cifar.class_names, args, kind=args.command, options={"split": "test"})


def convert_images(
    out: Path, samples: list[Sample], class_names: Sequence[str], args: argparse.Namespace, kind: str
) -> None:
    options = {"strip_prefix": args.strip_prefix}
    encoding = encoding_of(args)
    convert(out, samples, class_names, args, kind=kind, options=options, encoding=encoding, skip_bad=args.skip_bad)


def run_folder(args: argparse.Namespace) -> None:
    check_output(args.out, args.force)
    class_names = read_classes(args.classes) if args.classes else class_folders(args.images)
    samples = folder_samples(args.images, class_names, args.strip_prefix)
    filled = {sample.label for sample in samples}
    empty = [name for label, name in enumerate(class_names) if label not in filled]
    if empty and not args.classes:
        raise UserError(f"{args.images / empty[0]}: no images in this class; remove it, or list it with --classes")
    convert_images(args.out, samples, class_names, args, "folder")


def run_list(args: argparse.Namespace) -> None:
    check_output(args.out, args.force)
    class_names = read_classes(args.classes) if args.classes else None
    samples = list_samples(args.root, args.list, args.strip_prefix, len(class_names) if class_names else None)
    if not samples:
        raise UserError(f"{args.list}: the list has no lines; 'path label' expected on each")
    if class_names is None:
        class_names = [str(label) for label in range(max(sample.label for sample in samples) + 1)]
    convert_images(args.out, samples, class_names, args, "list")


def run_demo(args: argparse.Namespace) -> None:
    outputs = {split: args.out / f"{split}.beton" for split in ("train", "test")}
    for out in outputs.values():
        check_output(out, args.force)
    print(f"drawing the demo's images in {args.out}", file=sys.stderr, flush=True)
    write_demo(args.out, args.seed)
    class_names = class_folders(args.out / "train")
    for split, out in outputs.items():
        samples = folder_samples(args.out / split, class_names, "")
        convert(out, samples, class_names, args, kind="demo", options={"split": split, "seed": args.seed})


def size_range(widths: np.ndarray, heights: np.ndarray) -> str:
    """Smallest and largest side each way, in pixels."""
    low, high = f"{widths.min()}x{heights.min()}", f"{widths.max()}x{heights.max()}"
    if low == high:
        return low
    return f"{low} to {high}, median {np.median(widths):.0f}x{np.median(heights):.0f}"


def info_rows(records: Records) -> Iterator[tuple[str, str]]:
    counts, made = records.class_counts, dict(records.manifest["made"])
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    yield "samples", str(len(records))
    yield "classes", str(records.num_classes)
    yield "largest class", f"{counts[largest]} ({records.class_names[largest]})"
    yield "smallest class", f"{counts[smallest]} ({records.class_names[smallest]})"
    yield "stored as", "raw pixels" if records.raw.all() else "JPEG"
    yield "images", f"{megabytes(int(records.sizes.sum()))} of {megabytes(records.data.size)}"
    yield "stored size", size_range(records.stored_widths, records.stored_heights)
    yield "original size", size_range(records.widths, records.heights)
    yield "digest", records.digest
    skipped = made.pop("skipped", [])
    if skipped:
        yield "left out", f"{len(skipped)} unreadable images, such as {skipped[0]}"
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
        with progress_bar("checking", len(records)) as progress:
            for position in range(len(records)):
                records.verify(position)
                progress()
        print(f"{args.file}: all {len(records)} images are intact")


# Command line


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low`, at most `high`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} given, {low}..{'' if high is None else high} allowed")
        return value

    return integer


def imbalance(text: str) -> int | float:
    """Images of the largest class per image of the smallest; whole numbers stay whole in the manifest."""
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, at least 1 allowed")
    return int(value) if value.is_integer() else value


def common_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=whole(0), default=cores, help="processes that encode (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")
    return parser


def image_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="record file to write, such as train.beton")
    add("--classes", type=Path, metavar="FILE", help="class names in label order, one per line")
    add("--short-side", type=whole(1), metavar="N", help="shrink images until the short side is N pixels")
    add("--max-side", type=whole(1), metavar="N", help="shrink images until the long side is at most N pixels")
    add(
        "--quality",
        type=whole(1, 100),
        default=95,
        help="of images encoded anew, 4:4:4 (default: %(default)s)",
    )
    add(
        "--strip-prefix",
        default="",
        metavar="P",
        help="leave P out of the samples' names, on which keys depend",
    )
    add("--skip-bad", action="store_true", help="leave unreadable images out instead of failing")
    return parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convert.py", description="Turn images into record files (.beton).")
    commands = parser.add_subparsers(dest="command", required=True)
    common, images = common_options(), image_options()
    for name, archive in (("cifar100-lt", "CIFAR-100"), ("cifar10-lt", "CIFAR-10")):
        cifar = commands.add_parser(name, parents=[common], help=f"long-tailed {archive} from the python archive")
        cifar.add_argument("--archive", type=Path, required=True, help=f"{archive} .tar.gz, .tar.xz or unpacked folder")
        cifar.add_argument(
            "--imbalance", type=imbalance, required=True, help="largest class / smallest class, such as 100"
        )
        cifar.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder for train.beton and test.beton"
        )
        cifar.set_defaults(run=run_cifar)
    folder = commands.add_parser("folder", parents=[common, images], help="a folder whose sub-folders are the classes")
    folder.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of class folders")
    folder.set_defaults(run=run_folder)
    listed = commands.add_parser("list", parents=[common, images], help="images named in a file of 'path label' lines")
    listed.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder the list's paths start from")
    listed.add_argument("--list", type=Path, required=True, metavar="FILE", help="lines 'path label'")
    listed.set_defaults(run=run_list)
    demo = commands.add_parser("demo", parents=[common], help="a small long-tailed image set, drawn by a program")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for images and record files")
    demo.add_argument("--seed", type=whole(0), default=0, help="of the drawings (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    info = commands.add_parser("info", help="what a record file holds and how it was made")
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--check", action="store_true", help="check every image's checksum as well")
    info.set_defaults(run=run_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 2 for a mistake of the user's, 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        if isinstance(error, UnreadableImages):
            list_unreadable(error.images)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the file at work was not written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit cleans up, a plain SIGTERM does not
    sys.exit(main())
