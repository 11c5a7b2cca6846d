"""A CUDA graph's stand-in for machines without a GPU: the operations of a call, recorded and run again without its Python code.

Like a graph it keeps the tensors and the numbers of the recording, so that whatever a function decides on the host is frozen in
it, and it cannot be recorded where the host reads a tensor. Unlike one it runs what it records.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.graph import WARM_UP, Recorded


class HostReads(RuntimeError):
    """The host asked for a value that the device computes."""


class Tape(TorchDispatchMode):
    """Within it everything that is computed, backward passes too, is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise HostReads(f"{func} in a recording")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        """Run it all again, in the same memory."""
        for func, args, kwargs, found in self.calls:
            for own, anew in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if (
                    isinstance(own, torch.Tensor)
                    and own.untyped_storage().data_ptr() != anew.untyped_storage().data_ptr()
                ):
                    own.copy_(anew)


class Taped(Recorded):
    """`Recorded` with a tape in place of the graph; made: how many there are."""

    made = 0
    replayed = 0

    def __init__(self, function: Any):
        super().__init__(function)
        self._tape: Tape | None = None
        Taped.made += 1

    def _run(self) -> Any:
        if self._calls <= WARM_UP:
            return self._function(self._inputs)
        if self._tape is None:
            self._tape = Tape()
            with self._tape:
                self._result = self._function(self._inputs)
        else:
            self._tape.replay()
            Taped.replayed += 1
        return self._result
