"""Look at a logit cache: what it is, whether it is whole, and how flat its teacher's virtual examples are.

    python tools/logits.py {info,verify,repair,flatness} --help

CACHE is a cache's folder, or the folder that holds only that one. Owns the command line and what is printed; the checks are
in logits_check.py, the distribution in pipelines/logits/flatness.py. Only `repair` changes anything.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # replaces this folder, whose module names are generic
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UserError
from pipelines.files import read_json
from pipelines.logits import LogitCache
from pipelines.logits.blocks import block_path
from pipelines.logits.codec import TEMPERATURES, certified_loss
from pipelines.logits.folder import find_cache
from pipelines.logits.reader import LOSS_BUDGET
from pipelines.records.reader import Records
from tools.caches.check import Bad, Survey, check_blocks, compare_pixels, remove, require_own_identity, survey, to_check
from tools.caches.flatness import draw, measure, show, write_json
from tools.command_line import exit_cleanly_when_terminated, progress_bar, run_command, whole
from train.objectives.methods import DistillConfig
from train.run.endings import script
from train.watch.text import counted, megabytes, short_list

SHOWN = 3  # classes named
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def cache_folder(path: Path) -> Path:
    """The cache at `path`, or the only one in it; of a cache without identity.json it is said what is missing."""
    if not (path / "identity.json").exists() and (path / "index.bin").exists():
        raise UserError(f"{path}/identity.json is missing, without which no block can be judged; write the cache again")
    return find_cache(path)


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---- info ----


def certified(certificate: np.ndarray, codec: str) -> str:
    """Share of the teacher's information that the codec loses at each certified temperature."""
    losses = {temperature: certified_loss(certificate, temperature) for temperature in TEMPERATURES}
    if not any(losses.values()):
        return f"nothing: {codec} keeps every bit"
    shown = [
        f"{loss:.4%} at T={temperature:g}{' (refused)' if loss > LOSS_BUDGET else ''}"
        for temperature, loss in losses.items()
    ]
    return ", ".join(shown) + f"; up to {LOSS_BUDGET:.0%} is allowed"


def block_rows(found: Survey) -> Iterator[tuple[str, str]]:
    """What the blocks on disk say of themselves, their records unread."""
    sums, right, total, unreadable = np.zeros((len(TEMPERATURES), 3)), 0, 0, 0
    for cell in found.cells:
        try:
            block = found.open(cell)
        except UserError:
            unreadable += 1
            continue
        sums += block.certificate
        right += block.right
        total += len(block.records)
    if total:
        yield "teacher right", f"{right / total:.2%} of {counted(total, 'view')}, by plain argmax"
        yield "codec loses", certified(sums, found.opened.kind.codec)
    if unreadable:
        yield "damaged", f"{counted(unreadable, 'block')}; `verify` names them"


