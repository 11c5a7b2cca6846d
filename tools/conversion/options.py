"""The options of tools/convert.py's commands, and their types; does no work itself."""

import argparse

from pipelines.cores import usable_cores
from pipelines.errors import quoted
from tools.command_line import Parser, number, path, whole
from tools.conversion.storage import RECIPES


def imbalance(text: str) -> int | float:
    """Images of the largest class per image of the smallest; whole numbers stay integers in the manifest."""
    value = number(text)
    if not 1 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, at least 1 and at most a million allowed")
    return int(value) if value.is_integer() else value


def share(text: str) -> float:
    """An argparse type: a share of a whole, less than all of it."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} given, at least 0 and less than 1 allowed")
    return value


def common_options() -> Parser:
    parser = Parser(add_help=False)
    cores = usable_cores()
    parser.add_argument(
        "--workers", type=whole(0, 1024), default=cores, help="processes that encode (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what exists")
    return parser


def image_options() -> Parser:
    parser = Parser(add_help=False)
    add = parser.add_argument
    add("--classes", type=path, metavar="FILE", help="class names in label order, one per line")
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
        "--grey-bits",
        type=whole(8, 16),
        default=16,
        metavar="N",
        help="bits that images of 16-bit grey use, such as 12; larger values become white (default: %(default)s)",
    )
    add(
        "--no-restarts",
        action="store_true",
        help="keep the very bytes of JPEG files: without restart markers every view decodes its whole image",
    )
    add(
        "--strip-prefix",
        default="",
        metavar="P",
        help="leave P out of the samples' names, on which keys depend",
    )
    add("--dry-run", action="store_true", help="say what would be written, after trying some images; write nothing")
    add("--skip-bad", action="store_true", help="leave unreadable images out instead of failing")
    return parser


def _archive_options(parser: Parser, archive: str) -> None:
    parser.add_argument("--archive", type=path, required=True, help=f"{archive} .tar.gz, .tar.xz or unpacked folder")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for train.beton and test.beton")


def cifar_options(parser: Parser, archive: str) -> None:
    _archive_options(parser, archive)
    parser.add_argument(
        "--imbalance", type=imbalance, required=True, help="largest class / smallest class, such as 100"
    )


def pair_options(parser: Parser) -> None:
    _archive_options(parser, "CIFAR-10")
    parser.add_argument(
        "--head", required=True, metavar="CLASS", help="the first class of the records, such as airplane"
    )
    parser.add_argument("--tail", required=True, metavar="CLASS", help="the second, such as dog")
    parser.add_argument(
        "--counts",
        type=whole(1),
        nargs=2,
        required=True,
        metavar=("HEAD", "TAIL"),
        help="training images of each, such as 5000 500",
    )


def out_file(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=path, required=True, metavar="FILE", help="record file to write, such as train.beton"
    )


def list_options(parser: Parser, required: bool) -> None:
    words = "lines 'path label', iNaturalist's JSON, JSON with fpath, or Kaggle's LOC_val_solution.csv"
    if not required:
        words = f"takes only the images of this list, with its labels: {words}"
    parser.add_argument("--list", type=path, required=required, metavar="FILE", help=words)
    parser.add_argument(
        "--list-prefix",
        default="",
        metavar="P",
        help="the list's paths start with P, such as a folder of another machine, in whose place the images here come",
    )


def parquet_options(parser: Parser) -> None:
    out_file(parser)
    parser.add_argument(
        "--files", type=path, nargs="+", required=True, metavar="FILE", help="all Parquet files of one split, in order"
    )
    parser.add_argument("--image-column", metavar="NAME", help="where several columns hold images")
    parser.add_argument("--label-column", metavar="NAME", help="where several columns hold labels")
    list_options(parser, required=False)


def webdataset_options(parser: Parser) -> None:
    out_file(parser)
    parser.add_argument(
        "--shards", type=path, nargs="+", required=True, metavar="TAR", help="all shards of one split, in order"
    )
    parser.add_argument(
        "--label-field", metavar="NAME", help="of .json files: what holds the label (default: .cls files, or label)"
    )
    list_options(parser, required=False)


def folder_options(parser: Parser) -> None:
    parser.add_argument(
        "--images",
        type=path,
        required=True,
        metavar="DIR|ARCHIVE",
        help="folder of class folders, or a tar or zip of it",
    )
    parser.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="FILE|DIR",
        help="record file to write, such as train.beton; with --val or --test the folder for train.beton and the others",
    )
    parser.add_argument(
        "--depth",
        type=whole(1, 9),
        default=1,
        metavar="N",
        help="how deep the class folders lie: 2 for iNaturalist's Plantae/7291 (default: 1)",
    )
    for part in ("val", "test"):
        parser.add_argument(
            f"--{part}",
            type=share,
            default=0,
            metavar="SHARE",
            help=f"share of each class for {part}.beton, such as 0.1",
        )
    parser.add_argument(
        "--split-seed",
        type=whole(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="another seed, another split (default: 0)",
    )
