"""How several processes share a network, and in which type it is given its images."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.launch import run, tiny_config
from helpers.one_rank import group_of_one
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.registry import build_model, model_names
from train import assembly
from train.networks.layout import DDP_OPTIONS, channels_last, input_dtype, without_broadcasts


def test_running_statistics_are_not_sent(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert without_broadcasts(network) is network
    with group_of_one(tmp_path):
        shared = DistributedDataParallel(network, **DDP_OPTIONS)
        shared(torch.randn(2, 3, 4, 4)).sum().backward()
        assert shared.will_sync_module_buffers()
        assert without_broadcasts(shared) is shared and not shared.will_sync_module_buffers()
        shared(torch.randn(2, 3, 4, 4)).sum().backward()


@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnext50_32x4d"])
def test_narrow_images_are_what_autocast_would_make_of_them(name: str) -> None:
    """The same bits in the logits and in all gradients."""
    torch.manual_seed(0)
    network = channels_last(build_model(name, 5)).train()
    images, found = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last), []
    for given in (images, images.to(input_dtype(name, "bf16"))):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(given)
        logits.float().square().sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in network.parameters())])
        network.zero_grad()
    assert all(torch.equal(wide, narrow) for wide, narrow in zip(*found, strict=True))


def test_every_network_that_is_given_narrow_images_begins_with_a_convolution() -> None:
    for name in model_names():
        assert input_dtype(name, "bf16") == torch.bfloat16 and input_dtype(name, "fp32") == torch.float32
        first: list[nn.Module] = []
        with torch.device("meta"):  # shapes alone
            network = build_model(name, 3).eval()
            for part in network.modules():
                if not list(part.children()):
                    part.register_forward_hook(lambda part, *_, first=first: first.append(part))
            network(torch.zeros(1, 3, 32, 32))
        assert isinstance(first[0], nn.Conv2d), name
    assert input_dtype("timm/vit_tiny_patch16_224", "bf16") == torch.float32


@pytest.fixture
def any_precision():
    """Accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_a_run_on_narrow_images_is_the_run_on_wide_ones(tiny: Path, tmp_path: Path, any_precision: None) -> None:
    config, found, types = tiny_config(tmp_path, tiny), [], []
    for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32)):

        def told(*given: str, dtype: torch.dtype = dtype) -> torch.dtype:
            types.append(input_dtype(*given))
            return dtype

        with mock.patch.object(assembly, "input_dtype", told):
            run("teacher", config, f"run={name}", "precision=bf16", "data.recipe.cutout=4", cwd=tmp_path)
        found.append((tmp_path / "runs" / name / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert set(types) == {torch.bfloat16}
