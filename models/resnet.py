"""ResNet-10/18/34/50/101 and ResNeXt-50 32x4d for ImageNet-sized images, plain or with several experts.

Owns the networks of arXiv 1512.03385 and 1611.05431 in torchvision's form ("v1.5": the stride of a bottleneck
sits on its 3x3 convolution). Does not own the CIFAR networks (resnet_cifar.py).
Invariant: names, shapes and arithmetic of the plain networks are torchvision's, so that its checkpoints load with strict=True.
Shapes: B batch, C classes, H x W any image size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.experts import PLAIN, Expert, Experts, Form
from models.heads import Head
from models.outputs import Outputs


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first one carries the stride."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        # Created before the convolutions, as in torchvision, so that a seed draws the same initial weights in both.
        downsample = _downsample(in_channels, width * self.expansion, stride)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut  # in place: batch norm's backward does not need its output
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride and the groups), 1x1 convolution."""

    expansion = 4  # channels out per unit of stage width
    groups = 1
    group_width = 64  # inner channels of one group where the stage width is 64

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width * self.group_width // 64 * self.groups
        out_channels = width * self.expansion
        downsample = _downsample(in_channels, out_channels, stride)  # first: see BasicBlock
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, self.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


class ResNeXtBottleneck(Bottleneck):
    """The 32x4d bottleneck: 32 groups, four channels each in the first stage."""

    groups = 32
    group_width = 4


Block = type[BasicBlock] | type[Bottleneck]


class _Trunk(nn.Module):
    """The stem, which shrinks by four, and the first two stages: what experts share."""

    def __init__(self, block: Block, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], stride=2)

    def trunk(self, images: Tensor) -> Tensor:
        """images[B, 3, H, W] -> [B, 128 * expansion, H / 8, W / 8]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer2(self.layer1(x))


class ResNet(_Trunk):
    """Four stages of blocks, 64/128/256/512 wide, strides 1/2/2/2, after a stem that shrinks by four."""

    def __init__(self, block: Block, blocks: Sequence[int], num_classes: int, head: Head = nn.Linear) -> None:
        super().__init__(block, blocks)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], stride=2)
        self.fc = head(512 * block.expansion, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """images[B, 3, H, W] -> logits[B, C]."""
        x = self.layer4(self.layer3(self.trunk(images)))
        return self.fc(torch.mean(x, dim=(2, 3)))


class ResNetExperts(_Trunk):
    """A ResNet whose third and fourth stage and head each expert has for itself, form.width as wide."""

    def __init__(self, block: Block, blocks: Sequence[int], num_classes: int, form: Form) -> None:
        super().__init__(block, blocks)
        third, fourth = form.widths(256, 512)

        def expert() -> Expert:
            stages = {
                "layer3": _stage(block, 128 * block.expansion, third, blocks[2], stride=2),
                "layer4": _stage(block, third * block.expansion, fourth, blocks[3], stride=2),
            }
            return Expert(stages, form.head(fourth * block.expansion, num_classes))

        self.experts = Experts(form.experts or 0, expert)
        _initialise(self)
        self.router = form.make_router(fourth * block.expansion)

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """images[B, 3, H, W] -> logits[B, C]; in training `Outputs`."""
        shared = self.trunk(images)
        return self.experts(shared, self.router) if self.training else self.experts.answer(shared, self.router)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection for a shortcut that changes the shape; None where the shape stays."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def _stage(block: Block, in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def _network(block: Block, blocks: Sequence[int], num_classes: int, form: Form) -> ResNet | ResNetExperts:
    if form.experts is None:
        return ResNet(block, blocks, num_classes, form.head)
    return ResNetExperts(block, blocks, num_classes, form)


def resnet10(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(BasicBlock, (1, 1, 1, 1), num_classes, form)


def resnet18(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(BasicBlock, (2, 2, 2, 2), num_classes, form)


def resnet34(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(BasicBlock, (3, 4, 6, 3), num_classes, form)


def resnet50(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(Bottleneck, (3, 4, 6, 3), num_classes, form)


def resnet101(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(Bottleneck, (3, 4, 23, 3), num_classes, form)


def resnext50_32x4d(num_classes: int, form: Form = PLAIN) -> ResNet | ResNetExperts:
    return _network(ResNeXtBottleneck, (3, 4, 6, 3), num_classes, form)
