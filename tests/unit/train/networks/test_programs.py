"""Programs of a network: they give its logits for any number of images, or are not written."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from helpers.launch import refused, run, tiny_config
from torch import nn

from models import ModelSpec, load_network
from models.registry import MODELS, Architecture
from pipelines.errors import UserError
from train.networks import programs
from train.networks.programs import Normalising, Programs, write_programs

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
PLAIN, ROUTED = ModelSpec("resnet8", 5), ModelSpec("resnet8", 5, head="cosine", experts=2, router=3)


def written(folder: Path, spec: ModelSpec, wanted: Programs, size: int = 8) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    network = spec.build().eval()
    return network, write_programs(folder, wanted, spec, network.state_dict(), MEAN, STD, size)


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def test_a_program_of_torch_export_is_the_network(tmp_path: Path) -> None:
    """With routers, all experts run in it; for numbers of images that were not tried."""
    network, made = written(tmp_path, ROUTED, Programs(["torch_export"]))
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 2, 7):
        images = (pixels(count) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            assert torch.allclose(program(pixels(count)), network(images), atol=1e-4)
    (found,) = made.values()
    assert found["input"] == "uint8" and found["shape"] == ["batch", 3, 8, 8] and found["images_compared"] == 6
    assert 0 <= found["largest_difference"] < 1e-4 * found["largest_logit"]


def test_a_full_disk_is_an_error_with_the_files_name() -> None:
    """Torch's own writer ends the process."""
    with pytest.raises(OSError, match="No space left on device"):
        programs._write_torch_export(PLAIN.build().eval(), torch.zeros(2, 3, 8, 8), Path("/dev/full"))


def test_a_program_of_onnx_is_the_network(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    network, made = written(tmp_path, PLAIN, Programs(["onnx"], "normalised"))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"] and session.get_inputs()[0].shape[0] == "batch"
    for count in (1, 2, 7):
        images = pixels(count).float() / 128 - 1
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), network(images), atol=1e-4)
    assert made["model.onnx"]["opset"] >= 18 and sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_the_normalisation_is_that_of_the_views() -> None:
    module = Normalising(nn.Identity(), MEAN, STD)
    expected = (pixels(2).double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(module(pixels(2)).double(), expected, atol=1e-5)


def test_another_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs._WRITERS, "torch_export", lambda module, images, path: path.write_bytes(b"") or {})
    monkeypatch.setitem(programs._READERS, "torch_export", lambda path: lambda images: torch.zeros(len(images), 5))
    with pytest.raises(UserError, match=r"format=torch_export: .*logits differ from the network's by up to"):
        written(tmp_path, PLAIN, Programs(["torch_export"]))


class Counting(nn.Module):
    """A network that no program can be made of: it looks at its images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3)))


def test_a_network_that_is_no_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "counting", Architecture(lambda classes: Counting()))
    with pytest.raises(
        UserError, match=r"counting with 5 classes cannot be turned into a program \(.*leave format=torch_"
    ):
        written(tmp_path, ModelSpec("counting", 5), Programs(["torch_export"]))


def test_an_error_without_words_is_told_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> dict[str, str]:
        raise ValueError

    monkeypatch.setitem(programs._WRITERS, "torch_export", failing)
    with pytest.raises(
        UserError, match=r"cannot be turned into a program \(ValueError\); leave format=torch_export out"
    ):
        written(tmp_path, PLAIN, Programs(["torch_export"]))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("work")
    run("teacher", tiny_config(folder, tiny), "run=t", "schedule.epochs=1", cwd=folder)
    return folder


def test_an_export_with_a_program(work: Path) -> None:
    run("evaluate", "t", "export=exports/t", "format=[torch_export]", cwd=work)
    text, meta = (work / "exports/t/README.md").read_text(), json.loads((work / "exports/t/model.json").read_text())
    assert "| uint8 RGB, not normalised, [B, 3, 8, 8] |" in text and "`model.pt2`" in text
    assert meta["programs"]["model.pt2"]["torch"] == torch.__version__
    written_bytes = (work / "exports/t/model.pt2").read_bytes()
    assert meta["programs"]["model.pt2"]["sha256"] == hashlib.sha256(written_bytes).hexdigest()
    network, _ = load_network(work / "exports/t")
    module = Normalising(network, meta["mean"], meta["std"]).eval()
    with torch.no_grad():
        assert torch.allclose(
            torch.export.load(work / "exports/t/model.pt2").module()(pixels(3)), module(pixels(3)), atol=1e-4
        )
    run("evaluate", "exports/t", "export=exports/plain", cwd=work)  # the programs stay where they are
    assert "programs" not in json.loads((work / "exports/plain/model.json").read_text())
    assert not re.search("model.pt2|Programs", (work / "exports/plain/README.md").read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["format=[onnx]"], "format=[onnx] goes with export=DIR"),
        (["export=x", "format=[tflite]"], "format takes [torch_export|onnx, ...]"),
        (["export=x", "program_input=normalised"], "program_input=normalised goes with format"),
    ],
)
def test_refusals(work: Path, settings: list[str], words: str) -> None:
    assert words in refused(work, "evaluate", "t", *settings) and not (work / "x").exists()


def test_without_its_packages_onnx_is_refused_before_the_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_PACKAGES", ("no_such_package",))
    line = refused(work, "evaluate", "t", "export=x", "format=[onnx]")
    assert "format=onnx needs no_such_package; type: bash tools/setup.sh export" in line
