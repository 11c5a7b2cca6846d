"""The code in docs/logit_cache.md, export.md and figures.md runs as it stands, and does what the text around it says."""

import contextlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.launch import ROOT, run, tiny_config
from helpers.recipes import run_here
from PIL import Image

from models.registry import build_model
from pipelines.errors import UserError
from pipelines.logits import LogitCache
from pipelines.logits.blocks import HEADER
from pipelines.logits.codec import TEMPERATURES
from pipelines.logits.fingerprint import MAX_TOLERANCE, MEAN_TOLERANCE
from pipelines.logits.identity import FORMAT
from pipelines.records.layout import sample_key
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from pipelines.views import ViewDataset
from tools.reporting.sections import SECTIONS

TEXT = (ROOT / "docs" / "logit_cache.md").read_text()
EXPORT = (ROOT / "docs" / "export.md").read_text()
FIGURES = (ROOT / "docs" / "figures.md").read_text()
COUNT, CLASSES = 45, ["ant", "bee", "cat", "dog", "eel"]


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, train.beton made from them, and caches/ with two 32 x 32 views by a teacher."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    samples = []
    for i in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((216, 168), Image.Resampling.BICUBIC).save(folder / f"images/{i}.jpg", quality=92)
        samples.append(Sample(f"{i}.jpg", i % len(CLASSES), folder / f"images/{i}.jpg"))
    for split in ("train", "test"):
        write_records(folder / f"{split}.beton", samples, CLASSES, kind="test")
    recipe = ["data.recipe.crop=random_resized_crop", "data.recipe.size=32", "data.backend=reference"]
    bsce, dive = tiny_config(folder, folder), tiny_config(folder, folder, "dive", "  tau: 3\n")
    run("teacher", bsce, "run=t", "data.seed=1", "schedule.epochs=1", *recipe, cwd=folder)
    run("cache_logits", dive, "distill.teacher=t", "schedule.epochs=2", *recipe, cwd=folder)
    return folder


def test_a_loop_of_ones_own(work: Path) -> None:
    """A reader in little more than ten lines, six of them about the cache."""
    loop, setting, *_ = blocks("python")
    torch.manual_seed(0)
    student = build_model("resnet8", len(CLASSES))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    names: dict[str, Any] = {"student": student, "optimizer": torch.optim.SGD(student.parameters(), lr=0.1)}
    with contextlib.chdir(work):
        exec(setting, names)
        exec(loop, names)
    assert torch.isfinite(names["loss"]) and names["teacher"].shape == (16, len(CLASSES))
    assert names["step"] == names["steps"] - 1 >= 5
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert len([line for line in loop.splitlines() if line]) <= 12


def test_a_dataset_and_a_cache_of_ones_own(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A DataLoader with workers reads the targets of the very views; a cache of any module gives back what that says."""
    loop, setting, dataset, writing, _ = blocks("python")
    torch.manual_seed(0)
    network = build_model("resnet8", len(CLASSES))
    names: dict[str, Any] = {"student": network, "optimizer": torch.optim.SGD(network.parameters(), lr=0)}
    with contextlib.chdir(work):
        exec(setting, names)
        exec(loop, names)
        exec(dataset, names)
        assert names["teacher"].shape == (COUNT % 16, len(CLASSES)) and names["views"].unique().tolist() == [1]
        crops = ViewDataset(names["records"], names["recipe"], seed=names["seed"], view=1)
        some = torch.stack([crops[i].image for i in (0, 7, -1)])
        keys = names["records"].keys[[0, 7, -1]]
        assert names["cache"].check_pixels(some, names["cache"].records(keys, [1, 1, 1]), "close") == "same"
        with pytest.raises(ValueError, match="3 crops and 2 records: one record for each crop"):
            names["cache"].check_pixels(some, names["cache"].records(keys[:2], [1, 1]), "close")
        names["teacher"] = network.eval()
        exec(writing, names)
        written = LogitCache("my_caches")
        assert written.views == 2 and names["writer"].missing(2) == []
        (batch,) = names["loader"].batches(np.arange(COUNT), np.ones(COUNT, np.int32), COUNT)
        with torch.no_grad():
            expected = network(batch.images)
        assert (written.gather(batch.keys, batch.views) - expected).abs().max() < 0.02 * expected.abs().max()
        assert written.check_pixels(batch.pixels, written.records(batch.keys, batch.views), "same") == "same"


def test_images_of_ones_own(work: Path) -> None:
    """With Pillow alone the views are close to those of the cache; with a wrong view number they are not."""
    *_, own = blocks("python")
    some = [f"{i}.jpg" for i in range(0, COUNT, 3)]
    names: dict[str, Any] = {"names": some}
    with contextlib.chdir(work):
        exec(own, names)
        assert names["verdict"] == "close" and names["teacher"].shape == (len(some), len(CLASSES))
        wrong = own.replace("[crop(name, view) for", "[crop(name, view - 1) for")
        assert wrong != own
        with pytest.raises(UserError, match="the teacher saw other pixels"):
            exec(wrong, {"names": some})


def test_an_export_classifies_an_image(work: Path) -> None:
    """As the evaluation does: the same logits for the same image, up to the rounding of the crop to 8 bits."""
    code, *_ = blocks("python", EXPORT)
    run("evaluate", "t", "export=exports/mine", "predictions=p.npz", cwd=work)
    saved, records = np.load(work / "p.npz"), Records(work / "test.beton")
    for i in (0, 1, 2):
        Image.open(work / f"images/{i}.jpg").save(work / "some.png")
        names: dict[str, Any] = {}
        with contextlib.chdir(work):
            exec(code, names)
        (row,) = saved["logits"][saved["keys"] == sample_key(f"{i}.jpg")]
        assert np.abs(names["logits"][0].numpy() - row).max() < 0.01 * np.abs(saved["logits"]).max()
        assert names["best"] == records.class_names[int(row.argmax())]


def test_an_export_loads_by_its_own_file_and_runs_as_programs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone, programs, _ = blocks("python", EXPORT)
    onnx = importlib.util.find_spec("onnxruntime") is not None
    formats = "[torch_export,onnx]" if onnx else "[torch_export]"
    run("evaluate", "t", "export=exports/served", f"format={formats}", "program_input=uint8", cwd=work)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {"images": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)}
    with contextlib.chdir(work):
        exec(alone.replace("exports/mine", "exports/served"), names)
        exec(programs if onnx else programs.replace("import onnxruntime\n", "").partition("session")[0], names)
    with torch.no_grad():
        expected = names["network"]((names["images"] / 255 - 0.5) / 0.25)
    assert torch.allclose(names["logits"], expected, atol=1e-4)
    assert not onnx or np.allclose(names["same"], expected, atol=1e-4)


def test_an_export_loads_into_torchvision_and_timm(work: Path) -> None:
    for package in ("torchvision", "timm"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    *_, code = blocks("python", EXPORT)
    recipe = ["data.recipe.crop=random_resized_crop", "data.recipe.size=32"]
    run("teacher", work / "bsce.yaml", "run=r", "model.name=resnet18", "schedule.epochs=1", *recipe, cwd=work)
    run("evaluate", "r", "export=exports/resnet18", cwd=work)
    with contextlib.chdir(work):
        exec(code, {})


def commands_below(heading: str) -> list[str]:
    """The commands of a section of docs/figures.md."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", FIGURES, re.DOTALL | re.MULTILINE)
    return "".join(blocks("bash", section)).replace("\\\n", "").splitlines()


