"""The commands of tools/convert.py that make record files: they read samples from their source and write them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import UserError, quoted
from pipelines.records.workers import Sample, Unreadable
from pipelines.records.writing import check_output
from tools.conversion.archives import inside_archive, read_archives
from tools.conversion.cifar import Cifar, Split, draw, draw_long_tail, long_tail_counts, read_cifar
from tools.conversion.demo_images import write_demo
from tools.conversion.folder import (
    archive_classes,
    archive_samples,
    class_folders,
    folder_samples,
    folders_at,
    refuse_splits,
)
from tools.conversion.images import Images
from tools.conversion.joining import (
    Report,
    check_folders,
    check_labels,
    check_names,
    check_range,
    joined,
    joined_folder,
    show_report,
)
from tools.conversion.listing import Listed, read_list
from tools.conversion.names import read_classes, read_lines, stripped
from tools.conversion.output import convert, convert_images, convert_parts, part_outputs, refuse
from tools.conversion.parquet import read_parquet
from tools.conversion.storage import encoding_of
from tools.conversion.webdataset import read_shards


def cifar_samples(split: Split, positions: np.ndarray, labels: Sequence[int] | None = None) -> list[Sample]:
    """The images at `positions`. labels: the archive's labels that are kept, in their new order; None = as they are."""
    found = [int(split.labels[i]) for i in positions]
    new = found if labels is None else [labels.index(label) for label in found]
    return [Sample(split.names[i], label, split.images[i]) for i, label in zip(positions, new, strict=True)]


def cifar_outputs(args: argparse.Namespace) -> list[Path]:
    """The record files of both parts, after checking that they may be written."""
    outputs = [args.out / "train.beton", args.out / "test.beton"]
    for out in outputs:
        check_output(out, args.force)
    return outputs


def cifar_of(kind: str, archive: Path) -> Cifar:
    cifar = read_cifar(archive)
    if cifar.kind != kind:
        raise UserError(f"{archive} is a {cifar.kind} archive; type {cifar.kind}-lt, or give one of {kind}")
    return cifar


def run_cifar(args: argparse.Namespace) -> None:
    outputs = cifar_outputs(args)
    cifar = cifar_of(args.command.removesuffix("-lt"), args.archive)
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


def run_pair(args: argparse.Namespace) -> None:
    outputs = cifar_outputs(args)
    if args.head == args.tail:
        raise UserError(f"--head {args.head} --tail {args.tail} is the same class twice; give two")
    cifar = cifar_of("cifar10", args.archive)
    names, counts = (args.head, args.tail), tuple(args.counts)
    labels = [_label(cifar, option, name) for option, name in zip(("--head", "--tail"), names, strict=True)]
    for name, label, count in zip(names, labels, counts, strict=True):
        images = int((cifar.train.labels == label).sum())
        if count > images:
            raise UserError(f"--counts {counts[0]} {counts[1]}: {args.archive} has {images} images of {name}")
        if label not in cifar.test.labels:
            raise UserError(f"{args.archive} has no test images of {name}; give another class, or the whole archive")
    options = {"split": "train", "head": args.head, "tail": args.tail, "counts": counts, "train_md5": cifar.train_md5}
    samples = cifar_samples(cifar.train, draw(cifar.train.labels, dict(zip(labels, counts, strict=True))), labels)
    convert(outputs[0], samples, names, args, kind=args.command, options=options)
    samples = cifar_samples(cifar.test, np.flatnonzero(np.isin(cifar.test.labels, labels)), labels)
    options = {"split": "test", "head": args.head, "tail": args.tail}
    convert(outputs[1], samples, names, args, kind=args.command, options=options)


def _label(cifar: Cifar, option: str, name: str) -> int:
    if name not in cifar.class_names:
        raise UserError(f"{option} {quoted(name)}: no class of the archive; give one of {', '.join(cifar.class_names)}")
    return cifar.class_names.index(name)


