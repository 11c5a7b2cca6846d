"""Turn images into record files (.beton), show what a record file holds, repair one.

    python tools/convert.py {cifar100-lt,cifar10-lt,folder,list,demo,info,repair} --help

Owns the command line, the class list and the names of samples; reads no pixels and writes no records itself.
Invariant: names and labels depend on what is given (a list's lines, paths inside a folder, an archive), not
on where it lies or in which order the file system lists it.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UserError
from pipelines.records.encoding import AS_THEY_ARE, Encoding
from pipelines.records.reader import Records
from pipelines.records.writing import Sample, UnreadableImages, check_output, write_records
from tools.command_line import exit_cleanly_when_terminated, progress_bar, run_command, whole
from tools.conversion.cifar import Split, draw_long_tail, long_tail_counts, read_cifar
from tools.conversion.demo_images import write_demo
from tools.conversion.repair import Damaged, find_damaged, rebuild
from tools.conversion.splits import PARTS, split_samples
from train.run.endings import script
from train.watch.text import megabytes

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
MAX_CLASSES = 1_000_000  # a larger label is a mistake, such as a key in the label's place
SHOWN = 20  # unreadable images listed one by one


class Storage(NamedTuple):
    """What a training recipe needs of an image, and where that recipe is used."""

    encoding: Encoding
    use: str


# A random resized crop takes as little as 8 % of the area, which is enlarged to 224 already: any smaller copy loses detail.
# A resize to a fixed short side throws away what a copy of that short side does not hold. Measured in docs/storage.md.
RECIPES = {
    "imagenet_lt": Storage(AS_THEY_ARE, "random_resized_crop 224: configs/imagenet_lt"),
    "imagenet_lt_resize": Storage(Encoding(short_side=256), "resize_crop 224 of short side 256"),
    "inat18": Storage(AS_THEY_ARE, "random_resized_crop 224: configs/inat18"),
    "evaluation": Storage(Encoding(short_side=256), "val and test of all of them: centre 224 of short side 256"),
}


def convert(
    out: Path, samples: Sequence[Sample], class_names: Sequence[str], args: argparse.Namespace, **more: Any
) -> None:
    """Write one record file with a progress bar, and say what was written."""
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
    """The one line on a new file, and a note on classes without images."""
    size = megabytes(records.data.size)
    print(
        f"{records.path}: {len(records)} images, {records.num_classes} classes, {size}, digest {records.digest}{more}"
    )
    empty = int((records.class_counts == 0).sum())
    if empty:
        print(f"note: {empty} of {records.num_classes} classes have no image in {records.path}", file=sys.stderr)


def list_unreadable(images: Sequence[Any]) -> None:
    for image in images[:SHOWN]:
        print(f"unreadable: {image.name}: {image.reason}", file=sys.stderr)
    if len(images) > SHOWN:
        print(f"unreadable: and {len(images) - SHOWN} more", file=sys.stderr)


def encoding_of(args: argparse.Namespace, part: str = "train") -> Encoding:
    """How the files of one part are stored; under --recipe the parts that do not train hold the evaluation view."""
    if not args.recipe:
        return Encoding(args.short_side, args.max_side, args.quality)
    if args.short_side or args.max_side:
        raise UserError(
            f"--recipe {args.recipe} means: {RECIPES[args.recipe].encoding}; give either --recipe, or --short-side "
            "and --max-side"
        )
    name = args.recipe if part == "train" else "evaluation"
    return replace(RECIPES[name].encoding, quality=args.quality)


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
    options = {"split": "train", "imbalance": args.imbalance, "train_md5": cifar.train_md5}
    convert(outputs[0], samples, cifar.class_names, args, kind=args.command, options=options)
    samples = cifar_samples(cifar.test, np.arange(len(cifar.test.labels)))
    convert(outputs[1], samples, cifar.class_names, args, kind=args.command, options={"split": "test"})


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
    """The record file of each part that --val and --test ask for, after checking that they may be written."""
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
    """Write train.beton and the others, from one split."""
    parts = split_samples(samples, args.val, args.test, args.split_seed)
    for part in outputs:
        if not parts[part]:
            largest = int(np.bincount([sample.label for sample in samples]).max())
            share = getattr(args, part)
            raise UserError(f"--{part} {share:g} of classes of at most {largest} images is none; give a larger share")
    for out in outputs.values():  # a run that is stopped must not leave the parts of two splits side by side
        try:
            out.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{out} cannot be overwritten: {error.strerror}") from error
    split = {"val": args.val, "test": args.test, "split_seed": args.split_seed}
    for part, out in outputs.items():
        convert_images(out, parts[part], class_names, args, part=part, split=part, **split)


def run_folder(args: argparse.Namespace) -> None:
    encoding_of(args)  # a contradiction is told before any file is touched
    outputs = part_outputs(args) if args.val or args.test else None
    if outputs is None:
        check_output(args.out, args.force)
    class_names = read_classes(args.classes) if args.classes else class_folders(args.images)
    samples = folder_samples(args.images, class_names, args.strip_prefix)
    filled = {sample.label for sample in samples}
    empty = [name for label, name in enumerate(class_names) if label not in filled]
    if empty and not args.classes:
        raise UserError(f"{args.images / empty[0]}: no images in this class; remove it, or list it with --classes")
    if outputs:
        convert_parts(outputs, samples, class_names, args)
    else:
        convert_images(args.out, samples, class_names, args)


def run_list(args: argparse.Namespace) -> None:
    encoding_of(args)
    check_output(args.out, args.force)
    class_names = read_classes(args.classes) if args.classes else None
    samples = list_samples(args.root, args.list, args.strip_prefix, len(class_names) if class_names else None)
    if not samples:
        raise UserError(f"{args.list}: the list has no lines; 'path label' expected on each")
    if class_names is None:
        class_names = [str(label) for label in range(max(sample.label for sample in samples) + 1)]
    convert_images(args.out, samples, class_names, args)


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
        damaged = checked(records, len(os.sched_getaffinity(0)))
        if damaged:
            raise records.damaged(damaged[0].position, f"is damaged: {damaged[0].why}")
        print(f"{args.file}: all {len(records)} images are intact")


def checked(records: Records, workers: int) -> list[Damaged]:
    """The damaged images, after listing them."""
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


# Command line


def imbalance(text: str) -> int | float:
    """Images of the largest class per image of the smallest; whole numbers stay whole in the manifest."""
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, at least 1 allowed")
    return int(value) if value.is_integer() else value


def share(text: str) -> float:
    """An argparse type: a part of a whole, less than all of it."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} given, at least 0 and less than 1 allowed")
    return value


