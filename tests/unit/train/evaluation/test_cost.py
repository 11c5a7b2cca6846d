"""The operations of networks against sums written by hand, and torchvision's published number for ResNet-18."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launch import result, run, tiny_config
from torch import nn

from models import ModelSpec
from train import experiment
from train.evaluation.cost import Operations, operations

CPU = torch.device("cpu")


def build(spec: ModelSpec) -> nn.Module:
    return spec.build().eval()


def stage(inputs: int, width: int, blocks: int, side: int) -> int:
    """Multiply-adds of 2 * blocks convolutions of 3x3, whose outputs are side x side."""
    return 9 * side**2 * (inputs * width + (2 * blocks - 1) * width**2)


def resnet20(size: int, classes: int, middle: int = 32, last: int = 64) -> tuple[int, int]:
    """(multiply-adds of what is shared, of the rest once)"""
    shared = 9 * 3 * 16 * size**2 + stage(16, 16, 3, size)
    own = stage(16, middle, 3, size // 2) + stage(middle, last, 3, size // 4) + last * classes
    return shared, own


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_of_plain_networks(head: str) -> None:
    shared, own = resnet20(32, 10)
    network = build(ModelSpec("resnet20", 10, head))
    assert operations(network, 32, CPU).figures(None) == {"flops": 2 * (shared + own)}


def test_of_experts() -> None:
    shared, own = resnet20(16, 10, 24, 48)
    network = build(ModelSpec("resnet20", 10, "cosine", experts=3))
    assert operations(network, 16, CPU).figures(None) == {"flops": 2 * (shared + 3 * own)}


def test_of_a_network_with_routers() -> None:
    """By the shares of images that are run on each expert; the routers run on the same, but for the last."""
    shared, own = resnet20(16, 10, 24, 48)
    network = build(ModelSpec("resnet20", 10, "cosine", experts=3, router=5))
    router = 48 * 16 + (16 + 5)
    counted = operations(network, 16, CPU)
    assert counted == (2 * shared, [2 * own] * 3, [2 * router] * 2)
    assert (
        counted.without_routing
        == operations(build(ModelSpec("resnet20", 10, "cosine", experts=3)), 16, CPU).figures(None)["flops"]
    )
    found = operations(network, 16, CPU).figures([1.0, 0.5, 0.25])
    assert found == {
        "flops": 2 * (shared + 3 * own),
        "flops_routed": round(2 * (shared + 1.75 * own + 1.5 * router)),
    }
    nn.init.constant_(network.get_parameter("router.unit.bias"), -1e4)  # whatever this image would need
    assert operations(network, 16, CPU) == counted
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_the_number_of_torchvision() -> None:
    """1.814 billion multiply-adds for ResNet-18, by torchvision's documentation of its weights."""
    assert operations(build(ModelSpec("resnet18", 1000)), 224, CPU).without_routing == pytest.approx(
        2 * 1.814e9, rel=1e-3
    )


def test_what_is_compiled_is_not_used() -> None:
    network = build(ModelSpec("resnet20", 10))
    expected = operations(network, 16, CPU).figures(None)

    def compiled(graph: object, inputs: object) -> None:
        raise AssertionError("it was compiled")

    network.compile(backend=compiled)
    with torch.autocast("cpu", torch.bfloat16):
        assert operations(network, 16, CPU).figures(None) == expected


def test_operations_are_counted_once_for_all_splits_and_weights(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def counting(*given: Any) -> Operations:
        counted.append(operations(*given))
        return counted[-1]

    monkeypatch.setattr(experiment, "operations", counting)
    settings = (f"data.val={tiny / 'test.beton'}", "ema.decay=0.9", "schedule.epochs=1", "run=once")
    run("teacher", tiny_config(tmp_path, tiny), *settings, cwd=tmp_path)
    figures = result(tmp_path, "once")
    (once,) = counted
    assert {figures[name]["flops"] for name in ("val", "val_ema", "test", "test_ema")} == {once.without_routing}


def test_attention_is_counted_on_every_device() -> None:
    """Two products of [tokens, width] matrices for each head; torch's counter knows the fused forms of GPUs alone."""

    class Attends(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.reshape(1, 3, 16, 4)  # one image, three heads
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert operations(Attends().eval(), 8, CPU) == Operations(2 * 2 * 3 * 16 * 16 * 4, [], [])
