"""Several experts in one network (RIDE, arXiv 2010.01809): stages and heads of their own over a trunk that they share.

Owns how experts are run and put together; resnet.py and resnet_cifar.py own their stages, and where the trunk ends, router.py
which experts an image needs, in a network with routers. Invariant: the answer is the mean of the experts' logits, and no expert
sees another.

The experts run one after the other. One grouped form of them (convolutions of E groups, a batch norm of all channels) has a
third to a sixth of the launches, but on a CPU (two cores, one thread, fp32, forward and backward) it was slower: the loop took
0.88 and 0.87 of its time for 3 and 6 experts of ResNet-32 at batch 128, 0.91 and 0.88 for those of ResNet-50 at batch 8.
tests/studies/experts.py measures this, also on a GPU (--device cuda), where it has not been measured.
Shapes: B batch, C classes, D features of one expert, E experts.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.heads import Head
from models.outputs import Outputs
from models.router import Router


class Form(NamedTuple):
    """In which form a network is built, for the networks that have more than the plain one."""

    head: Head = nn.Linear
    "makes the last layer"
    experts: int | None = None
    "None: no experts, the plain network"
    width: float = 0.75
    "share of the plain width that the experts' stages have"
    router: int | None = None
    "how many of the largest logits a router sees; None: no routers, all experts answer"

    def widths(self, *plain: int) -> list[int]:
        """The widths of an expert's stages, in whole channels, for those of the plain network."""
        return [round(width * self.width) for width in plain]

    def make_router(self, features: int) -> Router | None:
        """The routers, for experts of so many features; None without."""
        return None if self.router is None else Router(self.experts or 0, features, self.router)


PLAIN = Form()


class Expert(nn.Module):
    """stages: by the names that they have in the plain network; fc: the head."""

    def __init__(self, stages: Mapping[str, nn.Module], fc: nn.Module) -> None:
        super().__init__()
        self.stages = nn.Sequential(OrderedDict(stages))
        self.fc = fc

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """(features[B, D], logits[B, C]) of what the trunk gives."""
        features = torch.mean(self.stages(shared), dim=(2, 3))
        return features, self.fc(features)


class Experts(nn.ModuleList):
    """`count` experts as `make` builds them, each with initial weights of its own."""

    def __init__(self, count: int, make: Callable[[], Expert]) -> None:
        super().__init__(make() for _ in range(count))

    def heads(self) -> list[nn.Module]:
        """The last layer of each expert."""
        return [expert.get_submodule("fc") for expert in self]

    def forward(self, shared: Tensor, router: Router | None = None) -> Outputs:
        """What all of them say, given what the trunk gives: logits[B, C], features[B, E * D] side by side, experts[B, E, C].

        With a router also its logits [B, E - 1].
        """
        features, logits = zip(*(expert(shared) for expert in self), strict=True)
        experts = torch.stack(logits, dim=1)
        wide = torch.promote_types(experts.dtype, torch.float32)  # under autocast the mean would be rounded once more
        going_on = None if router is None else router.after_each(experts, features)
        return Outputs(experts.mean(1, dtype=wide), torch.cat(features, dim=1), experts, going_on)

    def answer(self, shared: Tensor, router: Router | None) -> Tensor | Outputs:
        """The answer in eval mode: logits[B, C], of all experts or of those that the router asks for (models/router.py)."""
        if router is None:
            return self(shared).logits
        answered = router.answer(list(self), shared)
        return answered if router.tells else answered.logits
