"""What only a GPU can tell: python tests/studies/device_facts.py PART ... (tests/gpu_visit.sh calls it; --device cpu rehearses).

    pixels FILE.beton     dali: whether a view's pixels depend on the size of its batch, at each share of the hardware decoder,
                          and how far they are from those of the CUDA decoder alone
    syncs SCRIPT ...      an entry script with its arguments, under torch's warnings for whatever makes the host wait; lists the
                          lines that did and how often
    busy TRACE.json       of a trace (profile.steps): the share of its time in which a kernel ran, and kernels and launches a step
    optimizer             milliseconds of a step of SGD: fused, over lists, one parameter at a time
    wrapped               the step of ResNet-32 compiled with CUDA graphs inside DistributedDataParallel, on one process
    recorded              the step of ResNet-32 as one CUDA graph beside the plain one: losses of 50 steps, launches, milliseconds

Prints lines of text. Owns these measurements and none of the product's; every part runs on a CPU too, where it tells little.
"""

import argparse
import collections
import importlib
import itertools
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import build_model
from pipelines.augment.recipe import Recipe
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.records.reader import Records
from train.meters import Meters
from train.networks.layout import DDP_OPTIONS, channels_last, compile_in_place, without_broadcasts
from train.objectives.methods import DistillConfig
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.run.exits import guard
from train.step import TrainStep

LOADS, SIZES, CLASSES = (0.0, 0.65, 1.0), (1, 16, 64, 256), 100
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")


def pixels(file: str, device: torch.device) -> None:
    records = Records(file)
    positions, views = np.arange(len(records)), np.zeros(len(records), np.int32)

    def seen(load: float, size: int) -> np.ndarray:
        loader = Loader(records, Recipe(), seed=0, backend="dali", finish=None, device=device, hw_decoder_load=load)
        return np.concatenate([item.pixels.cpu().numpy() for item in loader.batches(positions, views, size)])

    reference = seen(0.0, SIZES[-1]).astype(np.int16)
    for load in LOADS:
        found = {size: seen(load, size) for size in SIZES}
        apart = np.abs(found[SIZES[-1]] - reference)
        differing = {size: int((found[size] != found[SIZES[-1]]).any(axis=(1, 2, 3)).sum()) for size in SIZES[:-1]}
        print(
            f"hw_decoder_load={load}: views of {len(records)} that differ from those in batches of {SIZES[-1]}, by batch size: "
            f"{differing}; from load 0: {int(apart.any(axis=(1, 2, 3)).sum())} differ, mean {apart.mean():.4f}, largest "
            f"{apart.max()} levels",
            flush=True,
        )


def syncs(script: str, arguments: list[str]) -> None:
    main = importlib.import_module(f"train.{script}").main
    found: collections.Counter[str] = collections.Counter()

    def count(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            found[f"{os.path.relpath(filename, ROOT)}:{lineno}"] += 1

    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        sys.argv = [f"train/{script}.py", *arguments]
        code = guard(main)
    for place, times in found.most_common():
        print(f"{times:6} times the host waited at {place}")
    print(f"{sum(found.values())} in all, exit code {code}")
    raise SystemExit(code)


def busy(file: str) -> None:
    events = json.loads(Path(file).read_text())["traceEvents"]
    steps = [
        event for event in events if event.get("name", "").startswith("step ") and event.get("cat") == "user_annotation"
    ]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launched = sum(event.get("name", "").startswith(("cudaLaunch", "cuLaunch")) for event in events)
    graphs = sum(event.get("name", "") == "cudaGraphLaunch" for event in events)
    start, end = min(event["ts"] for event in steps), max(event["ts"] + event["dur"] for event in steps)
    covered, until = 0.0, start
    for event in sorted(kernels, key=lambda one: one["ts"]):
        last = min(end, event["ts"] + event["dur"])
        covered += max(0.0, last - max(until, event["ts"]))
        until = max(until, last)
    print(
        f"{len(steps)} steps in {(end - start) / 1e3:.2f} ms: a kernel ran for {covered / (end - start):.1%} of it; a step has "
        f"{len(kernels) / len(steps):.0f} kernels and copies, {launched / len(steps):.0f} launches, "
        f"{graphs / len(steps):.0f} launches of graphs"
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Any, device: torch.device, rounds: int) -> float:
    """The median of 5 rounds, after a warm-up."""
    taken = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(rounds):
            work()
        synchronize(device)
        taken.append((time.perf_counter() - start) / rounds * 1e3)
    return float(np.median(taken[1:]))


def optimizer(device: torch.device, rounds: int) -> None:
    for name in ("resnet32", "resnet50"):
        network = build_model(name, CLASSES).to(device)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        for kind in ({"fused": True}, {"foreach": True}, {"foreach": False}):
            sgd = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9, nesterov=True, weight_decay=1e-4, **kind)
            print(f"{name}, {kind}: {milliseconds(sgd.step, device, rounds):.3f} ms", flush=True)


