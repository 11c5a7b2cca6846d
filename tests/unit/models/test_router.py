"""Routers: an image goes from expert to expert as its router logits say, whether experts are skipped or left out."""

from functools import partial

import pytest
import torch
from helpers.made_experts import MadeExperts, made_images
from helpers.nondeterministic import Refused
from torch import Tensor, nn

from models import ModelSpec, Outputs, outputs_of, set_training
from models.experts import Form
from models.features import last_layers, require_features, watched
from models.heads import CosineHead, Head
from models.outputs import freeze_all_but
from models.resnet_cifar import CifarExperts
from models.router import Router, all_experts, experts_of_routers, experts_told

COSINE = partial(CosineHead, scale=30)
IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def routed(head: Head = COSINE, share: float = 0.5) -> nn.Module:
    """A small network in eval mode, of which about this share of IMAGES goes on after each expert."""
    torch.manual_seed(0)
    network = CifarExperts(1, 12, Form(head, experts=3, router=7)).train()
    with torch.no_grad():
        for _ in range(10):
            network(IMAGES)
        network.eval()
        router = network.get_submodule("router")
        assert isinstance(router, Router)
        nn.init.zeros_(router.unit.weight)
        for i, code in enumerate(router.codes):  # a unit that sees one number of the code, the same for all routers
            nn.init.normal_(code.weight)
            nn.init.constant_(code.bias, 10)
            router.unit.weight[0, router.choices] = 1
            nn.init.zeros_(router.unit.bias)
            logits = of_all(network).router
            assert logits is not None
            code.bias[0] -= logits[:, i].quantile(1 - share) - 10
        router.unit.bias -= 10
    return network


@torch.no_grad()
def of_all(network: nn.Module, images: Tensor = IMAGES) -> Outputs:
    """What training mode gives, by the batch norms of eval mode."""
    for part in network.children():
        part.eval()
    network.training = True
    outputs = outputs_of(network(images))
    network.eval()
    return outputs


def by_hand(outputs: Outputs) -> tuple[Tensor, list[int]]:
    """(logits, experts used), image by image."""
    assert outputs.experts is not None and outputs.router is not None
    logits, used = [], []
    for experts, router in zip(outputs.experts, outputs.router, strict=True):
        number = 1
        while number < len(experts) and torch.sigmoid(router[number - 1]) > 0.5:
            number += 1
        logits.append(experts[:number].sum(0) / number)
        used.append(number)
    return torch.stack(logits), used


@torch.no_grad()
def told(network: nn.Module, images: Tensor = IMAGES) -> Outputs:
    with experts_told(network):
        return outputs_of(network(images))


def rows_of_experts(network: nn.Module, images: Tensor = IMAGES) -> list[int]:
    """On how many images each expert is run; 0: it is not called."""
    rows = [0] * 3
    handles = []
    for i, head in enumerate(last_layers(network)):

        def count(_: nn.Module, inputs: tuple[Tensor, ...], i: int = i) -> None:
            rows[i] += len(inputs[0])

        handles.append(head.register_forward_pre_hook(count))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("head", [nn.Linear, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_an_image_is_answered_by_the_experts_that_it_goes_to(share: float, head: Head) -> None:
    network = routed(head, share)
    router = network.get_submodule("router")
    if share in (0.0, 1.0):  # none goes on, or all do
        assert isinstance(router, Router)
        nn.init.constant_(router.unit.bias, -1e4 if share == 0 else 1e4)
    expected, used = by_hand(of_all(network))
    counts = [sum(number > i for number in used) for i in range(3)]
    assert counts == {0.0: [24, 0, 0], 1.0: [24, 24, 24]}.get(share, counts)
    assert share in (0.0, 1.0) or 24 > counts[1] > counts[2] > 0
    found = told(network)
    assert found.used is not None and found.used.tolist() == used
    torch.testing.assert_close(found.logits, expected, rtol=1e-6, atol=2e-6)
    assert rows_of_experts(network) == counts
    with all_experts(network), torch.no_grad():
        masked = network(IMAGES)
        assert rows_of_experts(network) == [24, 24, 24]
    torch.testing.assert_close(masked, expected, rtol=1e-6, atol=2e-6)
    assert isinstance(masked, Tensor) and torch.equal(network(IMAGES), found.logits)


def test_skipping_and_leaving_out_agree() -> None:
    """In double precision, where rounding does not hide a fault; and in the layouts and precisions of training."""
    network = routed().double()
    with all_experts(network), torch.no_grad():
        masked = network(IMAGES.double())
    skipped = told(network, IMAGES.double())
    assert skipped.used is not None and skipped.used.unique().tolist() == [1, 2, 3]
    torch.testing.assert_close(skipped.logits, masked, rtol=0, atol=1e-12)
    network.float().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = IMAGES.to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), torch.no_grad():
            skipped = network(images)
            with all_experts(network):
                masked = network(images)
        assert skipped.dtype == torch.float32
        torch.testing.assert_close(skipped, masked, rtol=1e-6, atol=2e-6)


def test_experts_run_in_channels_last_on_some_images() -> None:
    network, seen = routed(), []
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    stage = network.get_submodule("experts.1.stages")
    handle = stage.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    told(network, IMAGES.to(memory_format=torch.channels_last))
    handle.remove()
    assert len(seen) == 1 and 0 < len(seen[0]) < 24
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def made() -> tuple[nn.Module, Tensor]:
    """(the small network of helpers/made_experts.py, which is traced in no time; images, of which some go on)"""
    torch.manual_seed(0)
    network, images = MadeExperts().eval(), made_images(24)[0]
    with torch.no_grad():
        logits = network.experts(images, network.router).router
        assert logits is not None
        network.router.unit.bias -= logits.median() + 1e-3
    return network, images


def test_what_is_compiled_or_exported_gives_the_same_answers() -> None:
    network, images = made()
    expected = told(network, images)
    assert expected.used is not None and expected.used.unique().tolist() == [1, 2]
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    close = {"rtol": 1e-6, "atol": 1e-6}
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), expected.logits, **close)
        with experts_told(network):
            found = compiled(images)
        assert isinstance(found, Outputs) and found.used is not None
        assert torch.equal(found.used, expected.used)
        assert isinstance(compiled(images), Tensor)  # within `experts_told` alone
        shapes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(network, (images,), dynamic_shapes=shapes).module()
        torch.testing.assert_close(exported(images[:5]), network(images[:5]), **close)


