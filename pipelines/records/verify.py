"""When the stored bytes of an image are checked: the rule of data.verify, the same for every backend."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pipelines.compiled import exact
from pipelines.crc32 import crc32
from pipelines.records.reader import Records


class Due(NamedTuple):
    """Which records are still to be checked, in the form that compiled code takes."""

    unchecked: np.ndarray
    "uint8 [N]: 1 where the next touch checks"
    always: bool
    "a check settles nothing for the next touch"


@exact
def is_whole(columns, due, position):
    """Whether a record that is touched may be used: its bytes have the CRC-32 that was written, or no check is due."""
    if due.unchecked[position]:
        start = columns.offsets[position]
        if crc32(columns.data[start : start + columns.sizes[position]]) != columns.crcs[position]:
            return False
        if not due.always:
            due.unchecked[position] = 0
    return True


@exact
def _first_damaged(columns, due, positions):
    """Index into `positions` of the first record that may not be used, -1 if there is none."""
    for i in range(len(positions)):
        if not is_whole(columns, due, positions[i]):
            return i
    return -1


class Verifier:
    """Checks records by the rule of data.verify: each on first touch, at every touch (`always`), or never (`off`).

    due: for compiled loops that ask `is_whole` themselves. workers: threads of a check.
    """

    def __init__(self, records: Records, verify: str, workers: int):
        self._records, self._workers, self._columns = records, workers, records.columns()
        self.due = Due(np.full(len(records), verify != "off", np.uint8), verify == "always")

    def check(self, positions: np.ndarray) -> None:
        """Raise UserError naming a damaged record among `positions`, or the file if it was cut short."""
        self._records.require_whole()
        positions = positions[self.due.unchecked[positions] != 0]
        if not len(positions):
            return

        def first_damaged(part: np.ndarray) -> int:
            return _first_damaged(self._columns, self.due, part)

        parts = np.array_split(positions, min(self._workers, len(positions)))
        with ThreadPoolExecutor(len(parts)) as pool:  # the compiled loop runs without the GIL
            for part, found in zip(parts, pool.map(first_damaged, parts), strict=True):
                if found >= 0:
                    self._records.verify(int(part[found]))

    def check_one(self, position: int) -> None:
        """Raise UserError if this record is damaged, or the file was cut short; in the caller's thread."""
        self._records.require_whole()
        if not is_whole(self._columns, self.due, position):
            self._records.verify(position)
