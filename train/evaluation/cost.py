"""What an answer costs: the floating-point operations of a network for an image, and of one with routers for the mean image.

Owns the counting, by torch's FlopCounterMode: convolutions and matrix products, also those of cosine heads, with a multiply-add
counted as two operations; batch norm, activations, pooling and the like are not counted. Invariant: what is counted depends on
the network and the size of its images alone, and, with routers, on the shares of the images that the experts run on.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.experts import Experts
from models.router import Router, all_experts


class Operations(NamedTuple):
    """Of one forward pass of one image."""

    shared: int
    "of what every image goes through: of a network without routers, all"
    experts: list[int]
    "of each expert; empty without routers"
    routers: list[int]
    "of the router after each expert but the last"

    @property
    def without_routing(self) -> int:
        """Where all experts answer, and no router is asked."""
        return self.shared + sum(self.experts)

    def routed(self, shares: Sequence[float]) -> float:
        """The mean over images of which the share `shares[i]` is run on expert i, and on the router after it."""
        stages = [own + router for own, router in zip(self.experts, [*self.routers, 0], strict=True)]
        return self.shared + sum(share * stage for share, stage in zip(shares, stages, strict=True))

    def figures(self, shares: Sequence[float] | None) -> dict[str, int]:
        """`flops`, and for a network with routers `flops_routed`; shares: of the images that each expert ran on."""
        routed = {} if shares is None else {"flops_routed": round(self.routed(shares))}
        return {"flops": self.without_routing, **routed}


@torch.no_grad()
def operations(network: nn.Module, size: int, device: torch.device) -> Operations:
    """Count on a blank image [1, 3, size, size]. network: on the device and in eval mode, with nothing wrapped around it."""
    experts, router = getattr(network, "experts", None), getattr(network, "router", None)
    spent: dict[nn.Module, list[int]] = {}
    with ExitStack() as stack:
        stack.enter_context(all_experts(network))
        # Attention as matrix products: of torch's other forms of it the counter knows only those of GPUs.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        if isinstance(experts, Experts) and isinstance(router, Router):
            for part in (*experts, router):
                own = spent[part] = []
                stack.enter_context(_counted(part, counter, own))
        blank = torch.zeros(1, 3, size, size, device=device)
        network.forward(blank)  # the plain method: within compiled code nothing can be counted
        total = counter.get_total_flops()
    routers = spent.pop(router, []) if isinstance(router, Router) else []
    of_experts = [sum(own) for own in spent.values()]
    return Operations(total - sum(of_experts) - sum(routers), of_experts, routers)


def _counted(part: nn.Module, counter: FlopCounterMode, spent: list[int]) -> ExitStack:
    """While this is open, the operations of each call of `part` are appended to `spent`."""
    before: list[int] = []
    hooks = ExitStack()
    for handle in (
        part.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops())),
        part.register_forward_hook(lambda *_: spent.append(counter.get_total_flops() - before.pop())),
    ):
        hooks.callback(handle.remove)
    return hooks
