"""Launches per training step outside the network, part by part: python tests/studies/launches.py [NETWORK] [--device cuda].

Each part of the product runs alone, on batches of the size of CIFAR's, under torch's profiler. On a GPU kernels and copies of the
second call are counted; on a CPU the operations of which each would be one kernel: neither views nor allocations, and an
operation over a list of tensors as one. Prints a table in Markdown. Owns the counting; the speed of a step is loop_overhead.py's.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from models import Outputs, build_model
from pipelines.augment.finish import Finish
from pipelines.batch import Batch, Colours
from train.ema import Ema, EmaConfig
from train.meters import Meters
from train.networks.layout import channels_last
from train.objectives.methods import DistillConfig
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.step import TrainStep

B, SIZE, CLASSES = 128, 32, 100
_LISTS = ("aten::_foreach", "aten::_fused")
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "resize_",
            "set_",
            "lift_fresh",
            "resolve_conj",
            "result_type",
        ),
        *(
            "view",
            "as_strided",
            "detach",
            "detach_",
            "expand",
            "slice",
            "select",
            "permute",
            "transpose",
            "t",
            "unsqueeze",
        ),
        *(
            "squeeze",
            "alias",
            "unbind",
            "split",
            "_unsafe_view",
            "_reshape_alias",
            "is_nonzero",
            "narrow",
            "reshape",
            "to",
        ),
        *("expand_as", "flatten", "unflatten", "view_as", "_local_scalar_dense", "item", "contiguous", "resolve_neg"),
    )
)


def launches(work: Callable[[], Any], device: torch.device) -> int:
    """The launches of one call of `work`, after one that is not counted."""
    work()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    ) as seen:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    events = seen.events()
    assert events is not None
    if on_gpu:
        on_device = (event for event in events if event.device_type == torch.autograd.DeviceType.CUDA)
        return sum(not event.is_user_annotation for event in on_device)  # such as the name of the optimizer's step
    return sum(_kernels(event) for event in events if event.cpu_parent is None)


def _kernels(event: Any) -> int:
    """Of an operation: itself, where it calls no other, or those that it calls."""
    if event.name.startswith(_LISTS):
        return 1
    called = [child for child in event.cpu_children if child.name.startswith("aten::")]
    if event.name.startswith("aten::") and not called:
        return event.name not in _NO_KERNEL
    return sum(map(_kernels, event.cpu_children))


def parts(name: str, device: torch.device) -> dict[str, int]:
    """{part of a step: launches}"""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (B, SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    labels = torch.arange(B, device=device) % CLASSES
    finish = Finish([0.5] * 3, [0.25] * 3, device, channels_last=True)
    jitter = Colours(torch.ones(B, 3, device=device), torch.arange(3, device=device).expand(B, 3).contiguous())
    batch = Batch(finish(pixels), labels, np.arange(B), np.zeros(B, np.int32), pixels)
    found = {"finish": launches(lambda: finish(pixels), device)}
    found["finish with jitter"] = launches(lambda: finish(pixels, jitter), device)
    counts, soft = torch.ones(CLASSES, dtype=torch.int64, device=device), torch.randn(B, CLASSES, device=device)
    for method in ("ce", "bsce", "dive"):
        distill = DistillConfig(method=method, **({"tau": 3} if method == "dive" else {}))
        objective = Objective(distill, counts, (lambda batch: soft) if method == "dive" else None)
        logits = torch.randn(B, CLASSES, device=device, requires_grad=True)

        def loss(objective: Objective = objective, logits: torch.Tensor = logits) -> None:
            logits.grad = None
            objective(Outputs(logits), batch, 0)[0].backward()

        found[f"loss of {method}, forward and backward"] = launches(loss, device)
    meters, value = Meters(device), torch.ones((), device=device)
    found["meters of one part"] = launches(lambda: meters.add(0, value, {}), device)
    found["meters of three parts"] = launches(
        lambda: Meters(device).add(0, value, {"hard": value, "kl": value}), device
    )
    network = channels_last(build_model(name, CLASSES).to(device)).train()
    ema, config = Ema(network, EmaConfig(decay=0.99)), OptimConfig(batch=B, nesterov=True)
    found[f"moving average of {name}"] = launches(lambda: ema.update(1), device)
    optimizer = build_optimizer(network, config)
    objective = Objective(DistillConfig(method="ce"), counts, None)

    def plain() -> None:
        network(batch.images).sum().backward()

    def step_alone() -> None:
        optimizer.step()

    if device.type == "cpu":  # as on a GPU
        for group in optimizer.param_groups:
            group["fused"] = True
    plain()
    found[f"optimizer of {name}"] = launches(step_alone, device)
    step = TrainStep(network, optimizer, objective, config, meters=Meters(device))
    whole = found[f"the whole step of {name} with ce"] = launches(lambda: step(batch, 0, 0.0), device)
    recorded = TrainStep(network, optimizer, objective, config, meters=Meters(device), graph=True)
    more = launches(lambda: recorded(batch, 0, 0.0), device) - whole  # copies into the graph
    found["the same with cuda_graph=true, beside the one launch of the graph"] = more + found["meters of one part"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="resnet32")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    print(f"| launches per step ({options.device}, torch {torch.__version__}) | |\n|---|---:|")
    for part, count in parts(options.network, torch.device(options.device)).items():
        print(f"| {part} | {count} |")


if __name__ == "__main__":
    main()