def test_training_is_traced_as_one_graph() -> None:
    network, images = made()
    freeze_all_but(network, "router")
    set_training(network)
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(images), outputs_of(network(images))
    assert isinstance(found, Outputs) and found.router is not None and expected.router is not None
    assert found.router.dtype == torch.float32 and found.router.shape == (24, 1)
    torch.testing.assert_close(found.router, expected.router)
    assert found.router.requires_grad and not found.logits.requires_grad


def test_a_router_sees_the_largest_mean_logits_and_a_code_of_directions() -> None:
    torch.manual_seed(0)
    router = Router(3, features=4, choices=2)
    assert sum(p.numel() for p in router.parameters()) == 2 * (4 * 16 + 16) + (2 + 16) + 1
    mean, features = torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([[0.0, 3.0, 0.0, 4.0]])
    code = torch.relu(router.codes[1](torch.tensor([[0.0, 0.6, 0.0, 0.8]])))
    expected = router.unit(torch.cat([torch.tensor([[5.0, 3.0]]), code], dim=1))[0]
    torch.testing.assert_close(router(1, mean, features), expected)
    torch.testing.assert_close(router(1, mean, 7 * features), expected)  # not of their length
    assert router(1, mean, 0 * features).isfinite().all()
    experts = torch.randn(5, 3, 3)
    each = router.after_each(experts, [torch.randn(5, 4) for _ in range(3)])
    assert each.shape == (5, 2)
    rounded = router.after_each(experts.bfloat16(), [torch.randn(5, 4).bfloat16() for _ in range(3)])
    assert rounded.dtype == torch.float32


def test_all_else_has_the_weights_of_its_seed() -> None:
    torch.manual_seed(3)
    plain = ModelSpec("resnet8", 12, "cosine", experts=3).build().state_dict()
    torch.manual_seed(3)
    network = ModelSpec("resnet8", 12, "cosine", experts=3, router=7).build()
    state = network.state_dict()
    assert {name for name in state if name not in plain} == {
        *(f"router.codes.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")),
        *(f"router.unit.{kind}" for kind in ("weight", "bias")),
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.items())
    assert experts_of_routers(network) == 3
    assert experts_of_routers(ModelSpec("resnet8", 12, experts=3).build()) is None


@pytest.mark.parametrize(
    ("name", "size", "width"), [("resnet10", 33, 384), ("resnet50", 33, 1536), ("resnext50_32x4d", 33, 1536)]
)
def test_the_other_networks_have_routers_too(name: str, size: int, width: int) -> None:
    torch.manual_seed(0)
    network = ModelSpec(name, 6, "cosine", experts=2, router=6).build().train()
    outputs = outputs_of(network(torch.randn(3, 3, size, size)))
    assert outputs.router is not None and outputs.router.shape == (3, 1)
    assert network.get_parameter("router.codes.0.weight").shape == (16, width)
    network.eval()
    answer = told(network, torch.randn(2, 3, size, size))
    assert answer.logits.shape == (2, 6) and answer.used is not None and answer.used.shape == (2,)


def test_only_the_router_is_trained() -> None:
    network = routed()
    freeze_all_but(network, "router")
    set_training(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with Refused() as refused:
        outputs = outputs_of(network(IMAGES))
        assert outputs.router is not None
        outputs.router.sum().backward()
    assert refused.found == set(), "a deterministic GPU refuses"
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in network.named_parameters() if name.startswith("router.")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(KeyError, match="CifarResNet has no part router"):
        freeze_all_but(ModelSpec("resnet8", 3).build(), "router")


def test_features_are_those_of_all_experts() -> None:
    network = routed()
    with torch.no_grad(), watched(network) as seen:
        answer = network(IMAGES)
        assert seen[0].shape == (24, 3 * 48) and torch.equal(seen[0], of_all(network).features)
    torch.testing.assert_close(answer, network(IMAGES), rtol=1e-6, atol=2e-6)
    require_features(network, 16, torch.device("cpu"))
    assert rows_of_experts(network)[2] < 24  # experts are skipped again


def test_switches_are_put_back() -> None:
    network = routed()
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(RuntimeError), experts_told(network), all_experts(network):
            network(torch.zeros(2, 1, 16, 16))
        assert isinstance(network(IMAGES), Tensor) and torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = benchmark
    router = network.get_submodule("router")
    assert isinstance(router, Router) and router.skips and not router.tells
    with experts_told(nn.Linear(2, 2)):  # a network without routers has none to tell
        pass