def run_folder(args: argparse.Namespace) -> None:
    encoding_of(args)  # refuses contradictory options before any file is touched
    outputs = part_outputs(args) if args.val or args.test else None
    if outputs is None:
        check_output(args.out, args.force)
    images = read_archives([args.images]) if inside_archive(args.images) else None
    if args.classes:
        class_names = read_classes(args.classes)
    elif images:
        class_names = archive_classes(images, args.depth)
    else:
        class_names = class_folders(args.images, args.depth)
        refuse_splits(args.images, folders_at(args.images, 1))
    if images:
        samples = archive_samples(images, class_names, args.strip_prefix, args.depth)
    else:
        samples = folder_samples(args.images, class_names, args.strip_prefix, args.depth)
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
    given = read_classes(args.classes) if args.classes else None
    others = [root for root in args.root if not inside_archive(root)]
    if not others:
        _require_list(args.list)
        _convert_joined(args, given, read_archives(args.root))
        return
    root = others[0]
    if len(args.root) > 1:
        raise UserError(f"--root {root}: no archive, tar or zip; give one folder, or archives alone")
    listed = read_list(args.list, args.strip_prefix, given, root, args.list_prefix)
    samples, report = joined_folder(listed.lines, root)
    _convert_listed(args, listed, given, samples, report, str(root))


def _convert_listed(
    args: argparse.Namespace,
    listed: Listed,
    given: list[str] | None,
    samples: list[Sample],
    report: Report,
    where: str,
    own_names: list[str] | None = None,
) -> None:
    """Write the samples of a list after reporting how list and images fit. given: names in --classes; own_names: the images'."""
    if not samples:
        raise UserError(f"{args.list}: the list has no lines; 'path label' expected on each")
    show_report(args.list, listed.lines, where, report)
    if given and listed.class_names:
        check_names(given, str(args.classes), listed.class_names, str(args.list))
    names = given or listed.class_names or own_names
    if names:
        check_folders(listed.lines, names)
    if report.missing and not args.skip_bad:
        refuse([Unreadable(name, "no such file or directory") for name in report.missing], len(samples), args)
    names = names or [str(label) for label in range(max(sample.label for sample in samples) + 1)]
    convert_images(args.out, samples, names, args)


def run_parquet(args: argparse.Namespace) -> None:
    _convert_files(args, lambda: read_parquet(args.files, args.image_column, args.label_column))


def run_webdataset(args: argparse.Namespace) -> None:
    _convert_files(args, lambda: read_shards(args.shards, args.label_field))


def _convert_files(args: argparse.Namespace, read: Callable[[], Images]) -> None:
    """Write the images of files that bring labels, or, with --list, those that it names."""
    encoding_of(args)
    check_output(args.out, args.force)
    given = read_classes(args.classes) if args.classes else None
    if args.list:
        _require_list(args.list)
    images = read()
    check_range(images)
    if args.list:
        _convert_joined(args, given, images)
    else:
        convert_images(args.out, *labelled(images, given, args), args)


def _require_list(file: Path) -> None:
    """A list that cannot be read is said at once: to go through a large archive takes an hour."""
    read_lines(file, "the list")


def _convert_joined(args: argparse.Namespace, given: list[str] | None, images: Images) -> None:
    """Write the images of archives that a list names."""
    known = given or (len(images.class_names) if images.class_names else None)
    listed = read_list(args.list, args.strip_prefix, known, None, args.list_prefix)
    samples, report = joined(listed.lines, images)
    check_labels(samples, images, given)
    _convert_listed(args, listed, given, samples, report, images.where, images.class_names)


NO_LABELS = {
    "parquet": "name their column with --label-column",
    "webdataset": "name the field of the .json files that holds them with --label-field",
}


def labelled(images: Images, given: list[str] | None, args: argparse.Namespace) -> tuple[list[Sample], list[str]]:
    """Samples with the labels that the images' own file gives, and the class names. given: those in --classes."""
    if images.labels is None:
        raise UserError(
            f"{images.where}: no labels in it; {NO_LABELS[args.command]}, or give a --list of 'path label' lines"
        )
    if images.labels and min(images.labels) < 0:
        name, label = next((name, own) for name, own in zip(images.found, images.labels, strict=True) if own < 0)
        raise UserError(
            f"{images.where}: {quoted(name)} has no label ({label}), as in test sets whose labels are kept secret; give the "
            "files of another split, such as validation"
        )
    if given and images.class_names:
        check_names(given, str(args.classes), images.class_names, images.where)
    names = given or images.class_names or [str(label) for label in range(max(images.labels, default=0) + 1)]
    pairs = zip(images.found.items(), images.labels, strict=True)
    return [
        Sample(stripped(name, args.strip_prefix, images.where), label, image) for (name, image), label in pairs
    ], names


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
