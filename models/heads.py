"""Last layers: what maps the features of a network to its logits.

Owns the cosine head, and the precision of the linear one. Invariant: a head is made of the number of features and that of classes
alone, and its weights, [C, D], bear the name of a linear layer's.
Shapes: B batch, C classes, D features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Head = Callable[[int, int], nn.Module]
"""(D, C) -> a layer that maps features [B, D] to logits [B, C], freshly initialised"""

_LEAST_NORM = 1e-4  # shorter vectors are not stretched to length 1: the gradient would grow without bound


class LinearHead(nn.Linear):
    """torch's layer, with logits in float32 or wider where the network answers, in eval mode, also under autocast.

    In bfloat16 the largest logits of 16 in 1000 images are equal (ResNet-32, 100 classes), of which the first class would count:
    the more frequent one, where classes are sorted by frequency.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, C]."""
        device = input.device.type
        if self.training or not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return super().forward(input)
        wide = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            return F.linear(input.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))


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
