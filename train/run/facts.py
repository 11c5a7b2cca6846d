"""The facts of a run that its settings leave open: determined once, stored in run.json, compared by every later session.

Owns the names under which facts are stored, and the message where one has changed. Invariant: a run whose facts differ from
those that it was started with does not continue.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import read_object
from train.run.checkpoint import has_trained_nothing

SPLITS = ("train", "val", "test")
_TOLD = {
    "pixels": "was started on pixels from {}, here they come from {} and would differ",
    "tau": "was started with distill.tau={}, chosen from its cache; this cache gives {}",
    "precision": "was started in {}, here precision=auto means {}",
    "teachers": "was started with other teachers: their weights had the hashes {}, they have {} now",
    "caches": "was started with other caches, or none: their identities had the hashes {}, they have {} now",
    "cache_weights": "was started with its caches weighted {}, in the order of their identities; here they are weighted {}: give "
    "cache.paths and cache.weights in the same order as each other",
    "init": "was started from weights with the hash {}; model.init holds others now, {}",
    **{
        f"{split}_stored": f"was started on data.{split} stored otherwise (another size or encoding of the same images): the "
        "digest was {}, it is {} now"
        for split in SPLITS
    },
}
_RECORDS = "was started on other records: data.{name} had the digest {{}}, it has {{}} now"


def _stored(folder: Path) -> dict[str, Any]:
    """The facts in run.json; none where there is no run, or one that has trained nothing."""
    path = folder / "run.json"
    return read_object(path, facts=dict)["facts"] if path.exists() and not has_trained_nothing(folder) else {}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a run; None: an earlier version of the program did not store this fact."""

    backend: str | None = None
    "the backend that `auto` meant when the run began"
    pixels: str | None = None
    "what decides the pixels of a view (backends/pixels.py)"
    tau: float | None = None
    "the temperature, given or chosen from a cache"
    init: str | None = None
    "hash of the weights that model.init gave"
    resumed: dict[str, Any] | None = None
    """source, step and weights' hash of the checkpoint that `resume=PATH` gave; not compared, as a run without a checkpoint of
    its own begins again from whatever `resume` names then"""
    precision: str | None = None
    "fp32, bf16 or fp16"
    teachers: list[str] | None = None
    "hashes of the teachers' weights, sorted"
    caches: list[str] | None = None
    "hashes of the caches' identities, sorted; empty: the teacher was run online"
    cache_weights: list[float] | None = None
    "the weight of each of these caches, in the same order; None: all alike"
    digests: dict[str, str] = field(default_factory=dict)
    "split -> digest of its original images"
    stored: dict[str, str] = field(default_factory=dict)
    "split -> digest of its stored bytes"

    @classmethod
    def of(cls, json: dict[str, Any]) -> "Facts":
        """Read the form that run.json holds."""
        plain = {name: json.get(name) for name in cls.__dataclass_fields__ if name not in ("digests", "stored")}
        digests = {split: json[split] for split in SPLITS if split in json}
        stored = {split: json[f"{split}_stored"] for split in SPLITS if f"{split}_stored" in json}
        return cls(**plain, digests=digests, stored=stored)

    @classmethod
    def of_run(cls, folder: Path) -> "Facts":
        """The facts that earlier sessions of the run in `folder` have stored; empty where there is no run."""
        return cls.of(_stored(folder))

    def to_json(self) -> dict[str, Any]:
        """To the form in run.json: flat, a split's digest under the split's name."""
        plain = asdict(self)
        digests, stored = plain.pop("digests"), plain.pop("stored")
        return plain | digests | {f"{split}_stored": digest for split, digest in stored.items()}

    def require_same(self, folder: Path) -> None:
        """UserError where an earlier session of the run in `folder` stored a different fact."""
        before = _stored(folder)
        for name, value in self.to_json().items():
            if name != "resumed" and before.get(name, value) != value:
                what = _TOLD.get(name, _RECORDS.format(name=name)).format(before[name], value)
                raise UserError(
                    f"run {folder} {what}; go on where it was started, or give another run=NAME (repaired or reconverted "
                    "records start a new run)"
                )
