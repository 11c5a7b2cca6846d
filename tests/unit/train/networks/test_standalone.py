"""load.py of an export: it needs torch and safetensors alone, and gives the network."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import ModelSpec
from models.registry import MODELS
from train.networks.standalone import standalone

FORMS = [
    ModelSpec("resnet32", 5, head="cosine", head_scale=16, experts=3, expert_width=0.5, router=4),
    ModelSpec("resnet10", 5, experts=2),
    ModelSpec("resnet8", 5, head="cosine"),
]
LARGE = ("resnet34", "resnet50", "resnet101", "resnet44", "resnet56")  # of the blocks of others
PLAIN = [ModelSpec(name, 5) for name in MODELS if name not in LARGE]


def top_level_names(text: str) -> list[str]:
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return found


def loaded(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("load_of_an_export", folder / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@pytest.mark.parametrize("spec", [*PLAIN, *FORMS], ids=lambda spec: spec.architecture)
def test_it_gives_the_network(tmp_path: Path, spec: ModelSpec) -> None:
    torch.manual_seed(0)
    network = spec.build().eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    text = standalone(spec, [0.5] * 3, [0.25] * 3, 32)
    (tmp_path / "load.py").write_text(text)
    names = top_level_names(text)
    assert len(names) == len(set(names)) > 3  # of two definitions the second would be used by the first module too
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name or "").partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}
    own = loaded(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(own(images), network(images))
    assert not own.training and type(own).__module__ == "load_of_an_export"


def test_a_network_of_timm_is_made_by_timm(tmp_path: Path) -> None:
    text = standalone(ModelSpec("timm/resnet18", 5), [0.5] * 3, [0.25] * 3, 32)
    assert "Needs torch and safetensors, and timm." in text and "timm.create_model('resnet18', num_classes=5)" in text
    pytest.importorskip("timm", reason="timm is not installed")
    network = ModelSpec("timm/resnet18", 5).build().eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "load.py").write_text(text)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path)(images), network(images))
