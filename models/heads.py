"""Last layers: what maps the features of a network to its logits.

Owns the cosine head; the linear one is torch's. Invariant: a head is made of the number of features and that of classes alone,
and its weights, [C, D], bear the name of a linear layer's.
Shapes: B batch, C classes, D features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Head = Callable[[int, int], nn.Module]
"""(D, C) -> a layer that maps features [B, D] to logits [B, C], freshly initialised"""

_LEAST_NORM = 1e-4  # shorter vectors are not stretched to length 1: the gradient would grow without bound


class CosineHead(nn.Module):
    """`scale` times the cosine of the angle between the features and each class's weights; no bias.

    float32 or wider, also under autocast: in bfloat16 the logits near 30 would come in steps of 0.125. Features of zero give
    logits of zero and a finite gradient. Initial weights as in RIDE's code: uniform in -1..1, then of length 1 for each class.
    """

    def __init__(self, in_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(num_classes, in_features).uniform_(-1, 1)))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """features[B, D] -> logits[B, C]."""
        device = features.device.type
        wide = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            directions = F.normalize(features.to(wide), eps=_LEAST_NORM)
            return self.scale * F.linear(directions, F.normalize(self.weight.to(wide), eps=_LEAST_NORM))
