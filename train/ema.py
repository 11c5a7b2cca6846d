"""An exponential moving average of the weights, kept beside the trained weights.

Owns the average and its arithmetic; the loop decides when it is evaluated and saved. Batch-norm statistics are averaged
like weights, counters are copied. Invariant: training is bit for bit the same with and without an average.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(kw_only=True)
class EmaConfig:
    decay: float | None = None
    "decay of the weights' moving average at each optimizer step, for example 0.9998; null = no average"
    warmup: bool = True
    "a smaller decay in the beginning: at step n, counted from 1, at most (1 + n) / (10 + n)"

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 < self.decay < 1:
            raise ValueError(f"ema.decay={self.decay}: must be between 0 and 1, or null for no average")


class Ema:
    """mean <- d * mean + (1 - d) * weights after each optimizer step, from the weights as they are now."""

    def __init__(self, network: nn.Module, config: EmaConfig):
        assert config.decay is not None
        self._config, self._decay = config, config.decay
        self._live = network.state_dict()  # the tensors themselves, which training changes in place
        self._mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        averaged = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        self._averaged = self._pairs(averaged)
        self._copied = self._pairs([name for name in self._live if name not in set(averaged)])

    def _pairs(self, names: list[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The tensors of these names in the average and in the network, for operations over whole lists."""
        return [self._mean[name] for name in names], [self._live[name].detach() for name in names]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after optimizer step number `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._config.warmup else self._decay
        torch._foreach_lerp_(*self._averaged, 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averaged weights, in the same tensors; afterwards it has its own again."""
        own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        try:
            for name, tensor in self._live.items():
                tensor.copy_(self._mean[name])
            yield
        finally:
            for name, tensor in self._live.items():
                tensor.copy_(own[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights by the network's names."""
        return self._mean

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the result of `state_dict`."""
        for name, tensor in self._mean.items():
            tensor.copy_(state[name])
