"""What a cache is a cache of, as nested JSON, and whether two of them agree.

Invariant: two caches with equal identity hold the same targets. Nothing in it depends on a host, a time or a path.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pipelines.finish import FINISH_VERSION
from pipelines.records import Records
from pipelines.resample import RESAMPLE_VERSION
from pipelines.views import VIEWS_VERSION, Recipe

FORMAT = 1
# Fields that change the pixels of a view but not which view it is: cache.pixels=close lets them differ, with a note.
PIXEL_FIELDS = ("backend", "versions.resample")
# Checked by comparing rows, so that a subset or a re-ordered list may use the cache of its superset.
ROW_FIELDS = ("dataset.digest",)


def view_identity(records: Records, recipe: Recipe, data_seed: int, backend: str) -> dict[str, Any]:
    """The part of an identity that a student knows: which pixels belong to (key, view)."""
    return {
        "dataset": {"digest": records.digest, "class_names": list(records.class_names)},
        "recipe": recipe.identity(),
        "data_seed": data_seed,
        "backend": backend,
        "versions": {"views": VIEWS_VERSION, "resample": RESAMPLE_VERSION, "finish": FINISH_VERSION},
    }


def cache_identity(view: dict[str, Any], teacher: dict[str, Any], codec: str, batch: int) -> dict[str, Any]:
    """A whole identity; `teacher` says which weights in which form gave the logits, `batch` the rows per forward."""
    return {"format": FORMAT, "teacher": teacher, "codec": codec, "batch": batch} | view


def identity_bytes(identity: dict[str, Any]) -> bytes:
    """The one JSON spelling of an identity, as written to identity.json."""
    return (json.dumps(identity, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def identity_hash(identity: dict[str, Any]) -> bytes:
    """SHA-256 of `identity_bytes`; the first 12 hex digits end a cache folder's name."""
    return hashlib.sha256(identity_bytes(identity)).digest()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def differences(cached: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Dotted field -> 'cache A, here B' for every field of `wanted` that the cache does not hold with an equal value."""
    have = dict(_flat(cached))
    out = {}
    for field, want in _flat(wanted):
        got = have.get(field, "nothing")
        if got != want:
            out[field] = f"cache {_short(got, want)}, here {_short(want, got)}"
    return out


def _short(value: Any, other: Any) -> str:
    """A value for one line; of two long lists only the first place where they part."""
    if isinstance(value, list) and isinstance(other, list) and len(value) > 4:
        if len(value) != len(other):
            return f"{len(value)} entries"
        at = next((i for i, (a, b) in enumerate(zip(value, other, strict=True)) if a != b), 0)
        return f"[{at}]={value[at]!r}"
    return repr(value)
