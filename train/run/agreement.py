"""What all processes of a program must have alike, and where they wait for each other, however long that takes.

On several machines each has its own command line, configuration and disks, and gradients are exchanged, not weights: processes
that differ would train on without a word. Invariant: a difference is an error of all processes, before one has worked with it.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from accelerate.utils import gather_object
from torch import distributed

from pipelines.errors import UserError

# Paths. They may differ between machines, and when a run is resumed: the digests in the run's facts tell whether the same things
# lie there.
PLACES = (
    *("data.train", "data.val", "data.test", "cache.paths", "cache.dir"),
    *("distill.teacher", "distill.teacher_classes"),
)
MAY_DIFFER = (*PLACES, "data.workers", "data.hw_decoder_load")
"settings that belong to a machine; where the last one changes pixels, the facts tell"
_LONGEST = timedelta(days=30)


def require_alike(values: Mapping[str, Any], what: str, advice: str) -> None:
    """UserError in all processes where one has another value of a name than process 0, or lacks it.

    what: begins the message, "the processes ..."; advice: ends it. All processes call it; a program of one does nothing.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    everyones = gather_object([dict(values)])
    for name in sorted(set().union(*everyones)):
        found = [own.get(name) for own in everyones]
        for rank, other in enumerate(found):
            if other != found[0]:
                raise UserError(
                    f"{what}: {name} is {_told(found[0])} in process 0, {_told(other)} in process {rank}; {advice}"
                )


def _told(value: Any) -> str:
    return json.dumps(value, default=str)


class Meeting:
    """Where all processes wait for each other, even for days: others give up after torch's 10 or 30 minutes.

    Made by all processes at once, before they go different ways. One that has ended is an error of those that wait.
    """

    def __init__(self) -> None:
        several = distributed.is_initialized() and distributed.get_world_size() > 1
        # Gloo beside NCCL, whose limit of time cannot be told from a device that hangs.
        self._group: Any = distributed.new_group(backend="gloo", timeout=_LONGEST) if several else None

    def wait(self) -> None:
        if self._group is not None:
            distributed.barrier(self._group)
