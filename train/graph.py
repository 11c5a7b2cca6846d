"""A function of tensors as one CUDA graph: recorded once, it is then run by a single launch in place of some hundred.

Owns the recording, and who may ask for it; step.py owns what is recorded, and config.py refuses the settings that exclude it.
Invariant: a call does to weights, buffers and random states what the function alone would do to them, kernel for kernel. Nothing
has to be put back, because the calls before the recording are calls like all others, and recording runs nothing.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from pipelines.device import stream_of
from pipelines.errors import UserError, first_line
from train.config import Config

WARM_UP = 3  # calls before the recording: compilation, choice of algorithms, the optimizer's state; as torch does it

Result = TypeVar("Result")


def require_one_gpu(config: Config, accelerator: Accelerator) -> None:
    """UserError where cuda_graph=true is given to anything but one process with one GPU."""
    if not config.cuda_graph:
        return
    if accelerator.device.type != "cuda":
        raise UserError(
            f"cuda_graph=true needs a GPU, and this process has the device {accelerator.device.type}; leave cuda_graph out"
        )
    if accelerator.distributed_type != DistributedType.NO:
        raise UserError(
            f"cuda_graph=true under a launcher of several processes (here {accelerator.num_processes}): exchanging gradients is "
            "not recorded; type python train/... without the launcher, or leave cuda_graph out"
        )


class Recorded(Generic[Result]):
    """`function`, whose first `WARM_UP` calls run it, and whose later ones on a GPU run the CUDA graph of its next one.

    function: is called with copies of the given tensors, in memory that is the same in every call, and returns tensors, in any
    structure, that the next call overwrites. All else that it reads or changes on the device must stay where it is in memory;
    all that it reads on the host, numbers among it, must stay as it was in the recording. On other devices every call runs it.
    """

    def __init__(self, function: Callable[[list[torch.Tensor]], Result]):
        self._function = function
        self._inputs: list[torch.Tensor] = []
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Result:
        """ValueError for tensors of other shapes or types than the first call's."""
        if not self._inputs:
            self._inputs = [torch.empty_like(tensor) for tensor in tensors]
        for own, given in zip(self._inputs, tensors, strict=True):
            if (own.shape, own.dtype) != (given.shape, given.dtype):
                raise ValueError(f"recorded for {own.dtype} {list(own.shape)}, not {given.dtype} {list(given.shape)}")
            own.copy_(given)
        self._calls += 1
        return self._run()

    def _run(self) -> Result:
        if not self._inputs[0].is_cuda:
            return self._function(self._inputs)
        if self._calls <= WARM_UP:
            return self._beside()
        if self._graph is None:
            self._record()
        assert self._graph is not None and self._result is not None
        self._graph.replay()
        return self._result

    def _beside(self) -> Result:
        """A call on the stream of the recording: what libraries and autograd keep for a stream is there when it begins."""
        current = torch.cuda.current_stream(self._inputs[0].device)
        if self._stream is None:
            self._stream = stream_of(self._inputs[0].device, "recording")
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(self._inputs)
        current.wait_stream(self._stream)
        return result

    def _record(self) -> None:
        """The graph of one call, which is not run. The device's generator is part of it: each run draws anew, as a call would.

        UserError where the function waits for the device, or draws random numbers on the host, which would always be the same.
        """
        graph, drawn = torch.cuda.CUDAGraph(), torch.get_rng_state()
        try:
            # thread_local, as torch.compile records: the loader's thread goes on allocating memory and asking for events. The
            # outer `stream` is left even where the end of a failed recording raises.
            with (
                _no_collection(),
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._result = self._function(self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # whose first calls succeeded
            raise UserError(
                f"cuda_graph=true: the step of this network cannot be recorded ({first_line(error)}); leave cuda_graph out"
            ) from error
        if not torch.equal(drawn, torch.get_rng_state()):
            raise UserError(
                "cuda_graph=true: this network draws random numbers on the host, which would be the same in every step; leave "
                "cuda_graph out"
            )
        self._graph = graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python frees no cycles meanwhile: a graph among them, destroyed during a recording, would end that with an error."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
