"""Networks with several experts: parameters by formula, the mean as the answer, what experts share, frozen parts, compiling."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ModelSpec, Outputs, set_training
from models.experts import Form
from models.heads import CosineHead
from models.resnet_cifar import CifarExperts


def spec(name: str = "resnet8", classes: int = 5, experts: int | None = 3, **more: object) -> ModelSpec:
    return ModelSpec(name, classes, **{"head": "cosine", "experts": experts} | more)  # pyright: ignore[reportArgumentType]


def seeded(described: ModelSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return described.build()


def parameters(described: ModelSpec) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in described.build().parameters())


def outputs(network: nn.Module, images: Tensor) -> Outputs:
    returned = network(images)
    assert isinstance(returned, Outputs)
    return returned


# ---- the number of parameters, written independently of the networks ----


def norm(width: int) -> int:
    return 2 * width


def cifar_stage(inputs: int, width: int, blocks: int) -> int:
    """2 * blocks convolutions of 3x3, each with a batch norm; no parameters in shortcuts."""
    return 9 * inputs * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * norm(width)


def cifar_experts(blocks: int, experts: int, classes: int, middle: int = 24, last: int = 48) -> int:
    shared = 9 * 3 * 16 + norm(16) + cifar_stage(16, 16, blocks)
    own = cifar_stage(16, middle, blocks) + cifar_stage(middle, last, blocks) + last * classes
    return shared + experts * own


def bottleneck_stage(inputs: int, inner: int, outputs: int, blocks: int, groups: int) -> int:
    projection = inputs * outputs + norm(outputs)
    first = inputs * inner + norm(inner)
    later = outputs * inner + norm(inner)
    rest = 9 * inner * inner // groups + norm(inner) + inner * outputs + norm(outputs)
    return projection + first + (blocks - 1) * later + blocks * rest


def imagenet_experts(experts: int, classes: int, groups: int, inner: tuple[int, int, int, int]) -> int:
    """Depth 50; inner: the widths of the 3x3 convolutions of the four stages."""
    shared = 49 * 3 * 64 + norm(64)
    shared += bottleneck_stage(64, inner[0], 256, 3, groups) + bottleneck_stage(256, inner[1], 512, 4, groups)
    own = bottleneck_stage(512, inner[2], 768, 6, groups) + bottleneck_stage(768, inner[3], 1536, 3, groups)
    return shared + experts * (own + 1536 * classes)


@pytest.mark.parametrize(("experts", "millions"), [(1, 0.28), (3, 0.78), (4, 1.04), (6, 1.54)])
def test_parameters_of_resnet32_are_those_that_ride_reports(experts: int, millions: float) -> None:
    found = parameters(spec("resnet32", 100, experts))
    assert found == cifar_experts(5, experts, 100) == 23_824 + experts * 253_344
    assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize("experts", [3, 4])
def test_parameters_of_the_imagenet_networks(experts: int) -> None:
    plain = imagenet_experts(experts, 1000, 1, (64, 128, 192, 384))
    assert parameters(spec("resnet50", 1000, experts)) == plain
    grouped = imagenet_experts(experts, 1000, 32, (128, 256, 384, 768))
    assert parameters(spec("resnext50_32x4d", 1000, experts)) == grouped


def test_the_plain_network_is_as_large_as_ever() -> None:
    assert parameters(ModelSpec("resnet32", 100)) == 470_004
    assert parameters(spec("resnet32", 100, None)) == 470_004 - 100  # no bias


def test_the_formula_gives_the_plain_network_at_full_width() -> None:
    assert cifar_experts(5, 1, 100, 32, 64) == 470_004 - 100 == parameters(spec("resnet32", 100, 1, expert_width=1.0))


def test_widths_are_whole_channels() -> None:
    assert Form(width=0.75).widths(32, 64, 256, 512) == [24, 48, 192, 384]
    assert Form(width=0.7).widths(32, 64) == [22, 45]


# ---- forward ----


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("resnet8", 16, 48), ("resnet10", 33, 384), ("resnet50", 33, 1536), ("resnext50_32x4d", 33, 1536)],
)
def test_what_it_gives_back(name: str, size: int, width: int) -> None:
    network = seeded(spec(name, 5, 2)).train()
    images = torch.randn(3, 3, size, size)
    seen = outputs(network, images)
    assert seen.experts is not None and seen.features is not None and seen.router is None
    assert seen.logits.shape == (3, 5) and seen.experts.shape == (3, 2, 5) and seen.features.shape == (3, 2 * width)
    torch.testing.assert_close(seen.logits, (seen.experts[:, 0] + seen.experts[:, 1]) / 2)
    assert not torch.allclose(seen.experts[:, 0], seen.experts[:, 1])  # drawn independently
    F.cross_entropy(seen.logits, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    with torch.no_grad():
        answer = network.eval()(images)
    assert isinstance(answer, Tensor) and answer.shape == (3, 5)


def test_the_answer_is_the_mean_of_the_experts_by_themselves() -> None:
    network = seeded(spec(experts=3, head="linear")).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        x = F.relu(network.get_submodule("bn1")(network.get_submodule("conv1")(images)))
        x = network.get_submodule("layer1")(x)
        alone = []
        for i in range(3):
            part = network.get_submodule(f"experts.{i}.stages.layer3")(
                network.get_submodule(f"experts.{i}.stages.layer2")(x)
            )
            alone.append(network.get_submodule(f"experts.{i}.fc")(part.mean(dim=(2, 3))))
        torch.testing.assert_close(network(images), sum(alone) / 3)


def test_one_expert_does_not_see_another() -> None:
    network = seeded(spec(experts=2)).train()
    seen = outputs(network, torch.randn(4, 3, 16, 16))
    assert seen.experts is not None
    seen.experts[:, 0].square().sum().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("experts.0.") for name in with_gradient) and "conv1.weight" in with_gradient
    assert not any(name.startswith("experts.1.") for name in with_gradient)


def test_under_autocast_the_mean_has_full_precision() -> None:
    network = seeded(spec(head="linear")).train()
    with torch.autocast("cpu", torch.bfloat16):
        seen = outputs(network, torch.randn(4, 3, 16, 16))
    assert seen.experts is not None and seen.experts.dtype == torch.bfloat16
    torch.testing.assert_close(seen.logits, seen.experts.float().mean(1))


def test_a_frozen_trunk_keeps_its_statistics() -> None:
    network = seeded(spec(experts=2))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("experts."))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    set_training(network)
    outputs(network, torch.randn(4, 3, 16, 16))  # its outputs are those of training all the same
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("experts.") for name in moved)


def test_with_frozen_experts_it_still_says_in_training_what_each_expert_says() -> None:
    """The stage that trains a router: all but a new part is frozen."""
    network = seeded(spec(experts=2)).requires_grad_(False)
    network.register_module("new", nn.Linear(2, 2))
    set_training(network)
    images = torch.randn(2, 3, 16, 16)
    seen = outputs(network, images)
    torch.testing.assert_close(network.eval()(images), seen.logits)


# ---- form in memory, compiling ----


@pytest.mark.parametrize(("name", "size"), [("resnet8", 17), ("resnet10", 33)])
def test_channels_last_gives_the_same_logits(name: str, size: int) -> None:
    network, images = seeded(spec(name, 7)).eval(), torch.randn(2, 3, size, size)
    expected = network(images)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_it_is_traced_as_one_graph() -> None:
    torch.manual_seed(0)
    network = CifarExperts(1, 5, Form(partial(CosineHead, scale=30), 2)).train()
    images = torch.randn(4, 3, 16, 16)
    traced = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = traced(images), outputs(network, images)
    assert isinstance(found, Outputs) and found.experts is not None and expected.experts is not None
    torch.testing.assert_close(found.experts, expected.experts)
    torch.testing.assert_close(found.logits, expected.logits)
    network.eval()
    torch.testing.assert_close(traced(images), network(images))