@pytest.fixture(scope="module")
def two_runs(work: Path) -> Path:
    """A folder with the runs of docs/figures.md, mine, baseline and other, data/mine/, and theirs.npz of another program."""
    recipe = ["data.recipe.crop=random_resized_crop", "data.recipe.size=32", "data.backend=reference"]
    for name, seed in (("mine", 1), ("baseline", 2), ("other", 3)):
        run("teacher", work / "bsce.yaml", f"run={name}", f"seed={seed}", "schedule.epochs=1", *recipe, cwd=work)
    (work / "data/mine").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(work / f"{split}.beton", work / "data/mine")
    labels = Records(work / "test.beton").labels
    np.savez(work / "theirs.npz", labels=labels, logits=np.eye(len(CLASSES))[labels])
    return work


@pytest.mark.parametrize("heading", ["Shifted test sets", "Embeddings", "Sample pictures"])
def test_the_figures_of_two_runs(two_runs: Path, heading: str) -> None:
    commands = commands_below(heading)
    assert len(commands) >= 2
    for command in commands:
        run_here(command, two_runs)
        words = command.split()
        out = two_runs / words[words.index("--out") + 1]
        for suffix in ("md", "json", "svg", "png"):
            assert (out / f"{words[2]}.{suffix}").stat().st_size > 100


def test_the_comparison_of_runs(two_runs: Path) -> None:
    for command in commands_below("Runs side by side"):
        said = run_here(command, two_runs)
        words = command.split()
        out = two_runs / words[words.index("--out") + 1]
        assert (out / "compare.tex").stat().st_size > 100 and ("| eel |" in said) == ("--classes" in words)


def test_the_reports_of_two_runs(two_runs: Path) -> None:
    """Every section that the text names is one, and the other way round."""
    (text,) = re.findall(r"^## The report\n(.*?)(?=^## |\Z)", FIGURES, re.DOTALL | re.MULTILINE)
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(SECTIONS)
    for command in commands_below("The report"):
        said = run_here(command, two_runs)
        words = command.split()
        out = words[words.index("--out") + 1]
        assert f"{out}: " in said and (two_runs / out).stat().st_size > 10_000


def test_the_links_of_the_figures_page() -> None:
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)\)", FIGURES))


def test_the_numbers_in_the_text() -> None:
    """They are those of the code."""
    words = " ".join(TEXT.split())
    assert f"the format's number, now {FORMAT}," in words
    assert f"A block is a {HEADER.itemsize}-byte header" in words
    assert f"at T = {', '.join(f'{t:g}' for t in TEMPERATURES)}." in words
    assert f"at most {MEAN_TOLERANCE:g} grey levels apart in the mean, {MAX_TOLERANCE} in any field" in words
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))


@pytest.mark.parametrize("text", [TEXT, EXPORT], ids=["logit_cache", "export"])
def test_every_command_in_the_text_is_one(text: str) -> None:
    commands = "".join(blocks("bash", text))
    scripts = re.findall(r"^python (\S+\.py)", commands, re.MULTILINE)
    assert len(scripts) == len(commands.splitlines()) and all((ROOT / script).exists() for script in scripts)
    assert all((ROOT / config).exists() for config in re.findall(r"configs/\S+\.yaml", commands))
