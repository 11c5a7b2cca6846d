"""What E experts cost as a loop over modules, against one grouped form of them: python tests/studies/experts.py [--device cuda].

    --network NAME ...   resnet32 and resnet50 by default (also resnext50_32x4d)
    --experts E ...      1, 3 and 6 by default        --batch B   128 for small images, 8 for ImageNet's (a GPU: 256)
    --rounds N           pairs of timings, 5 by default        --compile   both through torch.compile
    --precision bf16     autocast, as in training; fp32 by default

The grouped form computes all experts at once: convolutions of E groups (times the network's own), batch norm over E times the
channels. It is checked against the loop, then both do forward and backward passes in training mode in turns. Prints the
milliseconds of the loop (median; on a CPU of processor time), the ratio loop / grouped (median, lowest, highest round), and how
many convolutions the loop has.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ModelSpec, outputs_of
from models.resnet_cifar import CifarBlock
from train.networks.layout import channels_last

CLASSES = {"resnet32": 100}  # others: 1000
SIZES = {"resnet32": 32}  # others: 224


class Grouped(nn.Module):
    """The same network with its experts in grouped form; its parameters are the loop's, side by side."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.trunk, self.count = network.trunk, len(network.experts)
        self._trunk_modules = nn.ModuleList([part for name, part in network.named_children() if name != "experts"])
        stages = [list(stage) for stage in zip(*(expert.stages for expert in network.experts), strict=True)]
        blocks = [block for stage in stages for block in zip(*stage, strict=True)]
        self.blocks = nn.ModuleList(_grouped(block, self.count, first=i == 0) for i, block in enumerate(blocks))
        self.weight = nn.Parameter(torch.stack([expert.fc.weight.detach() for expert in network.experts]))
        self.scale = network.experts[0].fc.scale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(images)
        for block in self.blocks:
            x = block(x)
        features = F.normalize(x.mean(dim=(2, 3)).unflatten(1, (self.count, -1)).float(), dim=2, eps=1e-4)
        with torch.autocast(images.device.type, enabled=False):
            experts = self.scale * torch.einsum("bed,ecd->bec", features, F.normalize(self.weight, dim=2, eps=1e-4))
        return experts.mean(1), experts


class _Option(nn.Module):
    """A CIFAR block of all experts."""

    def __init__(self, blocks: Any, count: int, first: bool) -> None:
        super().__init__()
        one = blocks[0]
        self.conv1 = _conv([block.conv1 for block in blocks], count, first)
        self.conv2 = _conv([block.conv2 for block in blocks], count)
        self.bn1, self.bn2 = (_norm([getattr(block, name) for block in blocks]) for name in ("bn1", "bn2"))
        self.count, self.first, self.same = count, first, one.same_shape
        self.stride, self.missing = one.stride, one.out_channels - one.conv1.in_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if not self.same:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            parts = [shortcut] * self.count if self.first else shortcut.chunk(self.count, dim=1)
            sides = (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2)
            shortcut = torch.cat([F.pad(part, sides) for part in parts], dim=1)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class _Residual(nn.Module):
    """An ImageNet block of all experts, basic or bottleneck."""

    def __init__(self, blocks: Any, count: int, first: bool) -> None:
        super().__init__()
        names = [name for name, _ in blocks[0].named_children()]
        depth = sum(name.startswith("conv") for name in names)
        self.convs = nn.ModuleList(
            _conv([getattr(block, f"conv{i + 1}") for block in blocks], count, first and i == 0) for i in range(depth)
        )
        self.norms = nn.ModuleList(_norm([getattr(block, f"bn{i + 1}") for block in blocks]) for i in range(depth))
        self.downsample = None
        if blocks[0].downsample is not None:
            conv, norm = zip(*(block.downsample for block in blocks), strict=True)
            self.downsample = nn.Sequential(_conv(list(conv), count, first), _norm(list(norm)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if i + 1 < len(self.convs):
                x = F.relu(x, inplace=True)
        x += shortcut
        return F.relu(x, inplace=True)


def _grouped(blocks: Any, count: int, first: bool) -> nn.Module:
    kind = _Option if isinstance(blocks[0], CifarBlock) else _Residual
    return kind(blocks, count, first)


def _conv(convs: list[nn.Conv2d], count: int, shared: bool = False) -> nn.Conv2d:
    """shared: all experts read the same input, which needs no groups."""
    one: Any = convs[0]
    made = nn.Conv2d(
        one.in_channels * (1 if shared else count),
        one.out_channels * count,
        one.kernel_size,
        one.stride,
        one.padding,
        groups=one.groups * (1 if shared else count),
        bias=False,
    )
    made.weight.data = torch.cat([conv.weight.detach() for conv in convs])
    return made


def _norm(norms: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(sum(norm.num_features for norm in norms))
    made.weight.data, made.bias.data = (
        torch.cat([getattr(norm, name).detach() for norm in norms]) for name in ("weight", "bias")
    )
    return made


def measure(name: str, experts: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    device = torch.device(options.device)
    classes, size = CLASSES.get(name, 1000), SIZES.get(name, 224)
    batch = options.batch or (128 if size == 32 else 8 if device.type == "cpu" else 256)
    torch.manual_seed(0)
    loop = ModelSpec(name, classes, head="cosine", experts=experts).build()
    grouped = Grouped(loop)
    loop, grouped = (channels_last(network.to(device)).train() for network in (loop, grouped))
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,), device=device)
    with torch.no_grad():
        apart = float((outputs_of(loop(images)).logits - grouped(images)[0]).abs().max())
    assert apart < 1e-2, f"the two forms differ by {apart}"
    launches = sum(isinstance(part, nn.Conv2d) for part in loop.modules())
    if options.compile:
        for network in (loop, grouped):
            network.compile(dynamic=False)

    def step(network: nn.Module) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter() if device.type == "cuda" else time.process_time()  # load of others does not count
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            F.cross_entropy(network(images)[0], labels).backward()
        for parameter in network.parameters():
            parameter.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() if device.type == "cuda" else time.process_time()) - start

    for network in (loop, grouped):
        step(network)  # warm-up
        step(network)
    pairs = [(step(loop), step(grouped)) for _ in range(options.rounds)]
    ratios = sorted(one / other for one, other in pairs)
    return (
        f"{name} batch {batch}, {experts} experts: loop {1000 * statistics.median(one for one, _ in pairs):.1f} ms, "
        f"loop / grouped {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), {launches} convolutions"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", nargs="+", default=["resnet32", "resnet50"])
    parser.add_argument("--experts", nargs="+", type=int, default=[1, 3, 6])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # as in trainings
    for name in options.network:
        for experts in options.experts:
            print(measure(name, experts, options), flush=True)


if __name__ == "__main__":
    main()
