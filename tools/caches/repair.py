"""What `tools/logits.py repair` does and prints: bad files are deleted, and the command is named that writes them again."""

import sys

from tools.caches.check import Survey, remove, require_own_identity
from tools.caches.sessions import rewrite_command, sessions_of
from tools.caches.verify import checked
from train.watch.text import counted


def repair(found: Survey) -> None:
    """Delete bad files and old leftovers; UserError, and nothing deleted, when all blocks are those of another cache."""
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