def wrapped(device: torch.device, rounds: int, mode: str | None) -> None:
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method="tcp://127.0.0.1:29531",
        rank=0,
        world_size=1,
    )
    try:
        config = OptimConfig(batch=128, nesterov=True)
        images = torch.randn(128, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        labels = torch.arange(128, device=device) % CLASSES
        batch = Batch(images, labels, np.arange(128), np.zeros(128, np.int32), images)
        counts = torch.ones(CLASSES, dtype=torch.int64, device=device)
        for shared in (False, True):
            network: nn.Module = channels_last(build_model("resnet32", CLASSES).to(device)).train()
            sgd = build_optimizer(network, config)
            compile_in_place(network, mode is not None, mode or "")
            if shared:
                network = without_broadcasts(DistributedDataParallel(network, **DDP_OPTIONS))
            objective = Objective(DistillConfig(method="bsce"), counts, None, compile_mode=mode)
            step = TrainStep(network, sgd, objective, config)
            taken = milliseconds(lambda step=step: step(batch, 0, 0.0), device, rounds)
            print(f"resnet32, batch 128, {mode}, in DDP: {shared}: {taken:.2f} ms a step", flush=True)
    finally:
        torch.distributed.destroy_process_group()


def recorded(device: torch.device, steps: int) -> None:
    """Ends with code 1 where losses differ. They are equal to the bit: the algorithms are deterministic, and a float32 holds the
    rates, to which a graph rounds them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = "bf16" if device.type == "cuda" else "fp32"
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    losses: dict[bool, list[list[float]]] = {}
    modes = (None, "default") if device.type == "cuda" else (None,)
    for exact, mode, graph in itertools.product((True, False), modes, (False, True)):
        torch.use_deterministic_algorithms(exact)
        torch.backends.cudnn.benchmark = not exact
        meters = Meters(device)
        step = _bsce_step(accelerator, device, mode, graph, meters)
        if exact:
            found = losses.setdefault(mode is not None, [])
            found.append([])
            for number in range(steps):
                step(_images(number, device), number, 0.5 ** (2 + number % 4))
                found[-1].append(meters.read(accelerator)["loss"])
            continue
        batch = _images(0, device)
        taken = milliseconds(lambda step=step, batch=batch: step(batch, 0, 0.0), device, steps)
        launched = _launches(lambda step=step, batch=batch: step(batch, 0, 0.0), device)
        print(
            f"resnet32, batch 128, {precision}, compile_mode={mode}, cuda_graph={graph}: {taken:.2f} ms a step, "
            f"{128 / taken * 1e3:,.0f} images/s, {launched} launches",
            flush=True,
        )
    torch.use_deterministic_algorithms(False)
    apart = {fast: max(abs(a - b) for a, b in zip(*found, strict=True)) for fast, found in losses.items()}
    print(
        f"largest difference of a loss in {steps} steps, plain and recorded, by whether it is compiled: {apart} (allowed: 0)"
    )
    raise SystemExit(int(any(apart.values())))


def _images(number: int, device: torch.device) -> Batch:
    rng = torch.Generator().manual_seed(number)
    images = torch.randn(128, 3, 32, 32, generator=rng).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (128,), generator=rng).to(device)
    given = images.bfloat16() if device.type == "cuda" else images
    return Batch(given, labels, np.arange(128), np.zeros(128, np.int32), images)


def _bsce_step(
    accelerator: Accelerator, device: torch.device, mode: str | None, graph: bool, meters: Meters
) -> TrainStep:
    torch.manual_seed(0)
    network = channels_last(build_model("resnet32", CLASSES).to(device)).train()
    config = OptimConfig(batch=128, nesterov=True)
    sgd = build_optimizer(network, config)
    compile_in_place(network, mode is not None, mode or "")
    model, sgd = accelerator.prepare(network, sgd)
    counts = torch.ones(CLASSES, dtype=torch.int64, device=device)
    objective = Objective(DistillConfig(method="bsce"), counts, None, compile_mode=mode)
    return TrainStep(model, sgd.optimizer, objective, config, meters=meters, graph=graph)


def _launches(work: Any, device: torch.device) -> int:
    """What the host asks a GPU for in one call; 0 on a CPU."""
    with torch.profiler.profile() as seen:
        work()
        synchronize(device)
    events = seen.events()
    assert events is not None
    return sum(event.name.startswith(LAUNCHES) for event in events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("part", choices=("pixels", "syncs", "busy", "optimizer", "wrapped", "recorded"))
    parser.add_argument("given", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    device, on_gpu = torch.device(options.device), options.device == "cuda"
    if options.part == "pixels":
        pixels(options.given[0], device)
    elif options.part == "syncs":
        syncs(options.given[0], options.given[1:])
    elif options.part == "busy":
        busy(options.given[0])
    elif options.part == "optimizer":
        optimizer(device, 100 if on_gpu else 1)
    elif options.part == "recorded":
        recorded(device, 50 if on_gpu else 2)
    else:
        wrapped(device, 50 if on_gpu else 1, "reduce-overhead" if on_gpu else None)


if __name__ == "__main__":
    main()
