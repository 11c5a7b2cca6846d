"""The commands of tools/convert.py that make record files: they read samples from their source and write them."""

import argparse
import sys

import numpy as np

from pipelines.errors import UserError
from pipelines.records.writing import Sample, check_output
from tools.conversion.cifar import Split, draw_long_tail, long_tail_counts, read_cifar
from tools.conversion.demo_images import write_demo
from tools.conversion.folder import class_folders, folder_samples, refuse_splits
from tools.conversion.listing import list_samples
from tools.conversion.names import read_classes
from tools.conversion.output import convert, convert_images, convert_parts, part_outputs
from tools.conversion.storage import encoding_of


def cifar_samples(split: Split, positions: np.ndarray) -> list[Sample]:
    return [Sample(split.names[i], int(split.labels[i]), split.images[i]) for i in positions]


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


def run_folder(args: argparse.Namespace) -> None:
    encoding_of(args)  # refuses contradictory options before any file is touched
    outputs = part_outputs(args) if args.val or args.test else None
    if outputs is None:
        check_output(args.out, args.force)
    if args.classes:
        class_names = read_classes(args.classes)
    else:
        class_names = class_folders(args.images)
        refuse_splits(args.images, class_names)
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
