"""The state of an optimizer by parameter name, so that a checkpoint does not depend on the order of parameters."""

import torch
from torch import nn

from pipelines.errors import UserError
from train.networks.tensor_files import Tensors

# The state that each optimizer keeps for a parameter, by its optim.name.
_KEPT = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """{"parameter name/state name": tensor}; parameters that have no state yet are absent.

    Learning rates and the like are not included: they are settings and functions of the step.
    """
    names = _names(model)
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value is None:
                continue  # SGD without momentum stores None
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"optimizer state '{key}' of {names[parameter]} is a {type(value).__name__}, not a tensor"
                )
            tensors[f"{names[parameter]}/{key}"] = value
    return tensors


def _names(model: nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore the result of `optimizer_tensors`, bit for bit; state that the tensors do not name is dropped."""
    _require_same_kind(optimizer, tensors)
    names = _names(model)
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {names[parameter]: i for i, parameter in enumerate(ordered)}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in index:
            raise UserError(f"the checkpoint has optimizer state for '{name}', which this model does not train")
        parameter = ordered[index[name]]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise UserError(
                f"the checkpoint's optimizer state for '{name}' has shape {list(tensor.shape)}, "
                f"the parameter {list(parameter.shape)}"
            )
        states.setdefault(index[name], {})[key] = _laid_out_as(parameter, tensor)
    # Through load_state_dict, because only the optimizer knows which of its state stays on the CPU.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})


def _require_same_kind(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """UserError for the state of another optimizer: this one would lack its own, or carry the other's along."""
    own, there = type(optimizer).__name__.lower(), {name.rpartition("/")[2] for name in tensors}
    if there <= _KEPT[own]:
        return
    theirs = next((name for name, kept in _KEPT.items() if there <= kept), "NAME")
    raise UserError(
        f"the checkpoint was trained by another optimizer (it holds {', '.join(sorted(there))}), and this run has "
        f"optim.name={own}: type optim.name={theirs}, or model.init=RUN in place of resume, which takes the weights alone of a "
        "finished run"
    )


def _laid_out_as(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the parameter's memory format: other strides would put the optimizer on a slow path."""
    if tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
