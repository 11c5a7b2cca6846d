"""The fixed part of a cache folder: identity.json, index.bin and done.json; and finding the folder of a wanted cache.

Owns opening and comparing identities, field by field. Invariant: what is opened agrees with its own hashes.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.backends.pixels import PixelSource
from pipelines.errors import UserError, where_to_look
from pipelines.files import read_json_text, write_bytes_atomic
from pipelines.logits.blocks import (
    BlockKind,
)
from pipelines.logits.codec import TEMPERATURES
from pipelines.logits.identity import FORMAT, PIXEL_FIELDS, differences, distinctions, identity_bytes, identity_hash
from pipelines.records.layout import ROW


class Opened(NamedTuple):
    """The verified fixed part of a cache folder."""

    identity: dict[str, Any]
    rows: np.ndarray
    kind: BlockKind


class Wanted(NamedTuple):
    """What a run needs: a cache of these pixels, of at least these samples and, if the run names a teacher, of that teacher.

    view: `view_identity` of the data at hand; rows: its ROW[N]; weights: `weights_hash` of the teacher, or None.
    """

    view: dict[str, Any]
    rows: np.ndarray
    weights: str | None = None

    def with_pixels(self, source: PixelSource) -> "Wanted":
        """The same, of pixels from this source."""
        return self._replace(view=self.view | {"backend": str(source)})


def open_folder(folder: Path) -> Opened:
    """Read identity.json and index.bin, complete or not; UserError when either is damaged or they disagree."""
    identity, text = read_json_text(folder / "identity.json")
    if not isinstance(identity, dict) or identity_bytes(identity) != text:
        raise UserError(
            f"{folder}/identity.json was edited or damaged; write the cache again with train/cache_logits.py"
        )
    if identity.get("format") != FORMAT:
        raise UserError(
            f"{folder} has cache format {identity.get('format')}, this version reads {FORMAT}; write it again"
        )
    digest = identity_hash(identity)
    if not folder.resolve().name.endswith(digest.hex()[:12]):
        raise UserError(
            f"{folder}: its name should end in {digest.hex()[:12]}, the hash of its identity.json; "
            "one of the two was changed: rename the folder back, or write the cache again"
        )
    try:
        index = (folder / "index.bin").read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {folder}/index.bin: {error.strerror}; run train/cache_logits.py again") from error
    digest_of_rows = hashlib.blake2b(index, digest_size=16).hexdigest()
    if len(index) % ROW.itemsize or digest_of_rows != identity["dataset"]["digest"]:
        raise UserError(f"{folder}/index.bin is damaged or of another dataset; write the cache again")
    kind = BlockKind(
        identity_hash=digest,
        index_hash=hashlib.sha256(index).digest(),
        classes=len(identity["dataset"]["class_names"]),
        codec=identity["codec"],
    )
    return Opened(identity, np.frombuffer(index, ROW), kind)


def write_done(folder: Path, kind: BlockKind, views: int, certificate: np.ndarray) -> None:
    """Declare `views` views complete; certificate: the sum over their blocks."""
    done = {
        "identity": kind.identity_hash.hex(),
        "views": views,
        "temperatures": list(TEMPERATURES),
        "certificate": certificate.tolist(),
    }
    write_bytes_atomic(folder / "done.json", identity_bytes(done | {"sha256": identity_hash(done).hex()}))


def read_done(folder: Path, kind: BlockKind) -> tuple[int, np.ndarray]:
    """(complete views, certificate float64 [T, 3]) of a cache; UserError when it is unfinished or done.json damaged."""
    if not (folder / "done.json").is_file():
        raise UserError(f"{folder} is unfinished; run train/cache_logits.py again with the same settings")
    done, text = read_json_text(folder / "done.json")
    # Compared byte for byte, because a flipped bit may leave an equal value: 1e-05, 1E-05.
    as_written = isinstance(done, dict) and identity_bytes(done) == text
    seal = done.pop("sha256", None) if as_written else None
    if seal != identity_hash(done).hex() or done["identity"] != kind.identity_hash.hex():
        raise UserError(
            f"{folder}/done.json is damaged, edited or of another cache; run train/cache_logits.py again to rewrite it"
        )
    return done["views"], np.array(done["certificate"], np.float64)


def misfits(opened: Opened, wanted: Wanted) -> dict[str, str]:
    """Dotted field -> difference, for every field in which a cache differs from what is wanted.

    The digest alone may differ when every wanted sample has an equal row: a subset may use its superset's cache, unless views
    are mixed, whose partners are drawn from all samples.
    """
    found = differences(opened.identity, wanted.view)
    if "dataset.digest" in found:
        missing = _missing_rows(opened.rows, wanted.rows)
        if not missing and "mix" in opened.identity["recipe"]:
            missing = (
                f"{len(wanted.rows)} of its {len(opened.rows)} samples, and partners of mixed views are drawn from all"
            )
        found["dataset.digest"] = missing
    weights = opened.identity["teacher"]["weights"]
    if wanted.weights not in (None, weights):
        found["teacher.weights"] = f"another teacher, cache {weights[:12]}, here {str(wanted.weights)[:12]}"
    return {name: text for name, text in found.items() if text}


def _missing_rows(have: np.ndarray, rows: np.ndarray) -> str:
    """Which of `rows` have no equal in `have` (both ROW, sorted by key), in words; "" when all do."""
    places = np.searchsorted(have["key"], rows["key"]).clip(0, len(have) - 1)
    for name in ROW.names or ():
        cached, here = have[name][places], rows[name]
        wrong = np.flatnonzero(cached != here)
        if len(wrong):
            at = wrong[0]
            what = "is not in it" if name == "key" else f"has {name} {cached[at]} in it, here {here[at]}"
            return f"another dataset, sample {rows['key'][at]} {what} ({len(wrong)} of {len(rows)} samples differ so)"
    return ""


def find_cache(path: str | Path, wanted: Wanted | None = None) -> Path:
    """The cache folder at `path`: itself, or the only cache inside it, or the only one inside it that is `wanted`."""
    folder = Path(path)
    if (folder / "identity.json").is_file():
        return folder
    inside = sorted(place.parent for place in folder.glob("*/identity.json"))
    if len(inside) == 1:
        return inside[0]
    if not inside:
        write = "write one with `python train/cache_logits.py CONFIG distill.teacher=RUN`"
        there = where_to_look(folder) if not folder.exists() else []
        if (folder / "config.yaml").is_file():
            there = ["this is the folder of a run"]
        raise UserError("; ".join([f"no logit cache at {folder}", *there, write]))
    fitting: dict[Path, dict[str, Any]] = {}
    others = []
    for place in inside:
        try:
            opened = open_folder(place)
        except UserError as error:
            others.append(str(error))
            continue
        wrong = misfits(opened, wanted) if wanted else {}
        refused = [f"{name}: {text}" for name, text in wrong.items() if name not in PIXEL_FIELDS]
        if refused:
            others.append(f"{place.name} ({'; '.join(refused)})")
        else:
            fitting[place] = opened.identity
    if len(fitting) == 1:
        return next(iter(fitting))
    if not fitting:
        raise UserError(
            f"cache.paths: none of the {len(inside)} caches in {folder} is a cache of this run: {'; '.join(others)}. "
            "Change these settings, or write a cache for them with train/cache_logits.py"
        )
    lines = zip(fitting, distinctions(list(fitting.values())), strict=True)
    listed = "; ".join(f"{place.name} ({line})" for place, line in lines)
    raise UserError(f"cache.paths: {len(fitting)} caches in {folder} would do: {listed}; name one of them")
