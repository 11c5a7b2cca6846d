"""What made.json tells of the sessions that wrote a cache, and the command that writes what is missing.

No other part of a cache depends on the file, so one that is missing or damaged counts as one without sessions.
"""

import shlex
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import read_json
from tools.caches.check import Survey, to_check

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """What made.json says of the sessions that wrote a cache; nothing when it is missing or damaged."""
    try:
        sessions = read_json(folder / "made.json")["sessions"]
        return [session for session in sessions if isinstance(session, dict)]
    except (UserError, KeyError, TypeError):  # `verify` says what is wrong with it
        return []


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
