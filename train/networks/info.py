"""What users of a finished network need to know about it: the content of model.json, as a type.

A run's model.json says how the network was trained; an export's (export.py) also what was measured. Invariant: `to_json` writes
what `of` reads, under the same names.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from models import ModelSpec
from pipelines.augment.finish import check_normalisation

_Number = (int, float)
# The type of each entry that is read, in a list that of its elements.
_KINDS: dict[str, Any] = {
    **{"architecture": str, "precision": str, "method": str, "kind": str, "input_size": int, "grey_bits": int},
    **{"class_names": [str], "train_counts": [int], "mean": [_Number], "std": [_Number], "teachers": [dict]},
    **{"recipe": dict, "evaluation_recipe": dict, "training": dict, "evaluation": dict, "programs": dict},
}


def _is(kind: Any, value: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(kind[0], one) for one in value)
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    architecture: str
    "of the network: ModelSpec.architecture"
    class_names: list[str]
    "class names, in the order of the outputs"
    train_counts: list[int] = field(default_factory=list)
    "number of training images of each class"
    mean: list[float]
    "per-channel mean of the pixels, 0..1"
    std: list[float]
    input_size: int
    "side of the square views that it was trained on, in pixels"
    grey_bits: int = 16
    "the bits that 16-bit grey was taken to use when the training images were converted"
    recipe: dict[str, Any] = field(default_factory=dict)
    "the recipe of the training (data.recipe)"
    precision: str = ""
    ema_decay: float | None = None
    method: str = ""
    teachers: list[dict[str, str]] = field(default_factory=list)
    "source, architecture and weights' hash of each"
    init: dict[str, Any] | None = None
    "source and weights' hash of what training started from, of a checkpoint also its step; None: random weights"
    kind: str = "raw"
    "raw: the last trained weights; ema: their moving average; best: those of the best evaluation"
    name: str = ""
    "only in an export, as all that follows"
    weights_hash: str = ""
    evaluation_recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    "what run.json says about the training"
    evaluation: dict[str, Any] = field(default_factory=dict)
    "the measured figures, and what measured them"
    programs: dict[str, Any] = field(default_factory=dict)
    "{file: its digest, what it takes, and how far its logits are from the network's} of programs that were asked for"

    @classmethod
    def of(cls, json: dict[str, Any]) -> "ModelInfo":
        """From model.json; entries unknown to this version are ignored, missing ones and those of other types a TypeError.

        ValueError for an architecture that is not understood, and for a mean or std outside of its range.
        """
        if not isinstance(json, dict):
            raise TypeError(f"an object expected, not {json!r:.40}")
        info = cls(**{name: value for name, value in json.items() if name in cls.__dataclass_fields__})
        for name, kind in _KINDS.items():
            if not _is(kind, getattr(info, name)):
                raise TypeError(f"{name} is {getattr(info, name)!r:.40}")
        ModelSpec.parse(info.architecture, len(info.class_names))
        check_normalisation(info.mean, info.std, "")
        return info

    @property
    def view_size(self) -> int:
        """The side of the views that were evaluated, in pixels; of a run that of its training."""
        return self.evaluation_recipe.get("size", self.input_size)

    @property
    def spec(self) -> ModelSpec:
        """The network without its weights."""
        return ModelSpec.parse(self.architecture, len(self.class_names))

    @property
    def is_export(self) -> bool:
        """Whether it belongs to an export rather than to a run."""
        return bool(self.training)

    def to_json(self) -> dict[str, Any]:
        """For model.json. For a run, which holds every kind of weights, without the entries that only an export has."""
        only_of_exports = ("kind", "name", "weights_hash", "evaluation_recipe", "training", "evaluation", "programs")
        left_out = (() if self.programs else ("programs",)) if self.is_export else only_of_exports
        return {name: value for name, value in asdict(self).items() if name not in left_out}
