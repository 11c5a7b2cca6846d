"""An export as timm and Hugging Face know it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from models import ModelSpec
from train.networks.hub import card_head, name_in_timm, timms_config
from train.networks.info import ModelInfo


def info(architecture: str) -> ModelInfo:
    return ModelInfo(
        architecture=architecture,
        class_names=["ant", "bee", "cat", "dog", "eel"],
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.25, 0.3],
        input_size=64,
        evaluation_recipe={"size": 64, "short_side": 80},
    )


def test_which_networks_timm_has() -> None:
    names = {name: name_in_timm(name) for name in ("resnet50", "timm/vit_tiny", "resnet32", "resnet10")}
    assert names == {"resnet50": "resnet50", "timm/vit_tiny": "vit_tiny", "resnet32": None, "resnet10": None}
    assert name_in_timm("resnet50 head=cosine head_scale=30") is None


@pytest.mark.parametrize(("architecture", "library"), [("resnet50", "timm"), ("resnet32", "pytorch")])
def test_the_head_of_a_card(architecture: str, library: str) -> None:
    _, text, rest = card_head(info(architecture)).split("---\n")
    head = yaml.safe_load(text)
    assert head["library_name"] == library and head["pipeline_tag"] == "image-classification" and not rest


def test_timm_gets_the_short_side_that_was_measured() -> None:
    """It rounds size / crop_pct down: 354 would be 353 of 224 / 354."""
    for size, short_side in [
        (224, 354),
        (192, 225),
        (443, 506),
        (224, 256),
        *((n, n + k) for n in (32, 64) for k in range(50)),
    ]:
        given = replace(info("resnet18"), evaluation_recipe={"size": size, "short_side": short_side})
        crop = json.loads(timms_config("resnet18", given))["pretrained_cfg"]["crop_pct"]
        assert math.floor(size / crop) == short_side and crop == pytest.approx(size / short_side)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_timm_loads_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes(timms_config(name, info(name)))
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.8
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = ModelSpec(name, 5).build().eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(images), network(images), atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert list(data["mean"]) == [0.5, 0.4, 0.3] and data["crop_pct"] == 0.8 and list(data["input_size"]) == [3, 64, 64]
