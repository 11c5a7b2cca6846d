"""What a network gives back, and how it is put into training mode.

A network of one head returns its logits [B, C], as torchvision's and timm's do. One that has more to say in training returns
`Outputs` there. Invariant: in eval mode every network returns logits [B, C] alone, the answer, so that evaluation, caches,
exports and online teachers need no case of their own; more only within `experts_told` (router.py), for evaluations.
Shapes: B batch, C classes, D features, E experts.
"""

from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """What an objective sees of one forward pass; None: the network does not produce this."""

    logits: Tensor
    "[B, C]: the answer; with several experts, their mean"
    features: Tensor | None = None
    "[B, D]: the input of the last layer; with several experts, that of each side by side"
    experts: Tensor | None = None
    "[B, E, C]: the logits of each expert"
    router: Tensor | None = None
    "[B, E - 1]: logits for going on to the next expert"
    used: Tensor | None = None
    "int64 [B]: how many experts answered; in eval mode, and only where it is asked for"


def outputs_of(returned: Tensor | Outputs) -> Outputs:
    """Bring what any network returns into one form."""
    return returned if isinstance(returned, Outputs) else Outputs(returned)


def set_training(network: nn.Module) -> None:
    """Put what is trained into training mode. A part whose parameters are all frozen (`requires_grad` false) stays in eval mode.

    Otherwise a frozen trunk would keep updating the running statistics of its batch norm, and answer differently afterwards.
    """
    network.train()
    for part in network.modules():
        if _is_frozen(part):
            part.eval()


def freeze_all_but(network: nn.Module, part: str) -> None:
    """Freeze all parameters outside of `part`, a submodule's name; KeyError where the network has no parameters there."""
    trained = {name for name, _ in network.named_parameters() if name.startswith(f"{part}.")}
    if not trained:
        raise KeyError(f"{type(network).__name__} has no part {part} with parameters")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def _is_frozen(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
