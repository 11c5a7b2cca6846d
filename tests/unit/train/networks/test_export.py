"""Export folders: complete or absent, loadable by one call, with the measured figures; usable as teacher, start and run."""

import contextlib
import errno
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.launch import ROOT, run, tiny_config
from safetensors.torch import load_file
from studies import exports as export_check

from models import build_model, load_network
from models.registry import MODELS
from pipelines.records.reader import Records
from tools.reporting.runs import open_runs
from train.config import Config
from train.evaluation.subject import view_settings
from train.networks import card, export
from train.networks.info import ModelInfo
from train.networks.weights import read_run, weights_hash
from train.settings import load

FILES = ["README.md", "class_names.txt", "config.yaml", "load.py", "model.json", "model.safetensors"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory with the finished runs `t` and its student `s`, and their exports in exports/."""
    folder = tmp_path_factory.mktemp("work")
    tiny_config(folder, tiny)
    dive = tiny_config(folder, tiny, "dive", "  tau: 3\n  p: 0.5\n")
    run("teacher", folder / "bsce.yaml", "run=t", "schedule.epochs=1", "data.seed=1", cwd=folder)
    run("evaluate", "t", "export=exports/t", cwd=folder)
    run("distill", dive, "distill.teacher=exports/t", "model.init=exports/t", "run=s", "schedule.epochs=1", cwd=folder)
    run("evaluate", "s", "export=exports/s", "eval.batch=20", cwd=folder)
    return folder


def meta_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def test_what_is_in_an_export(work: Path, tiny: Path) -> None:
    folder, source = work / "exports/t", work / "runs/t"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in (work / "exports").iterdir()) == ["s", "t"]  # no temporary files
    for name in ("model.safetensors", "config.yaml"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (folder / "class_names.txt").read_text() == "class_0\nclass_1\nclass_2\nclass_3\nclass_4\n"
    found, before = meta_of(folder), meta_of(source)
    assert {name: found[name] for name in before} == before
    assert found["weights_hash"] == weights_hash(load_file(folder / "model.safetensors"))
    assert found["evaluation_recipe"] == {"crop": "center", "size": 8, "flip": False, "short_side": 8}
    assert found["training"]["facts"]["train"] == Records(tiny / "train.beton").digest
    measured = json.loads((source / "evaluation_test.json").read_text())
    assert len(measured.pop("by_class")) == 5  # the names and counts are in model.json already
    assert {name: found["evaluation"][name] for name in measured} == measured
    assert found["evaluation"]["digest"] == Records(tiny / "test.beton").digest
    assert found["evaluation"]["environment"]["torch"] == version("torch")
    assert "host" not in json.dumps(found)


def test_one_call_loads_it(work: Path) -> None:
    network, meta = load_network(work / "exports/t")
    expected = read_run(str(work / "runs/t")).network.eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert not network.training and torch.equal(network(images), expected(images))
    assert meta["class_names"] == [f"class_{c}" for c in range(5)] and meta["input_size"] == 8
    assert weights_hash(load_network(f"{work}/runs/t")[0].state_dict()) == meta["weights_hash"]


def test_what_cannot_be_loaded_is_said(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^nowhere holds no finished network \(nowhere/model.json: No such file"):
        load_network("nowhere")
    shutil.copytree(work / "exports/t", tmp_path / "t")
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: digest differs"):
        load_network(tmp_path / "t")
    meta = meta_of(tmp_path / "t")
    weights.write_bytes((work / "exports/t/model.safetensors").read_bytes())
    (tmp_path / "t/model.json").write_text(json.dumps(meta | {"architecture": "resnet32"}))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit resnet32 with 5 classes: .*Missing key"):
        load_network(tmp_path / "t")
    (tmp_path / "t/model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.json is damaged: KeyError\('architecture'\)"):
        load_network(tmp_path / "t")


def test_loading_needs_nothing_of_the_trainer(work: Path) -> None:
    """A user's own train.py hides our package of that name."""
    code = (
        "import sys; from models import load_network; load_network(sys.argv[1]);"
        "sys.exit(any(name.partition('.')[0] in ('train', 'pipelines', 'accelerate') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(work / "exports/t")], cwd=ROOT, timeout=300)
    assert done.returncode == 0


def test_the_card_says_what_was_measured_and_how_it_was_trained(work: Path) -> None:
    text, meta = (work / "exports/s/README.md").read_text(), meta_of(work / "exports/s")
    found, teacher = meta["evaluation"], meta_of(work / "exports/t")
    assert f"| all | {found['top1']:.2%} | 37 images, each counted once |" in text
    assert f"the negative log-likelihood is {found['nll']:.3f} nats, and the expected calibration error " in text
    assert f" {found['ece']:.2%} (15 bins)." in text and "Top-5" not in text  # of five classes
    assert f"| few | {found['few']:.2%} | mean over the 3 classes with fewer than 20 |" in text
    assert "| many | - | mean over the 0 classes with more than 100 training images |" in text
    assert "| other settings than the run's | eval.batch: 40 -> 20 |" in text and "| arithmetic | fp32, " in text
    assert "| settings of the loss | tau 3.0, p 0.5, alpha 0.5 |" in text
    assert meta["teachers"] == [{"source": "exports/t", "architecture": "resnet8", "weights": teacher["weights_hash"]}]
    assert f"| teacher exports/t | resnet8, weights `{teacher['weights_hash']}` |" in text
    assert f"| started from | exports/t, weights `{teacher['weights_hash']}` |" in text
    assert "| started from | random weights |" in (work / "exports/t/README.md").read_text()
    assert f"| images | 118 of 5 classes, from 4 to 60 each; digest `{meta['training']['facts']['train']}` |" in text
    assert f"| torch | {version('torch')} | {version('torch')} |" in text
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shown, config = yaml.safe_load(settings), load(Config, work / "exports/s/config.yaml")
    assert shown["optim"]["lr"] == config.optim.lr and shown["data"]["recipe"]["pad"] == 2
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.chdir(work / "exports"):
        exec(code, names)
    assert weights_hash(names["network"].state_dict()) == meta["weights_hash"] != teacher["weights_hash"]


@pytest.mark.parametrize(
    ("architecture", "line"),
    [
        ("resnet50", "network = torchvision.models.resnet50(num_classes=5)"),
        ("timm/resnet18", 'network = timm.create_model("resnet18", num_classes=5)'),
        ("resnet8", None),
    ],
)
def test_the_card_tells_how_to_load_it_elsewhere(work: Path, architecture: str, line: str | None) -> None:
    text = card.card(ModelInfo.of(meta_of(work / "exports/t") | {"architecture": architecture}), Config())
    assert text.count("```python") == (1 if line is None else 2)
    assert line is None or f'\n{line}\nnetwork.load_state_dict(load_file("t/model.safetensors"))\n' in text


def test_an_export_is_evaluated_and_exported_like_a_run(work: Path) -> None:
    run("evaluate", "./exports/t", "export=exports/again", "eval.batch=7", cwd=work)
    before, after = meta_of(work / "exports/t"), meta_of(work / "exports/again")
    assert after["training"] == before["training"] and after["weights_hash"] == before["weights_hash"]
    assert after["evaluation"]["top1"] == before["evaluation"]["top1"]
    assert after["evaluation"]["other_settings"] == ["eval.batch: 40 -> 7"]
    shutil.rmtree(work / "exports/again")
    (work / "exports/t/evaluation_test.json").unlink()


def test_views_of_another_size_are_what_is_exported(work: Path, tiny: Path) -> None:
    """A network may be measured on larger views than it was trained on: its users are told of those."""
    made = work / "exports/large"
    size = ("data.recipe.size=12", "data.recipe.short_side=14")
    run("evaluate", "t", "export=exports/large", "format=[torch_export]", *size, cwd=work)
    found = meta_of(made)
    assert found["input_size"] == 8 and found["evaluation_recipe"]["size"] == 12
    program = torch.export.load(made / "model.pt2").module()
    assert program(torch.zeros(3, 3, 12, 12, dtype=torch.uint8)).shape == (3, 5)
    card = (made / "README.md").read_text()
    assert "for images of 12 x 12 pixels, trained on images of 8 x 8 by" in card and "[B, 3, 12, 12]" in card
    assert "[B, 3, 12, 12]" in (made / "load.py").read_text()
    run("evaluate", "exports/large", cwd=work)
    again = json.loads((made / "evaluation_test.json").read_text())
    assert again["nll"] == pytest.approx(found["evaluation"]["nll"], rel=1e-6)
    tables = []
    for name, settings in (("exports/large", ()), ("t", size)):
        run("predict", name, str(tiny / "test.beton"), "out=large.csv", *settings, cwd=work)
        tables.append((work / "large.csv").read_text())
    assert tables[0] == tables[1]
    wider = run("evaluate", "exports/large", "data.recipe.size=16", cwd=work, check=False)
    assert (
        wider.returncode == 2 and "short_side=14: must be at least size=16" in wider.stderr
    )  # it was typed for the export
    opened = open_runs([str(made)], say=lambda _: None)
    assert opened[0].config is not None and opened[0].config.data.recipe.size == 12
    # A short side that follows from the size is not stated, so that another size brings its own.
    for view, stated in (((12, 12), ["size=12"]), ((8, 8), []), ((8, 9), ["size=8", "short_side=9"])):
        changed = found | {"evaluation_recipe": dict(zip(("size", "short_side"), view, strict=True))}
        (made / "model.json").write_text(json.dumps(changed))
        assert view_settings(made) == tuple(f"data.recipe.{one}" for one in stated)
    shutil.rmtree(made)


def test_a_dry_run_leaves_no_folder(work: Path) -> None:
    run("evaluate", "t", "--dry-run", "export=new/sub/x", cwd=work)
    assert not (work / "new").exists()
    run("evaluate", "t", "export=new/sub/x", cwd=work)
    assert (work / "new/sub/x/model.json").is_file()
    shutil.rmtree(work / "new")


def refused(work: Path, *arguments: str) -> str:
    before = sorted(work.rglob("*"))
    done = run("evaluate", *arguments, cwd=work, check=False)
    assert done.returncode == 2 and sorted(work.rglob("*")) == before
    return done.stderr


def test_refusals_come_before_any_work(work: Path) -> None:
    (work / "runs/t/evaluation_test.json").unlink()
    assert "export=exports/s exists already" in refused(work, "t", "export=exports/s")
    assert "data.mean=[0.4, 0.5, 0.5]: the network was trained with [0.5, 0.5, 0.5]" in refused(
        work, "t", "export=exports/new", "data.mean=[0.4, 0.5, 0.5]"
    )
    assert "cannot write in exports/t/README.md/new" in refused(work, "t", "export=exports/t/README.md/new")
    long = "y" * 240  # the folder is written under a longer name
    assert f"export={long}: cannot be written (File name too long)" in refused(work, "t", f"export={long}")
    half = work / "runs/half"
    shutil.copytree(work / "runs/t", half)
    for name in ("result.json", "model.json"):
        (half / name).unlink()
    assert "half is unfinished (it is finished) and has no final weights" in refused(work, "half", "export=exports/new")


def test_a_full_disk_leaves_nothing_behind(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "write_durable", full)
    done = run("evaluate", "t", "export=exports/new", cwd=work, check=False)
    assert done.returncode == 2 and "export=exports/new: cannot be written (No space left on device)" in done.stderr
    assert sorted(path.name for path in (work / "exports").iterdir()) == ["s", "t"]


# ---- elsewhere: tests/studies/exports.py ----


def test_the_check_finds_a_difference() -> None:
    torch.manual_seed(0)
    ours, theirs = build_model("resnet18", 5), build_model("resnet18", 5)
    assert export_check.difference(ours, theirs, 32) > export_check.TOLERANCE
    theirs.load_state_dict(ours.state_dict())
    assert export_check.difference(ours, theirs, 32) == 0
    with torch.no_grad():
        theirs.get_parameter("fc.bias")[0] += 1e-3
    assert export_check.difference(ours, theirs, 32) > export_check.TOLERANCE


@pytest.mark.parametrize(("package", "architecture"), [("torchvision", "resnet18"), ("timm", "timm/resnet18")])
def test_an_export_loads_elsewhere(work: Path, package: str, architecture: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    name = architecture.replace("/", "_")
    run("teacher", work / "bsce.yaml", f"run={name}", f"model.name={architecture}", "schedule.epochs=1", cwd=work)
    run("evaluate", name, f"export={work}/{name}", cwd=work)
    assert export_check.check(work / name)


def test_torchvisions_networks_are_those_of_the_fixtures() -> None:
    fixtures = (Path(__file__).parents[3] / "fixtures").glob("torchvision_*.json")
    assert {path.stem.removeprefix("torchvision_") for path in fixtures} == {
        name for name, row in MODELS.items() if row.torchvision
    }