def value_text(value: Any) -> str:
    """A field of an identity on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """What made.json says of the sessions that wrote a cache; nothing when it is missing or damaged."""
    try:
        sessions = read_json(folder / "made.json")["sessions"]
        return [session for session in sessions if isinstance(session, dict)]
    except (UserError, KeyError, TypeError):  # nobody relies on this file; `verify` says what is wrong with it
        return []


def session_text(session: dict[str, Any]) -> str:
    """The facts of one session, its command last."""
    facts = dict(session)
    argv = facts.pop("argv", [])
    if isinstance(facts.get("time"), (int, float)):
        facts["time"] = datetime.fromtimestamp(facts["time"]).isoformat(" ", "seconds")
    command = f"\n{shlex.join(map(str, argv))}" if isinstance(argv, list) else ""
    return value_text(facts) + command


def info_rows(found: Survey) -> Iterator[tuple[str, str]]:
    identity, kind = found.opened.identity, found.opened.kind
    names = identity["dataset"]["class_names"]
    yield "dataset", f"{counted(len(found.opened.rows), 'sample')}, digest {identity['dataset']['digest']}"
    yield "classes", f"{len(names)}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
    yield from ((name, value_text(value)) for name, value in identity.items() if name != "dataset")
    yield "record", f"{kind.record_bytes} bytes a sample and view"
    yield "identity", kind.identity_hash.hex()
    complete, part = found.complete_views()
    declared = "unfinished" if found.views is None else f"{found.views} declared complete"
    yield "views", f"{len(complete)} whole; {declared}"
    if part:
        yield "", f"{counted(len(part), 'view')} begun: {short_list(list(map(str, part)))}"
    begun = len({*found.declared(), *((view, b) for view, _ in found.cells for b in range(found.blocks))})
    yield "blocks", f"{len(found.cells)} of {begun} in the views begun, {found.blocks} a view"
    size = sum(block_path(found.folder, *cell).stat().st_size for cell in found.cells)
    view_bytes = sum(kind.block_bytes(len(found.keys(block))) for block in range(found.blocks))
    yield "on disk", f"{megabytes(size)}; a view has {megabytes(view_bytes)}"
    yield from block_rows(found)
    for one in found.bad:
        yield "damaged", one.why
    for what, paths in (("temporary", found.temporary), ("stray", found.strays)):
        if paths:
            yield what, f"{counted(len(paths), 'file')}, such as {paths[0].relative_to(found.folder)}"
    for number, session in enumerate(sessions_of(found.folder), 1):
        yield f"session {number}", session_text(session)


def run_info(args: argparse.Namespace) -> None:
    found = survey(cache_folder(args.cache))
    table = Table("")
    table.add_column(escape(str(found.folder)), overflow="fold")
    for name, value in info_rows(found):
        table.add_row(name, escape(value.encode("utf-8", "replace").decode()))  # a class may be named by a folder
    Console().print(table)


# ---- verify ----


def checked(found: Survey) -> list[Bad]:
    """Every bad file, after listing them and what does not belong there."""
    with progress_bar("checking blocks", len(to_check(found))) as progress:
        bad = found.bad + check_blocks(found, len(os.sched_getaffinity(0)), progress)
    for one in bad:
        where = f"view {one.cell[0]}, block {one.cell[1]}: " if one.cell else ""
        print(f"bad: {where}{one.why}", file=sys.stderr)
    for path in found.strays:
        print(f"note: {path} is no part of a cache; nobody reads it", file=sys.stderr)
    for path in found.temporary:
        print(f"note: {path} is being written, or was left behind by a killed writer", file=sys.stderr)
    return bad


def run_verify(args: argparse.Namespace) -> None:
    found = survey(cache_folder(args.cache))
    bad = checked(found)
    if bad:
        names = [str(one.path.relative_to(found.folder)) for one in bad]
        raise UserError(
            f"{found.folder}: {counted(len(bad), 'bad file')}: {short_list(names)}; "
            f"type: {shlex.join(['python', 'tools/logits.py', 'repair', str(found.folder)])}"
        )
    records = sum(len(found.keys(block)) for _, block in found.cells)
    state = "unfinished" if found.views is None else f"{counted(found.views, 'view')} complete"
    print(
        f"{found.folder}: every checksum of {counted(len(found.cells), 'block')} and "
        f"{counted(records, 'record')} is right; {state}"
    )
    if args.data is not None:
        verify_pixels(found, args)


def verify_pixels(found: Survey, args: argparse.Namespace) -> None:
    records = Records(args.data)
    total = len(records) * len(found.cells) // found.blocks
    with progress_bar("comparing crops", min(args.samples or total, total)) as progress:
        pixels = compare_pixels(found, records, args.samples, device_here(), progress)
    for note in pixels.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = ", ".join(f"{pixels.verdicts[verdict]} {verdict}" for verdict in ("same", "close", "other"))
    print(f"{counted(pixels.verdicts.total(), 'crop')} of {args.data} by backend {pixels.backend}: {counts}")
    if pixels.others:
        raise UserError(
            f"{found.folder}: {counted(len(pixels.others), 'crop')} of {args.data} show other pixels than the teacher saw: "
            f"{short_list(pixels.others)}; use the records that the cache was written from, or write a new cache"
        )


# ---- repair ----


def rewrite_command(found: Survey, sessions: list[dict[str, Any]]) -> str:
    """The command that writes what is missing: the one that wrote the cache if it is known, else as far as it is."""
    identity, session = found.opened.identity, sessions[-1] if sessions else {}
    views = max([view + 1 for view, _ in to_check(found)], default=0)
    if isinstance(session.get("argv"), list):
        words = [str(word) for word in session["argv"][1:]]
        written = session.get("views")
        views = max(views, written if isinstance(written, int) else 0)
    else:
        words = [
            "CONFIG",
            f"distill.teacher={found.folder.name[:-13] or 'RUN'}",
            f"data.seed={identity['data_seed']}",
            f"cache.codec={identity['codec']}",
            f"cache.batch={identity['batch']}",
            f"precision={_PRECISIONS.get(identity['teacher']['dtype'], 'PRECISION')}",
        ]
        if found.views is None:  # how many there will be, only CONFIG knows
            views = 0
    now = {"data.views": views, "cache.dir": found.folder.parent}
    words = [word for word in words if word.partition("=")[0] not in now]
    words += [f"{name}={value}" for name, value in now.items() if value]
    return shlex.join(["python", "train/cache_logits.py", *words])


def run_repair(args: argparse.Namespace) -> None:
    found = survey(cache_folder(args.cache))
    sessions = sessions_of(found.folder)
    bad = checked(found)
    require_own_identity(found, bad)
    for path in remove(found, bad):
        print(f"deleted: {path.relative_to(found.folder)}", file=sys.stderr)
    if not bad and found.views is not None:
        print(f"{found.folder}: nothing to repair: {counted(len(found.cells), 'block')}, all whole")
        return
    what = f"{counted(len(bad), 'file')} to write again" if bad else "unfinished"
    how = "as the last time" if sessions else "CONFIG is the configuration of the cache's students"
    print(f"{found.folder}: {what}; type ({how}):\n{rewrite_command(found, sessions)}")


# ---- flatness ----


def run_flatness(args: argparse.Namespace) -> None:
    cache = LogitCache(cache_folder(args.cache))
    report = measure(cache, Records(args.data) if args.data else None, args.p, args.views, device_here())
    show(report, args.classes, Console())
    if args.json is not None:
        write_json(report, args.json)
    if args.png is not None:
        draw(report, args.png)


# ---- command line ----


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 allowed")
    return value


def all_or_whole(text: str) -> int | None:
    """An argparse type: `all` (None), or how many."""
    return None if text == "all" else whole(1)(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="logits.py", description="Look at a logit cache, check it, repair it.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("cache", type=Path, metavar="CACHE", help="folder of the cache, or one that holds only it")
    info = commands.add_parser("info", parents=[common], help="what a cache holds, finished or not")
    info.set_defaults(run=run_info)
    verify = commands.add_parser("verify", parents=[common], help="check every file and every record")
    verify.add_argument(
        "--data",
        type=Path,
        metavar="FILE.beton",
        help="load views of these records as well, and compare them with what the teacher saw",
    )
    verify.add_argument(
        "--samples", type=all_or_whole, default=512, metavar="N|all", help="views to compare (default: %(default)s)"
    )
    verify.set_defaults(run=run_verify)
    repair = commands.add_parser("repair", parents=[common], help="delete bad blocks, say what writes them again")
    repair.set_defaults(run=run_repair)
    flatness = commands.add_parser("flatness", parents=[common], help="virtual examples per class, and the T to use")
    add = flatness.add_argument
    add("--data", type=Path, metavar="FILE.beton", help="training records, if they are only some of the cache's")
    add("--p", type=positive, default=DistillConfig().p, help="distill.p of the student (default: %(default)s)")
    add(
        "--views", type=whole(1), default=1, metavar="N", help="views to average over (default: %(default)s, the first)"
    )
    add("--classes", action="store_true", help="list every class")
    add("--png", type=Path, metavar="FILE", help="draw a picture")
    add("--json", type=Path, metavar="FILE", help="write every number")
    flatness.set_defaults(run=run_flatness)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, 2 for a bad cache too."""
    return run_command(build_parser(), argv, "nothing more was done")


if __name__ == "__main__":
    exit_cleanly_when_terminated()
    sys.exit(script(main))
