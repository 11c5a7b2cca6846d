"""ResNet-8/14/20/32/44/56/110 for small images, as in the public CIFAR-LT code, plain or with several experts.

Owns the networks of arXiv 1512.03385, section 4.2, with its parameter-free shortcut ("option A").
Does not own the ImageNet networks (resnet.py).
Invariant: a shortcut has no parameters, so that ResNet-32 with 100 classes has exactly 470,004.
Shapes: B batch, C classes, H x W any image size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.experts import PLAIN, Expert, Experts, Form
from models.heads import Head
from models.outputs import Outputs


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def shortcut_option_a(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Every `stride`-th pixel, with zeros for the missing channels, half of them on each side."""
    missing = out_channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing - missing // 2))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; the first one carries the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.out_channels = out_channels
        self.stride = stride
        self.same_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.same_shape else shortcut_option_a(x, self.out_channels, self.stride)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class _Trunk(nn.Module):
    """Stem and first stage: what experts share."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)

    def trunk(self, images: Tensor) -> Tensor:
        """images[B, 3, H, W] -> [B, 16, H, W]."""
        return self.layer1(F.relu(self.bn1(self.conv1(images))))


class CifarResNet(_Trunk):
    """Three stages of `blocks` blocks, 16/32/64 channels wide, strides 1/2/2: depth 6 * blocks + 2."""

    def __init__(self, blocks: int, num_classes: int, head: Head = nn.Linear) -> None:
        super().__init__(blocks)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = head(64, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """images[B, 3, H, W] -> logits[B, C]."""
        x = self.layer3(self.layer2(self.trunk(images)))
        return self.fc(torch.mean(x, dim=(2, 3)))


class CifarExperts(_Trunk):
    """A CifarResNet whose second and third stage and head each expert has for itself, form.width as wide."""

    def __init__(self, blocks: int, num_classes: int, form: Form) -> None:
        super().__init__(blocks)
        middle, last = form.widths(32, 64)

        def expert() -> Expert:
            stages = {"layer2": _stage(16, middle, blocks, stride=2), "layer3": _stage(middle, last, blocks, stride=2)}
            return Expert(stages, form.head(last, num_classes))

        self.experts = Experts(form.experts or 0, expert)
        _initialise(self)
        self.router = form.make_router(last)

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """images[B, 3, H, W] -> logits[B, C]; in training `Outputs`."""
        shared = self.trunk(images)
        return self.experts(shared, self.router) if self.training else self.experts.answer(shared, self.router)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)  # fan_in; the bias of fc keeps PyTorch's default


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(CifarBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def _network(blocks: int, num_classes: int, form: Form) -> CifarResNet | CifarExperts:
    if form.experts is None:
        return CifarResNet(blocks, num_classes, form.head)
    return CifarExperts(blocks, num_classes, form)


def resnet8(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(1, num_classes, form)


def resnet14(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(2, num_classes, form)


def resnet20(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(3, num_classes, form)


def resnet32(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(5, num_classes, form)


def resnet44(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(7, num_classes, form)


def resnet56(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(9, num_classes, form)


def resnet110(num_classes: int, form: Form = PLAIN) -> CifarResNet | CifarExperts:
    return _network(18, num_classes, form)
