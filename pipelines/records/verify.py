"""When the stored bytes of an image are checked: the rule of data.verify, the same for every backend."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.compiled import exact
from pipelines.crc32 import crc32
from pipelines.records.reader import Records


@exact
def _first_damaged(data, offsets, sizes, crcs, positions, unchecked, check_always):
    """Index into `positions` of the first record whose bytes have another CRC, -1 if there is none."""
    for i in range(len(positions)):
        k = positions[i]
        if unchecked[k]:
            if crc32(data[offsets[k] : offsets[k] + sizes[k]]) != crcs[k]:
                return i
            if not check_always:
                unchecked[k] = 0
    return -1


class Verifier:
    """Checks records by the rule of data.verify: each on first touch, at every touch (`always`), or never (`off`)."""

    def __init__(self, records: Records, verify: str, workers: int):
        self._records, self._workers = records, workers
        self._always = verify == "always"
        self._unchecked = np.full(len(records), verify != "off", np.uint8)

    def check(self, positions: np.ndarray) -> None:
        """Raise UserError naming a damaged record among `positions`."""
        due = positions[self._unchecked[positions] != 0]
        if not len(due):
            return
        r = self._records

        def first_damaged(part: np.ndarray) -> int:
            return _first_damaged(r.data, r.offsets, r.sizes, r.crcs, part, self._unchecked, self._always)

        parts = np.array_split(due, min(self._workers, len(due)))
        with ThreadPoolExecutor(len(parts)) as pool:  # the compiled loop runs without the GIL
            for part, found in zip(parts, pool.map(first_damaged, parts), strict=True):
                if found >= 0:
                    r.verify(int(part[found]))
