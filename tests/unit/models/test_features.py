"""Features are what the last layer is given, of our networks and of timm's; where it is not known, nothing is guessed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import ModelSpec, build_model
from models.features import UnknownFeatures, last_layer, last_layers, require_features, watched

CPU = torch.device("cpu")


def require_exact(name: str, size: int, width: int) -> None:
    """The last layer maps the features that were seen to the network's logits, and the network is as it was."""
    torch.manual_seed(0)
    network = build_model(name, 3).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(images)
        with watched(network) as seen:
            assert torch.equal(network(images), expected)
            assert seen[0].shape == (2, width) and seen[0].dtype == torch.float32
            assert torch.equal(last_layer(network)(seen[0]), expected)
            network(images[:1])
            assert len(seen) == 1 and len(seen[0]) == 1  # of the last pass alone
        network(images)
        assert len(seen[0]) == 1  # the hook is gone
    require_features(network, size, CPU)
    assert not last_layer(network)._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "size", "width"), [("resnet8", 16, 64), ("resnet10", 32, 512), ("resnet50", 32, 2048)]
)
def test_our_networks(name: str, size: int, width: int) -> None:
    require_exact(name, size, width)


def test_those_of_experts_are_side_by_side() -> None:
    torch.manual_seed(0)
    network = ModelSpec("resnet8", 3, "cosine", experts=2).build().eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        network.train()
        in_training = network(images).features
        network.eval()
        expected = network(images)
        with watched(network) as seen:
            assert torch.equal(network(images), expected)
            assert seen[0].shape == (4, 2 * 48) and seen[0].dtype == torch.float32
            heads = last_layers(network)
            one, other = (head(part) for head, part in zip(heads, seen[0].chunk(2, dim=1), strict=True))
            torch.testing.assert_close((one + other) / 2, expected)
            with torch.autocast("cpu", torch.bfloat16):
                network(images[:1])
            assert len(seen) == 1 and len(seen[0]) == 1 and seen[0].dtype == torch.float32
    require_features(network, 16, CPU)
    assert in_training.shape == (4, 2 * 48) and not any(head._forward_pre_hooks for head in heads)


@pytest.mark.parametrize(
    ("name", "size", "width"), [("timm/resnet18", 32, 512), ("timm/vit_tiny_patch16_224", 224, 192)]
)
def test_networks_of_timm(name: str, size: int, width: int) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    require_exact(name, size, width)


def test_a_network_of_timm_with_two_heads() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(UnknownFeatures, match="no single last layer"):
        last_layer(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3))


class Plain(nn.Module):
    """A network whose layers are given, and how often its last one is called."""

    def __init__(self, calls: int = 1, **layers: nn.Module):
        super().__init__()
        self.calls = calls
        self.trunk = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(12))
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        outputs = [layer(features) for layer in list(self.children())[1:] for _ in range(self.calls)]
        return torch.stack(outputs).mean(0)


class AsInTimm(Plain):
    """`fc` is a layer inside, and get_classifier() names the last one."""

    def get_classifier(self) -> nn.Module:
        return self.head  # type: ignore[return-value]


def test_what_timm_says_counts_before_a_layer_called_fc() -> None:
    network = AsInTimm(fc=nn.Identity(), head=nn.Linear(12, 3))
    assert last_layer(network) is network.head


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Plain(head=nn.Linear(12, 3)), "it has no single last layer, neither as `fc` nor by timm's get_classifier"),
        (Plain(fc=nn.Identity()), "it has no single last layer"),
        (Plain(fc=nn.Linear(12, 3), calls=2), "an image goes through its last layer 2 times, not once"),
        (Plain(fc=nn.Linear(12, 3), calls=0), "0 times, not once"),
    ],
)
def test_a_last_layer_that_is_not_known(network: Plain, words: str) -> None:
    if network.calls == 0:
        network.forward = network.trunk.forward  # type: ignore[method-assign]
    with pytest.raises(UnknownFeatures, match=f"^the features of Plain are not known: .*{words}"):
        require_features(network, 8, CPU)


def test_the_try_leaves_no_trace() -> None:
    """Not in the modes of its parts, of which some may be frozen, nor in their statistics."""
    network = Plain(fc=nn.Linear(12, 3)).train()
    network.trunk.eval()
    before = copy.deepcopy(network.state_dict())
    require_features(network, 8, CPU)
    assert [network.training, network.trunk.training, network.trunk[2].training] == [True, False, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
