"""What `tools/logits.py verify` prints: every bad file by name, and whether records still show the teacher's pixels.

Changes nothing.
"""

import shlex
import sys
from pathlib import Path

import torch

from pipelines.cores import usable_cores
from pipelines.errors import UserError
from pipelines.records.reader import Records
from tools.caches.check import Bad, Survey, check_blocks, compare_pixels, to_check
from train.watch.progress import progress_bar
from train.watch.text import counted, short_list


def checked(found: Survey) -> list[Bad]:
    """Every bad file, after listing them and what does not belong there."""
    with progress_bar("checking blocks", len(to_check(found))) as progress:
        bad = found.bad + check_blocks(found, usable_cores(), progress)
    for one in bad:
        where = f"view {one.cell[0]}, block {one.cell[1]}: " if one.cell else ""
        print(f"bad: {where}{one.why}", file=sys.stderr)
    for path in found.strays:
        print(f"note: {path} is not part of a cache, and is never read", file=sys.stderr)
    for path in found.temporary:
        print(f"note: {path} is being written, or was left behind by a killed writer", file=sys.stderr)
    return bad


def verify(found: Survey) -> None:
    """Check every file and every record; UserError when some are bad."""
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


def verify_pixels(found: Survey, data: Path, samples: int | None, device: torch.device) -> None:
    """Compare views of the records `data`, `samples` of them or all, with what the teacher saw; UserError when some differ."""
    records = Records(data)
    total = len(records) * len(found.cells) // found.blocks
    with progress_bar("comparing crops", min(samples or total, total)) as progress:
        pixels = compare_pixels(found, records, samples, device, progress)
    for note in pixels.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = ", ".join(f"{pixels.verdicts[verdict]} {verdict}" for verdict in ("same", "close", "other"))
    print(f"{counted(pixels.verdicts.total(), 'crop')} of {data} by backend {pixels.backend}: {counts}")
    if pixels.others:
        raise UserError(
            f"{found.folder}: {counted(len(pixels.others), 'crop')} of {data} show other pixels than the teacher saw: "
            f"{short_list(pixels.others)}; use the records that the cache was written from, or write a new cache"
        )
