"""ResNets for small images on a CPU with AMX, up to twice as fast as by torch: python tests/studies/amx_blocks.py FOLDER.

Builds amx_blocks.cpp (g++ 12 or newer) in FOLDER, compares convolutions, norms and whole networks with torch, and times both in
turns. With PYTHONPATH=FOLDER, all programs then compute the blocks of models/resnet_cifar.py by it, where they use bf16 on a
CPU: training and evaluation, each process on one thread. Results computed so say so. The product does not need it: networks are
trained on GPUs, and this exists because some runs in docs/results had none.

Beside torch's bf16, convolutions hand their result to the norm without another rounding of its moments, the gradients of weights
stay float32, and in eval mode a norm is applied before the result is rounded.
"""

import argparse
import importlib.abc
import importlib.machinery
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
PATCHED = "models.resnet_cifar"
ON_START = "import amx_blocks\n\namx_blocks.wait_for_import()\n"  # FOLDER/sitecustomize.py, which every Python runs


def build(folder: Path) -> None:
    """The library, and what loads it, in FOLDER."""
    from torch.utils.cpp_extension import include_paths, library_paths

    if shutil.which("g++") is None:
        sys.exit("error: there is no compiler g++; type apt-get install g++ (version 12 or newer)")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["g++", "-O3", "-march=sapphirerapids", "-std=c++20", "-fPIC", "-shared"]
    command += ["-DTORCH_EXTENSION_NAME=amx_kernels"]
    command += [f"-I{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    command += [str(HERE / "amx_blocks.cpp"), "-o", str(folder / "amx_kernels.so")]
    command += [f"-L{path}" for path in library_paths()]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"], check=True)
    shutil.copy(__file__, folder / "amx_blocks.py")
    (folder / "sitecustomize.py").write_text(ON_START)


# ---- what replaces the blocks ----


def wait_for_import() -> None:
    """Replace the blocks as soon as they are imported; torch is imported no earlier than it would be."""
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != PATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_replace(module: ModuleType) -> None:
                load(module)
                replace(module)

            spec.loader.exec_module = load_and_replace
        return spec


def replace(module: Any) -> Callable[[], None]:
    """Let the module's networks use the library; what is returned takes that back."""
    import amx_kernels as amx
    import torch
    from torch import Tensor, nn
    from torch.autograd import Function

    def images_of(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)

    def weights_of(w: Tensor) -> Tensor:
        return w.detach().contiguous()

    def moments(norm: nn.BatchNorm2d, sums: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        norm.num_batches_tracked.add_(1)
        count = y.numel() // y.shape[1]
        return amx.bn_moments(sums, count, norm.eps, norm.momentum, norm.running_mean, norm.running_var)

    def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return scale.detach(), (norm.bias - norm.running_mean * scale).detach()

    def same_shape(w: Tensor, stride: int) -> bool:
        return stride == 1 and w.shape[0] == w.shape[1]

    def shortcut(x: Tensor, w: Tensor, stride: int) -> Tensor:
        return x if same_shape(w, stride) else amx.shortcut(x, w.shape[0], stride)

    class Stem(Function):
        """relu(norm(conv(images)))"""

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, norm: nn.BatchNorm2d) -> Tensor:
            y, sums = amx.conv_sums(x, weights_of(w), 1)
            of_batch = moments(norm, sums, y)
            out = amx.bn_relu(y, *of_batch, gamma, beta, None)
            ctx.save_for_backward(x, w, gamma, y, out, *of_batch)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            x, w, gamma, y, out, *of_batch = ctx.saved_tensors
            dy, _, dgamma, dbeta = amx.bn_relu_back(images_of(grads[0]), y, out, *of_batch, gamma, False)
            dx = amx.conv_back(dy, weights_of(w), 1, None) if ctx.needs_input_grad[0] else None
            return dx, amx.conv_weight(x, dy, 1), dgamma, dbeta, None

    class Block(Function):
        """relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))"""

        @staticmethod
        def forward(
            ctx: Any, x: Tensor, w1: Tensor, g1: Tensor, b1: Tensor, w2: Tensor, g2: Tensor, b2: Tensor, *more: Any
        ):
            norm1, norm2, stride = more
            y1, sums = amx.conv_sums(x, weights_of(w1), stride)
            first = moments(norm1, sums, y1)
            a1 = amx.bn_relu(y1, *first, g1, b1, None)
            y2, sums = amx.conv_sums(a1, weights_of(w2), 1)
            second = moments(norm2, sums, y2)
            out = amx.bn_relu(y2, *second, g2, b2, shortcut(x, w1, stride))
            ctx.save_for_backward(x, w1, g1, w2, g2, y1, a1, y2, out, *first, *second)
            ctx.stride = stride
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            x, w1, g1, w2, g2, y1, a1, y2, out, mean1, inverse1, mean2, inverse2 = ctx.saved_tensors
            dy2, through, dg2, db2 = amx.bn_relu_back(images_of(grads[0]), y2, out, mean2, inverse2, g2, True)
            da1 = amx.conv_back(dy2, weights_of(w2), 1, None)
            dy1, _, dg1, db1 = amx.bn_relu_back(da1, y1, a1, mean1, inverse1, g1, False)
            plain = same_shape(w1, ctx.stride)
            dx = amx.conv_back(dy1, weights_of(w1), ctx.stride, through if plain else None)
            if not plain:
                amx.shortcut_back(dx, through, ctx.stride)
            dw1, dw2 = amx.conv_weight(x, dy1, ctx.stride), amx.conv_weight(a1, dy2, 1)
            return dx, dw1, dg1, db1, dw2, dg2, db2, None, None, None

    def usable(module: nn.Module, x: Tensor) -> bool:
        """Whether it can compute this; not where torch's own operations are counted."""
        on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not on_cpu or torch.get_autocast_dtype("cpu") is not torch.bfloat16 or x.shape[3] not in (8, 16, 32):
            return False
        differentiated = torch.is_grad_enabled() and (x.requires_grad or module.conv1.weight.requires_grad)
        return (module.training or not differentiated) and torch._C._len_torch_dispatch_stack() == 0

    def block(self: Any, x: Tensor) -> Tensor:
        if not usable(self, x):
            return of_torch[0](self, x)
        x = images_of(x)
        one, two = self.bn1, self.bn2
        if self.training:
            parameters = (self.conv1.weight, one.weight, one.bias, self.conv2.weight, two.weight, two.bias)
            return Block.apply(x, *parameters, one, two, self.stride)
        out = amx.conv_affine(x, weights_of(self.conv1.weight), self.stride, *affine(one), None)
        beside = shortcut(x, self.conv1.weight, self.stride)
        return amx.conv_affine(out, weights_of(self.conv2.weight), 1, *affine(two), beside)

    def trunk(self: Any, images: Tensor) -> Tensor:
        if not usable(self, images):
            return of_torch[1](self, images)
        images, norm = images_of(images), self.bn1
        if self.training:
            out = Stem.apply(images, self.conv1.weight, norm.weight, norm.bias, norm)
        else:
            out = amx.conv_affine(images, weights_of(self.conv1.weight), 1, *affine(norm), None)
        return self.layer1(out)

    def put(forward: Any, shared: Any) -> None:
        module.CifarBlock.forward, module._Trunk.trunk = forward, shared

    of_torch = module.CifarBlock.forward, module._Trunk.trunk
    put(block, trunk)
    return lambda: put(*of_torch)


# ---- against torch ----


def error(found: Any, expected: Any) -> float:
    """Relative, of the whole tensor."""
    return float((found.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm())


def check_convolutions() -> None:
    import amx_kernels as amx
    import torch
    import torch.nn.functional as F

    print("largest relative errors against torch in float32: y, dx, dw")
    last = torch.channels_last
    shapes = [(3, 16, 32, 1), (16, 16, 32, 1), (16, 24, 32, 2), (16, 32, 32, 2), (24, 24, 16, 1), (32, 32, 16, 1)]
    for c, o, side, stride in [*shapes, (24, 48, 16, 2), (32, 64, 16, 2), (48, 48, 8, 1), (64, 64, 8, 1)]:
        x = torch.randn(13, c, side, side).bfloat16().contiguous(memory_format=last)
        w = torch.randn(o, c, 3, 3).bfloat16().float().requires_grad_()
        wide = x.float().requires_grad_()
        y = F.conv2d(wide, w, stride=stride, padding=1)
        dy = torch.randn_like(y).bfloat16().contiguous(memory_format=last)
        y.backward(dy.float())
        found, sums = amx.conv_sums(x, w.detach(), stride)
        assert error(sums[1], found.double().square().sum((0, 2, 3))) < 1e-5
        errors = [error(found, y), error(amx.conv_back(dy, w.detach(), stride, None), wide.grad)]
        errors.append(error(amx.conv_weight(x, dy, stride), w.grad))
        print(f"  {c} -> {o} channels, {side} pixels, stride {stride}:", *(f"{value:.1e}" for value in errors))
        assert errors[0] < 3e-3 and errors[1] < 3e-3 and errors[2] < 1e-5, "2 ** -9 is half a unit of bfloat16"


def compare_networks(experts: int | None, rounds: int) -> None:
    """Losses, gradients and answers of torch's bf16 and of this against float32; then the time of both, in turns."""
    import torch
    import torch.nn.functional as F

    from models import ModelSpec, outputs_of, resnet_cifar
    from train.networks.layout import channels_last

    torch.manual_seed(1)
    network = channels_last(ModelSpec("resnet32", 100, head="cosine", experts=experts).build()).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (128,))

    def step(precision: str) -> torch.Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = outputs_of(network(images))
        logits = outputs.logits[:, None] if outputs.experts is None else outputs.experts
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.repeat_interleave(logits.shape[1]))
        loss.backward()
        return loss.detach()

    def measured(precision: str) -> list[torch.Tensor]:
        network.load_state_dict(state)
        loss = step(precision)
        grads = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        network.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            answers = network(images).float()
        network.train()
        return [loss, grads, answers]

    expected, of_torch = measured("fp32"), measured("bf16")
    back = replace(resnet_cifar)
    of_this = measured("bf16")
    back()
    print(f"ResNet-32, {experts or 'no'} experts: relative errors of loss, gradients, answers in eval mode")
    for name, found in (("torch", of_torch), ("this", of_this)):
        print(f"  {name}:", *(f"{error(*pair):.1e}" for pair in zip(found, expected, strict=True)))
    assert error(of_this[1], expected[1]) < 1.5 * error(of_torch[1], expected[1])
    seconds: dict[str, list[float]] = {"torch": [], "this": []}
    for _ in range(rounds):
        for name, times in seconds.items():
            back = replace(resnet_cifar) if name == "this" else lambda: None
            step("bf16")
            start = time.perf_counter()
            for _ in range(3):
                step("bf16")
            times.append((time.perf_counter() - start) / 3)
            back()
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["this"], strict=True)]
    rates = ", ".join(f"{name} {128 / statistics.median(times):.0f} images/s" for name, times in seconds.items())
    print(
        f"  {rates}; torch's time over this one's {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the library, and for PYTHONPATH")
    parser.add_argument("--rounds", type=int, default=5, help="of timings in turns")
    options = parser.parse_args()
    build(options.folder)
    sys.path[:1] = [str(HERE.parents[1]), str(options.folder.resolve())]
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    check_convolutions()
    for experts in (None, 3, 6):
        compare_networks(experts, options.rounds)
    print(f"PYTHONPATH={options.folder.resolve()}:$PYTHONPATH in front of a command lets it compute so")


if __name__ == "__main__":
    main()
