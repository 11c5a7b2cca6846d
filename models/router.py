"""The routers of a network with several experts: after each expert, whether an image needs the next (RIDE, arXiv 2010.01809).

Owns the routers, and how an image goes from expert to expert in eval mode; experts.py owns the experts. Invariant: the answer for
an image is the mean of the logits of the experts up to the first after which its router says no, however that is computed: an
expert runs on the images that go on to it alone; or, where shapes must not depend on the images (torch.compile, torch.export),
on all, and its logits are left out for the others.
Shapes: B batch, C classes, D features of one expert, E experts.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.outputs import Outputs

_CODE = 16  # of an expert's features; that of RIDE's code


class Router(nn.Module):
    """The routers of E = `experts` experts: a code of the features for each expert but the last, and one linear unit for all.

    features: D; choices: the number of largest logits that the unit sees, at most C. Initial weights are torch's.
    """

    def __init__(self, experts: int, features: int, choices: int) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Linear(features, _CODE) for _ in range(experts - 1))
        self.unit = nn.Linear(choices + _CODE, 1)
        self.choices = choices
        self.skips = True  # whether, in eval mode, experts are spared the images that do not need them
        self.tells = False  # whether, in eval mode, the network gives Outputs with `used`

    def forward(self, expert: int, mean_BC: Tensor, features_BD: Tensor) -> Tensor:
        """[B]: logits for going on after `expert`, given the mean logits of the experts up to it, and its features.

        float32 or wider, also under autocast: a rounded logit near 0 would decide otherwise.
        """
        wide = torch.promote_types(mean_BC.dtype, torch.float32)
        with torch.autocast(mean_BC.device.type, enabled=False):
            code = F.relu(self.codes[expert](F.normalize(features_BD.to(wide))))
            largest = mean_BC.to(wide).topk(self.choices, dim=1).values
            return self.unit(torch.cat([largest, code], dim=1))[:, 0]

    def after_each(self, experts_BEC: Tensor, features: Sequence[Tensor]) -> Tensor:
        """[B, E - 1]: logits for going on after each expert but the last, for all images, as they are trained."""
        experts = experts_BEC.to(torch.promote_types(experts_BEC.dtype, torch.float32)).unbind(1)
        # As in use, one after the other: `cumsum` is refused on a GPU with deterministic=true, too.
        sums = itertools.accumulate(experts[: len(self.codes)])
        return torch.stack([self(i, sum_BC / (i + 1), features[i]) for i, sum_BC in enumerate(sums)], dim=1)

    def answer(self, experts: Sequence[nn.Module], shared: Tensor) -> Outputs:
        """logits[B, C], the mean over the experts used, and `used`; shared: what the trunk gives."""
        sums, used = self._skipping(experts, shared) if self._may_skip() else self._masking(experts, shared)
        return Outputs(sums / used[:, None], used=used)

    def _may_skip(self) -> bool:
        """Whether the number of images on which an expert runs may depend on the images."""
        return self.skips and not torch.compiler.is_compiling()  # compiling: also while torch.export runs

    def _skipping(self, experts: Sequence[nn.Module], shared: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of the logits of the experts used, float32 or wider [B, C]; their number, int64 [B]); waits for the device."""
        features, logits = experts[0](shared)
        running = sums = logits.to(torch.promote_types(logits.dtype, torch.float32))
        used = torch.ones_like(sums[:, 0], dtype=torch.int64)
        rows = torch.arange(len(shared), device=shared.device)
        with _any_number_of_images():
            for i, expert in enumerate(experts[1:], 1):
                on = self(i - 1, running / i, features) > 0  # the sigmoid is above 0.5
                rows, running = rows[on], running[on]
                if not len(rows):
                    break
                features, logits = expert(shared if len(rows) == len(shared) else shared[rows])
                running = running + logits
                sums, used = sums.index_copy(0, rows, running), used.index_fill(0, rows, i + 1)
        return sums, used

    def _masking(self, experts: Sequence[nn.Module], shared: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with every expert on every image."""
        features, logits = experts[0](shared)
        sums = logits.to(torch.promote_types(logits.dtype, torch.float32))
        used = torch.ones_like(sums[:, 0], dtype=torch.int64)
        going = torch.ones_like(used, dtype=torch.bool)
        for i, expert in enumerate(experts[1:], 1):
            going = going & (self(i - 1, sums / i, features) > 0)  # of the others the sum is short, and they stay out
            features, logits = expert(shared)
            sums = torch.where(going[:, None], sums + logits, sums)
            used = used + going
        return sums, used


def experts_of_routers(network: nn.Module) -> int | None:
    """The number of experts of a network with routers; None of one without."""
    router = getattr(network, "router", None)
    return len(router.codes) + 1 if isinstance(router, Router) else None


@contextmanager
def _any_number_of_images() -> Iterator[None]:
    """cuDNN does not time its algorithms here: it would do so anew for each number of images."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def experts_told(network: nn.Module) -> Iterator[None]:
    """Within it a network with routers gives `Outputs` with `used` in eval mode; other networks give what they always do."""
    with _switched(network, "tells", True):
        yield


@contextmanager
def all_experts(network: nn.Module) -> Iterator[None]:
    """Within it every expert runs on every image in eval mode, so that each can be looked at; the answers stay as they are."""
    with _switched(network, "skips", False):
        yield


@contextmanager
def _switched(network: nn.Module, name: str, value: bool) -> Iterator[None]:
    """Within it the attribute `name` of the network's routers has this value."""
    routers = [part for part in network.modules() if isinstance(part, Router)]
    before = [getattr(router, name) for router in routers]
    for router in routers:
        setattr(router, name, value)
    try:
        yield
    finally:
        for router, own in zip(routers, before, strict=True):
            setattr(router, name, own)
