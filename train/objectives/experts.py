"""The diversity of several experts: the term of RIDE that drives them apart (Wang et al. 2021, arXiv 2010.01809).

Owns that formula; methods.py says how a method's loss is taken of several experts. Invariant: the mean of the experts gets no
gradient, so that each expert is moved away from (or towards) where the mean is now.
Shapes: B batch, E experts, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from train.objectives.losses import wide


def divergence(experts_BEC: Tensor, mean_BC: Tensor, temperatures_C: Tensor | None = None) -> Tensor:
    """KL(softmax(mean / T) || softmax(expert / T)), summed over experts and classes, mean over the batch, WITHOUT a weight.

    mean: of the experts' logits; detached. temperatures: T_j, by which the logits of class j are divided; None: 1.
    """
    experts_BEC, mean_BC = wide(experts_BEC), wide(mean_BC.detach())
    if temperatures_C is not None:
        experts_BEC, mean_BC = experts_BEC / temperatures_C, mean_BC / temperatures_C
    target_BEC = torch.softmax(mean_BC, dim=1)[:, None].expand_as(experts_BEC)
    return F.kl_div(torch.log_softmax(experts_BEC, dim=2), target_BEC, reduction="batchmean")
