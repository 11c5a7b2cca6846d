"""The table of `tools/logits.py info`: what a cache says of itself, finished or not. No record is read."""

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.errors import UserError
from pipelines.logits.blocks import block_path
from pipelines.logits.codec import TEMPERATURES, certified_loss
from pipelines.logits.reader import LOSS_BUDGET
from tools.caches.check import Survey
from tools.caches.sessions import sessions_of
from train.watch.text import counted, megabytes, short_list

SHOWN = 3  # classes named


def show(found: Survey) -> None:
    """Print the table."""
    table = Table("")
    table.add_column(escape(str(found.folder)), overflow="fold")
    for name, value in info_rows(found):
        table.add_row(name, escape(value.encode("utf-8", "replace").decode()))  # a class may be named by a folder
    Console().print(table)


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


def session_text(session: dict[str, Any]) -> str:
    """The facts of one session, its command last."""
    facts = dict(session)
    argv = facts.pop("argv", [])
    if isinstance(facts.get("time"), (int, float)):
        facts["time"] = datetime.fromtimestamp(facts["time"]).isoformat(" ", "seconds")
    command = f"\n{shlex.join(map(str, argv))}" if isinstance(argv, list) else ""
    return value_text(facts) + command


def value_text(value: Any) -> str:
    """A field of an identity on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
