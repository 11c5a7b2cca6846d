"""Operations that torch refuses on a GPU when it is told to be deterministic; on a CPU it runs them all."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Of the list in torch.use_deterministic_algorithms that errors are raised for; cumsum, of floating-point numbers alone.
REFUSED = {
    *("cumsum", "put_", "put", "histc", "kthvalue", "nll_loss2d_forward", "nll_loss2d_backward", "scatter_reduce"),
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "max_pool3d_with_indices_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"),
    *("upsample_linear1d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "_ctc_loss_backward", "_embedding_bag_dense_backward"),
}


class Refused(TorchDispatchMode):
    """Collects in `found` the names of such operations within it, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in REFUSED and (name != "cumsum" or args[0].is_floating_point()):
            self.found.add(name)
        return func(*args, **(kwargs or {}))
