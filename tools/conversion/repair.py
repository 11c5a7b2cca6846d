"""Finding the damaged images of a record file, and rebuilding the file without them.

Owns what the new manifest says about them. What counts as damage is decided in pipelines/records/encoding.py; writing.py
there copies the bytes. Invariant: the original is only read; images that stay keep name, key, label, source hash and bytes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.records.encoding import damage
from pipelines.records.reader import Records
from pipelines.records.writing import copy_records


class Damaged(NamedTuple):
    """One image that no loader can use."""

    position: int
    name: str
    key: int
    why: str


def find_damaged(records: Records, workers: int, progress: Callable[[], None]) -> list[Damaged]:
    """The images whose checksum fails or that do not decode. Threads: checksums and decoders release the GIL."""
    found = []
    with ThreadPool(max(1, workers)) as pool:
        for position, why in enumerate(pool.imap(partial(damage, records), range(len(records)), chunksize=16)):
            progress()
            if why:
                found.append(Damaged(position, records.name(position), int(records.keys[position]), why))
    return found


def rebuild(records: Records, damaged: Sequence[Damaged], out: Path, force: bool, progress: Callable[[], None]) -> None:
    """Write `out`: the records that are not damaged. Its manifest says how the original was made and what was removed."""
    whole = np.delete(np.arange(len(records)), [image.position for image in damaged])
    if not whole.size:
        raise UserError(f"{records.path}: not one image is intact; convert it again with tools/convert.py")
    made = dict(records.manifest["made"])
    gone = [{"name": image.name, "key": image.key, "why": image.why} for image in damaged]
    made["dropped"] = made.get("dropped", []) + gone
    copy_records(out, records, whole.tolist(), made, force=force, progress=progress)
