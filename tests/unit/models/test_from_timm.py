"""What is said where timm cannot be used; and, where it is installed, its published weights, from a cache of huggingface_hub."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.from_timm import import_timm, published
from models.registry import ModelSpec
from pipelines.errors import UserError
from train.networks.initial import initialise


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_package", "needs no_such_package, which is missing"),
        (
            "raise RuntimeError('operator torchvision::nms is not there')",
            r"\(operator torchvision::nms is not there\): torchv",
        ),
        ("raise OSError('libcudart.so: no such file\\nand more')", r"\(libcudart.so: no such file\): torchvision"),
    ],
)
def test_a_timm_that_does_not_import_is_one_line_that_says_what_to_type(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        ValueError, match=f"^model 'timm/x' needs timm, which .*{words}.*; type: bash tools/setup.sh timm$"
    ):
        import_timm("model 'timm/x'")


def test_without_timm_its_weights_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    spec = ModelSpec("resnet18", 5)
    with pytest.raises(
        UserError, match="^model.init=timm: the download needs the timm package; type: bash tools/setup.sh timm$"
    ):
        initialise(spec.build(), "timm", spec, list("abcde"))


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Made-up weights of resnet18 where a download would have put them; nothing else can be fetched."""
    timm = pytest.importorskip("timm", reason="timm is not installed: bash tools/setup.sh timm")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(3)
    state = timm.create_model("resnet18").state_dict()
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    (folder / "snapshots/1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("1")
    save_file(state, folder / "snapshots/1/model.safetensors")
    return state


def test_published_weights_fill_our_network_and_timms(downloaded: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    following = torch.rand(3)
    torch.manual_seed(0)
    found = published("resnet18")
    assert torch.equal(torch.rand(3), following)  # the training's random numbers are as without
    assert found.name == "resnet18.a1_in1k" and found.mean == [0.485, 0.456, 0.406] and found.input_size == 224
    for name, classes in (("resnet18", 5), ("timm/resnet18", 5), ("resnet18", 1000)):
        spec = ModelSpec(name, classes)
        network = spec.build()
        head = network.state_dict()["fc.weight"].clone()
        report = initialise(network, "timm", spec, [f"{c}" for c in range(classes)]).report
        taken = network.state_dict()
        assert all(torch.equal(taken[n], downloaded[n]) for n in taken if not n.startswith("fc."))
        assert torch.equal(taken["fc.weight"], head)  # even of 1000 classes, which need not be those of ImageNet
        assert "model.init=timm: resnet18.a1_in1k, trained with data.mean=[0.485, 0.456, 0.406]" in report[0]
        assert "100 of 102 tensors taken" in report[1]


def test_weights_that_are_not_there_are_one_line(downloaded: dict[str, torch.Tensor]) -> None:
    for name in ("resnet32", "resnet18.no_such_tag"):
        with pytest.raises(ValueError, match=f"names no weights for {name}; give a file of weights, model.init=FILE"):
            published(name)
    with pytest.raises(ValueError, match="the weights of resnet34 cannot be downloaded .* model.init=FILE$"):
        published("resnet34")
