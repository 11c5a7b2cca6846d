"""What long-tailed losses compute once from the training images per class: margins, class weights, temperatures.

Owns LDAM's margins and the class weights of deferred re-weighting (Cao et al. 2019, arXiv 1906.07413), and the per-class
temperatures of RIDE's diversity term (Wang et al. 2021, arXiv 2010.01809). Their switch, and the losses, are elsewhere.
Invariant: pure functions of the class counts, in float64 up to the last conversion to float32.

The published code divides a re-weighted loss by the sum of the weights in the batch (torch's `weight`). That divisor differs
between micro-batches and between processes, so that the gradients of two processes would not be those of one. Here the weights
are scaled once so that their mean over the training images is 1, and the divisor is the size of the batch: the sum of a batch's
weights is replaced by its expectation, and the loss of a batch is the mean of the losses of its parts.
Shapes: C classes.
"""

import numpy as np
import torch
from torch import Tensor

from train.objectives.losses import positive_counts


def margins(class_counts_C: np.ndarray, largest: float) -> Tensor:
    """LDAM's margins as float32 [C], proportional to n_j^(-1/4), `largest` for the rarest class.

    UserError when a class has no images.
    """
    powers = positive_counts(class_counts_C, "LDAM's margin needs every count") ** -0.25
    return torch.from_numpy(largest * powers / powers.max()).float()


def class_weights(class_counts_C: np.ndarray, beta: float) -> Tensor:
    """Weights by the effective number of samples as float32 [C] (Cui et al. 2019, arXiv 1901.05555).

    (1 - beta) / (1 - beta^n_j), scaled so that the mean over the training images is 1. 0 <= beta < 1; 0 gives every class the
    weight 1. UserError when a class has no images.
    """
    counts = positive_counts(class_counts_C, "re-weighting needs every count")
    weights = (1 - beta) / (1 - beta**counts)
    return torch.from_numpy(weights * counts.sum() / (counts * weights).sum()).float()


def diversity_temperatures(class_counts_C: np.ndarray, eta: float) -> Tensor:
    """RIDE's temperatures as float32 [C]: eta * C * p_j + 1 - eta, divided by its largest; p_j the share of the training images.

    0 <= eta <= 1; 0 gives 1 everywhere. The most frequent class has 1, rarer ones less, which sharpens them.
    """
    share = class_counts_C / class_counts_C.sum()
    raised = eta * len(share) * share + 1 - eta
    return torch.from_numpy(raised / raised.max()).float()
