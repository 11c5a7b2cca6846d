"""A network of two linear experts with a router, made by hand: it is known which images need the second expert.

Images are [B, C + 1, 1, 1]: 1 in the channel of their class, and in the last channel whether they are hard. The first expert is
right on easy images and says class 0 of every hard one; the second is always right, and so sure that their mean is right as well.
Shapes: B batch, C classes.
"""

import torch
from torch import Tensor, nn

from models.experts import Expert, Experts
from models.outputs import Outputs
from models.router import Router

CLASSES = 5


class MadeExperts(nn.Module):
    def __init__(self, choices: int = 3) -> None:
        super().__init__()
        self.experts = Experts(2, lambda: Expert({}, nn.Linear(CLASSES + 1, CLASSES, bias=False)))
        self.router = Router(2, CLASSES + 1, choices)
        with torch.no_grad():
            for head, sure, hard in zip(self.experts.heads(), (10, 50), (30, 0), strict=True):
                weight = head.get_parameter("weight").zero_()
                weight[:, :CLASSES] = sure * torch.eye(CLASSES)
                weight[0, CLASSES] = hard

    def forward(self, images: Tensor) -> Tensor | Outputs:
        return self.experts(images, self.router) if self.training else self.experts.answer(images, self.router)


def made_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(images, labels int64 [B], bool [B]: whether the first expert is wrong); half of the images are hard."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    hard = torch.rand(count, generator=generator) < 0.5
    images = torch.cat([torch.eye(CLASSES)[labels], hard[:, None].float()], dim=1)
    return images[:, :, None, None], labels, hard & (labels != 0)
