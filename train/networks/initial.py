"""Initial weights: those that model.init names, loaded into a freshly initialised network.

Owns the choice of the tensors that are taken, and the report of that; weights.py reads them. Invariant: a tensor is taken as a
whole, by name and shape, or stays as it was drawn, and every tensor that does not fit is in the report. Where only a part of the
network is to be trained, all others fit, and what they were trained on is what they get: other settings are refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from models import ModelSpec
from models.from_timm import published
from models.registry import TIMM_PREFIX
from pipelines.errors import UserError
from train.networks.info import ModelInfo
from train.networks.tensor_files import Tensors, check_kinds
from train.networks.weights import (
    Stored,
    build,
    fill,
    is_counter,
    misfits,
    read_finished,
    read_state,
    require_finite,
    weights_hash,
)
from train.settings import value_text
from train.watch.text import short_list

KEY = "model.init"
PUBLISHED = "timm"
"in place of a run or a file: the weights that timm publishes; a run of this name is ./runs/timm"
_LISTED = 8  # names on one line of the report


class Initial(NamedTuple):
    """The initial weights of a network."""

    weights: str
    "hash (weights.weights_hash) of all tensors that were read"
    report: list[str]
    "lines for the first screen"


def initialise(network: nn.Module, source: str, spec: ModelSpec, class_names: list[str]) -> Initial:
    """Take over what fits of the run, export or file of weights `source`, or of what timm publishes; UserError where nothing but
    a classifier does.

    A classifier of other classes stays as it was drawn, even one of equally many classes, where both sides name their classes; so
    does one of another head, whose weights mean something else.
    """
    stored = _published(spec) if source == PUBLISHED else read_state(source, KEY)
    drawn = network.state_dict()
    check_kinds(stored.state, drawn, f"{KEY}={source}")
    classifier = _classifier(drawn, spec)
    other_classes = stored.class_names is not None and stored.class_names != class_names
    other_head = stored.head is not None and stored.head != spec.head
    skipped = [name for name in drawn if name in classifier and name in stored.state and (other_classes or other_head)]
    there, own = ({n: t for n, t in state.items() if n not in skipped} for state in (stored.state, drawn))
    taken = {name: there[name] for name in own if name in there and there[name].shape == own[name].shape}
    wrong = {"of other classes" if other_classes else f"of a {stored.head} head": skipped} | misfits(there, own)
    lines = [f"{kind}: {short_list(names, _LISTED)}" for kind, names in wrong.items() if names]
    if all(name in classifier or is_counter(name) for name in taken):
        what = "nothing" if classifier.isdisjoint(taken) else "nothing but the classifier"
        raise UserError(f"{KEY}={source} fits model.name={spec.name} in {what}: {'; '.join(lines)}")
    require_finite(taken, f"{KEY}={source}")
    network.load_state_dict(drawn | taken)
    hashed = weights_hash(stored.state)
    return Initial(hashed, stored.notes + _report(source, hashed, drawn, taken, classifier) + lines)


def _published(spec: ModelSpec) -> Stored:
    """Those of timm's network of the same name; of our own, those that have torchvision's names and shapes are timm's too."""
    try:
        found = published(spec.name.removeprefix(TIMM_PREFIX))
    except ValueError as error:
        raise UserError(f"{KEY}={PUBLISHED}: {error}") from error
    trained = f"data.mean={found.mean} data.std={found.std}, images of {found.input_size} pixels"
    note = f"{KEY}={PUBLISHED}: {found.name}, trained with {trained}"
    return Stored(found.state, [], [note])  # whatever its classes are: not those of data.train


def initialise_all_but(
    network: nn.Module, part: str, source: str, spec: ModelSpec, class_names: list[str], seen: Mapping[str, Any]
) -> Initial:
    """Take everything but `part` over from the finished run or export `source`; UserError unless that is this network without it.

    part: a submodule's name, and an entry of ModelSpec that is None without it. seen: {setting: value} of what the network was
    trained to see: data.mean, data.std, data.recipe.size.
    """
    state, info = read_finished(source, KEY)
    origin, architecture = f"{KEY}={source}", info.spec.architecture
    if getattr(info.spec, part) is not None:
        raise UserError(f"{origin} is {architecture}, with a {part} already; give the run that it started from")
    try:
        replace(info.spec, **{part: getattr(spec, part)})
    except ValueError as error:
        raise UserError(f"{origin} is {architecture}; {error}") from error
    rest = replace(spec, **{part: None})
    _require_same(info, rest, class_names, seen, origin)
    drawn = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(f"{part}.")}
    fill(network, drawn | state, spec, origin)
    hashed, trained = weights_hash(state), sum(tensor.numel() for tensor in drawn.values())
    line = f"{origin}: {rest}, weights {hashed[:12]}, which stay as they are"
    return Initial(hashed, [line, f"trained are the {trained:,} parameters of its {part}"])


def _require_same(
    info: ModelInfo, rest: ModelSpec, class_names: list[str], seen: Mapping[str, Any], origin: str
) -> None:
    """UserError where the finished network is another than `rest`, knows other classes or was trained to see other images."""
    if info.class_names != class_names:
        raise UserError(f"{origin} was trained on other classes than those of data.train; give the records of that run")
    theirs = {"data.mean": info.mean, "data.std": info.std, "data.recipe.size": info.input_size}
    pairs = [(name, value, seen[name]) for name, value in theirs.items()]
    if info.spec.architecture != rest.architecture:
        own = vars(rest)
        pairs += [(f"model.{name}", value, own[name]) for name, value in vars(info.spec).items()]
    if differing := [f"{name}={value_text(there).replace(' ', '')}" for name, there, here in pairs if there != here]:
        raise UserError(
            f"{origin} is {info.spec.architecture}, trained by other settings than these, which must be the same; type "
            f"{' '.join(differing)}"
        )


def _report(source: str, hashed: str, drawn: Tensors, taken: Tensors, classifier: set[str]) -> list[str]:
    names = [name for name in drawn if not is_counter(name)]
    rest = {name for name in names if name not in taken}
    lines = [f"{KEY}={source}: {len(names) - len(rest)} of {len(names)} tensors taken, weights {hashed[:12]}"]
    if rest - classifier:
        lines.append(f"warning: {len(rest - classifier)} tensors besides the classifier stay as drawn from the seed")
    elif rest and not classifier.isdisjoint(taken):
        lines.append("warning: a part of the classifier was taken, the rest stays as drawn from the seed")
    elif rest:
        lines.append("the classifier stays as drawn from the seed")
    return lines


def _classifier(own: Tensors, spec: ModelSpec) -> set[str]:
    """The tensors whose shape depends on the number of classes, in any network."""
    wider = build(replace(spec, num_classes=spec.num_classes + 1), KEY).state_dict()
    return {name for name, tensor in own.items() if tensor.shape != wider[name].shape}
