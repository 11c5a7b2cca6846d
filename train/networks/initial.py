"""Initial weights: those that model.init names, loaded into a freshly initialised network.

Owns the choice of the tensors that are taken, and the report of that; weights.py reads them. Invariant: a tensor is taken as a
whole, by name and shape, or stays as it was drawn, and every tensor that does not fit is in the report.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import nn

from models import ModelSpec
from pipelines.errors import UserError
from train.networks.tensor_files import Tensors, check_kinds
from train.networks.weights import build, is_counter, misfits, read_state, require_finite, weights_hash
from train.watch.text import short_list

KEY = "model.init"
_LISTED = 8  # names on one line of the report


class Initial(NamedTuple):
    """The initial weights of a network."""

    weights: str
    "hash (weights.weights_hash) of all tensors that were read"
    report: list[str]
    "lines for the first screen"


def initialise(network: nn.Module, source: str, spec: ModelSpec, class_names: list[str]) -> Initial:
    """Take over what fits of the run, export or file of weights `source`; UserError where nothing but a classifier does.

    A classifier of other classes stays as it was drawn, even one of equally many classes, where both sides name their classes.
    """
    stored, drawn = read_state(source, KEY), network.state_dict()
    check_kinds(stored.state, drawn, f"{KEY}={source}")
    classifier = _classifier(drawn, spec)
    other_classes = stored.class_names is not None and stored.class_names != class_names
    skipped = [name for name in drawn if name in classifier and name in stored.state and other_classes]
    there, own = ({n: t for n, t in state.items() if n not in skipped} for state in (stored.state, drawn))
    taken = {name: there[name] for name in own if name in there and there[name].shape == own[name].shape}
    wrong = {"of other classes": skipped} | misfits(there, own)
    lines = [f"{kind}: {short_list(names, _LISTED)}" for kind, names in wrong.items() if names]
    if all(name in classifier or is_counter(name) for name in taken):
        what = "nothing" if classifier.isdisjoint(taken) else "nothing but the classifier"
        raise UserError(f"{KEY}={source} fits model.name={spec.name} in {what}: {'; '.join(lines)}")
    require_finite(taken, f"{KEY}={source}")
    network.load_state_dict(drawn | taken)
    hashed = weights_hash(stored.state)
    return Initial(hashed, stored.notes + _report(source, hashed, drawn, taken, classifier) + lines)


def _report(source: str, hashed: str, drawn: Tensors, taken: Tensors, classifier: set[str]) -> list[str]:
    names = [name for name in drawn if not is_counter(name)]
    rest = {name for name in names if name not in taken}
    lines = [f"{KEY}={source}: {len(names) - len(rest)} of {len(names)} tensors taken, weights {hashed[:12]}"]
    if rest - classifier:
        lines.append(f"warning: {len(rest - classifier)} tensors besides the classifier stay as drawn from the seed")
    elif rest:
        lines.append("the classifier stays as drawn from the seed")
    return lines


def _classifier(own: Tensors, spec: ModelSpec) -> set[str]:
    """The tensors whose shape depends on the number of classes, in any network."""
    wider = build(replace(spec, num_classes=spec.num_classes + 1), KEY).state_dict()
    return {name for name, tensor in own.items() if tensor.shape != wider[name].shape}