def recipe_table() -> str:
    """What each --recipe stores, for --help."""
    width = max(map(len, RECIPES))
    rows = [f"  {name:{width}}  {str(kind.encoding):25}  {kind.use}" for name, kind in RECIPES.items()]
    return "\n".join(["what --recipe stores (costs: docs/storage.md):", *rows])


def common_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=whole(0), default=cores, help="processes that encode (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")
    return parser


def image_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--classes", type=Path, metavar="FILE", help="class names in label order, one per line")
    add("--recipe", choices=list(RECIPES), help="store what this recipe needs and no more, see below")
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
    table: dict[str, Any] = {
        "epilog": recipe_table(),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "parents": [common, images],
    }
    folder = commands.add_parser("folder", help="a folder whose sub-folders are the classes", **table)
    folder.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of class folders")
    folder.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE|DIR",
        help="record file to write, such as train.beton; with --val or --test the folder for train.beton and the others",
    )
    for part in ("val", "test"):
        folder.add_argument(
            f"--{part}",
            type=share,
            default=0,
            metavar="SHARE",
            help=f"share of each class for {part}.beton, such as 0.1",
        )
    folder.add_argument(
        "--split-seed",
        type=whole(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="another seed, another split (default: 0)",
    )
    folder.set_defaults(run=run_folder)
    listed = commands.add_parser("list", help="images named in a file of 'path label' lines", **table)
    listed.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="record file to write, such as train.beton"
    )
    listed.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder the list's paths start from")
    listed.add_argument("--list", type=Path, required=True, metavar="FILE", help="lines 'path label'")
    listed.set_defaults(run=run_list)
    demo = commands.add_parser("demo", parents=[common], help="a small long-tailed image set, drawn by a program")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for images and record files")
    demo.add_argument("--seed", type=whole(0), default=0, help="of the drawings (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    info = commands.add_parser("info", help="what a record file holds and how it was made")
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--check", action="store_true", help="check as well that every image is whole and decodes")
    info.set_defaults(run=run_info)
    repair = commands.add_parser("repair", parents=[common], help="copy a record file without its damaged images")
    repair.add_argument("file", type=Path, metavar="FILE")
    repair.add_argument("--out", type=Path, required=True, metavar="NEW", help="record file to write")
    repair.set_defaults(run=run_repair)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    return run_command(build_parser(), argv, "the file at work was not written")


if __name__ == "__main__":
    exit_cleanly_when_terminated()
    sys.exit(script(main))
