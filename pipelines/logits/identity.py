"""The identity of a cache: what its targets depend on, as nested JSON; and the comparison of two identities.

Invariant: two caches with equal identity hold the same targets. Nothing in it depends on a host, a time or a path.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from pipelines.augment import geometry, transforms
from pipelines.augment.finish import FINISH_VERSION
from pipelines.augment.recipe import Recipe
from pipelines.augment.resample import RESAMPLE_VERSION
from pipelines.backends.pixels import PixelSource
from pipelines.records.reader import Records

FORMAT = 2
_HASH = re.compile("[0-9a-f]{40,}")
# Fields that change the pixels of a view but not which view it is: cache.pixels=close lets them differ, with a note.
PIXEL_FIELDS = ("backend", "versions.resample", "size_rule")


def view_identity(
    records: Records, recipe: Recipe, data_seed: int, pixels: PixelSource | str | None = None
) -> dict[str, Any]:
    """The part of an identity that a student knows: the pixels that belong to (key, view).

    pixels: their source, or its text, such as "reference"; None = not yet known: the entry is left out and not compared.
    """
    source = {} if pixels is None else {"backend": str(pixels)}
    return source | {
        "dataset": {"digest": records.digest, "class_names": list(records.class_names)},
        "recipe": transforms.identity(recipe),
        "data_seed": data_seed,
        "size_rule": _size_rule(records),
        "versions": {"views": geometry.VERSIONS[recipe.crop], "resample": RESAMPLE_VERSION, "finish": FINISH_VERSION},
    }


def _size_rule(records: Records) -> str:
    """How images were stored: the digest is that of the originals, and a smaller or coarser copy has other pixels."""
    encoding = records.manifest["made"].get("encoding")
    return "pixels" if encoding is None else ", ".join(f"{name} {value}" for name, value in sorted(encoding.items()))


def cache_identity(view: dict[str, Any], teacher: dict[str, Any], codec: str, batch: int) -> dict[str, Any]:
    """A whole identity; `teacher` says which weights gave the logits, and in which form; `batch` is the rows per forward pass."""
    return {"format": FORMAT, "teacher": teacher, "codec": codec, "batch": batch} | view


def identity_bytes(identity: dict[str, Any]) -> bytes:
    """The canonical JSON of an identity, as written to identity.json."""
    return (json.dumps(identity, indent=1, sort_keys=True) + "\n").encode("ascii")


def identity_hash(identity: dict[str, Any]) -> bytes:
    """SHA-256 of `identity_bytes`; the first 12 hex digits end a cache folder's name."""
    return hashlib.sha256(identity_bytes(identity)).digest()


def fields_of(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted field, value) of nested entries."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields_of(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def differences(cached: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Dotted field -> 'cache A, here B' for every field that differs in the top-level entries of `wanted`.

    A field that only one of them has counts as different: a recipe names a transform only if it is on.
    """
    have, want = (dict(fields_of(side)) for side in ({name: cached.get(name) for name in wanted}, wanted))
    out = {}
    for field in sorted(have | want):
        a, b = have.get(field), want.get(field)
        if a != b:
            out[field] = f"cache {_short(a, b)}, here {_short(b, a)}"
    return out


def distinctions(identities: list[dict[str, Any]]) -> list[str]:
    """One line per identity: its values of the fields that are not equal in all of them; hashes are shortened."""
    flat = [dict(fields_of(identity)) for identity in identities]
    fields = [
        field for field in sorted(set().union(*flat)) if any(one.get(field) != flat[0].get(field) for one in flat)
    ]
    return [", ".join(f"{field} {_brief(one.get(field))}" for field in fields) for one in flat]


def _brief(value: Any) -> str:
    """A text whole, unless it is a hash; architectures of several experts differ only in their ends."""
    return value if isinstance(value, str) and not _HASH.fullmatch(value) else str(value)[:12]


def _short(value: Any, other: Any) -> str:
    """A value in short; for two long lists, only the first place where they differ."""
    if isinstance(value, list) and isinstance(other, list) and len(value) > 4:
        if len(value) != len(other):
            return f"{len(value)} entries"
        at = next((i for i, (a, b) in enumerate(zip(value, other, strict=True)) if a != b), 0)
        return f"[{at}]={value[at]!r}"
    return "nothing" if value is None else repr(value)
