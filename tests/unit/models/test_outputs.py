"""One form for what networks return; frozen parts stay unchanged while the rest trains."""

import torch
from torch import nn

from models import Outputs, build_model, outputs_of, set_training


def test_logits_alone_are_outputs() -> None:
    logits = torch.randn(4, 5)
    assert outputs_of(logits).logits is logits and outputs_of(logits)[1:] == (None, None, None, None)
    more = Outputs(logits, experts=torch.randn(4, 3, 5))
    assert outputs_of(more) is more


def test_in_eval_mode_a_network_returns_its_answer_alone() -> None:
    network = build_model("resnet8", 5).eval()
    assert isinstance(network(torch.randn(2, 3, 16, 16)), torch.Tensor)


def test_what_is_trained_is_in_training_mode() -> None:
    network = build_model("resnet8", 5).eval()
    set_training(network)
    assert all(part.training for part in network.modules())


def test_a_frozen_trunk_keeps_its_statistics_and_its_weights() -> None:
    torch.manual_seed(0)
    network = build_model("resnet8", 5)
    network.requires_grad_(False)
    head = network.get_submodule("fc").requires_grad_(True)
    network.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    set_training(network)
    assert network.training and head.training
    optimizer = torch.optim.SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        nn.functional.cross_entropy(network(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_dropout_within_a_frozen_part_is_off() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).requires_grad_(False), nn.Linear(3, 2))
    set_training(network)
    assert not network[0][1].training and network[1].training
