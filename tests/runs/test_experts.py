"""Networks of several experts through the entry scripts: teacher, cache, students, evaluation, export, initial weights.

Two optimizer steps each; what they learn is not looked at.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.launch import refused, run, tiny_config
from safetensors.torch import load_file

from models import ModelSpec, load_network

SIX = ("model.head=cosine", "model.experts=6")
SIX_TEXT = "resnet8 head=cosine head_scale=30 experts=6 expert_width=0.75"
TWO_STEPS = ("optim.batch=59", "schedule.epochs=1")


@pytest.fixture(scope="module")
def work(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the teacher `six`, its cache in caches/, and the plain student `s` of that cache."""
    folder = tmp_path_factory.mktemp("experts")
    bsce, dive = tiny_config(folder, tiny), tiny_config(folder, tiny, "dive", "  tau: 3\n  p: 0.5\n")
    run("teacher", bsce, "run=six", *SIX, *TWO_STEPS, cwd=folder)
    run("cache_logits", dive, "distill.teacher=six", *TWO_STEPS, cwd=folder)
    run("distill", dive, "run=s", "cache.paths=[caches]", *TWO_STEPS, cwd=folder)
    return folder


def meta_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def test_a_teacher_of_six_experts_and_a_plain_student(work: Path) -> None:
    assert meta_of(work / "runs/six")["architecture"] == SIX_TEXT
    (identity,) = (work / "caches").glob("*/identity.json")
    assert json.loads(identity.read_text())["teacher"]["architecture"] == SIX_TEXT
    student = meta_of(work / "runs/s")
    assert student["architecture"] == "resnet8" and student["teachers"][0]["architecture"] == SIX_TEXT
    parameters = sum(p.numel() for p in load_network(work / "runs/six")[0].parameters())
    assert parameters == sum(p.numel() for p in ModelSpec("resnet8", 5, "cosine", experts=6).build().parameters())


def test_a_student_of_experts(work: Path) -> None:
    """In bfloat16, with a moving average, online; started from a plain network, of which stem and stage 1 fit."""
    AcceleratorState._reset_state(True)  # a process has one precision
    try:
        done = run(
            "distill",
            *("dive.yaml", "run=three", "distill.teacher=six", "model.init=s", "model.experts=3"),
            *("model.expert_width=0.5", "precision=bf16", "ema.decay=0.9", *TWO_STEPS),
            cwd=work,
        )
    finally:
        AcceleratorState._reset_state(True)
    fitting = [
        name for name in load_file(work / "runs/s/model.safetensors") if name.startswith(("conv1", "bn1", "layer1"))
    ]
    fitting = [name for name in fitting if not name.endswith("num_batches_tracked")]
    assert f"model.init=s: {len(fitting)} of " in done.stdout
    assert "missing: experts.0.stages.layer2.0.conv1.weight, " in done.stdout
    rest = next(line for line in done.stdout.splitlines() if line.startswith("not in the network: "))
    assert all(name.startswith(("layer2.", "layer3.", "fc.")) for name in rest.split(" and ")[0][20:].split(", "))
    widths = load_file(work / "runs/three/model_ema.safetensors")["experts.2.fc.weight"].shape
    assert meta_of(work / "runs/three")["architecture"] == "resnet8 experts=3 expert_width=0.5" and widths == (5, 32)


def test_it_is_evaluated_exported_and_loaded(work: Path) -> None:
    run("evaluate", "six", "export=exports/six", "predictions=p.npz", cwd=work)
    network, meta = load_network(work / "exports/six")
    assert meta["architecture"] == SIX_TEXT and not network.training
    with np.load(work / "p.npz") as predictions:
        assert predictions["logits"].shape == (37, 5)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), load_network(work / "runs/six")[0](images)) and network(images).shape == (
            2,
            5,
        )
    card = (work / "exports/six/README.md").read_text()
    assert (
        f"`{SIX_TEXT}`" in card and "torchvision" not in card.partition("## To use it")[2].partition("## Versions")[0]
    )
    again = run("evaluate", "exports/six", "export=exports/again", cwd=work).stdout
    assert "exported to exports/again" in again


def test_its_weights_as_a_file_are_the_same_teacher(work: Path) -> None:
    (work / "six.safetensors").write_bytes((work / "runs/six/model.safetensors").read_bytes())
    (work / "classes.txt").write_text("\n".join(f"class_{i}" for i in range(5)))
    file = ("dive.yaml", "distill.teacher=six.safetensors", "distill.teacher_classes=classes.txt", *TWO_STEPS)
    before = sorted((work / "caches").iterdir())
    run("cache_logits", *file, "distill.teacher_arch=resnet8 experts=6 head=cosine", cwd=work)
    assert sorted((work / "caches").iterdir()) == before  # equal identity: the cache was there
    plain = refused(work, "cache_logits", *file, "distill.teacher_arch=resnet8")
    assert "does not fit resnet8 with 5 classes: missing " in plain
    wrong = refused(work, "cache_logits", *file, "distill.teacher_arch=resnet8 experts=2 layers=3")
    assert "distill.teacher_arch: 'layers=3' in 'resnet8 experts=2 layers=3' is not understood" in wrong


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.head_scale=16"], "model.head_scale=16.0 goes with model.head=cosine"),
        (["model.expert_width=0.5"], "model.expert_width=0.5 goes with model.experts"),
        (["model.experts=0"], "model.experts=0: must be from 1 to 64, or null for the plain network"),
        (
            ["model.name=timm/resnet18", "model.experts=2"],
            "model.name: timm/resnet18 has a linear head and no experts, not",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(work: Path, settings: list[str], words: str) -> None:
    assert words in refused(work, "teacher", "bsce.yaml", "run=no", *settings)


def test_a_model_json_that_says_nonsense_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(meta_of(work / "runs/six") | {"architecture": "resnet8 experts=x"}))
    with pytest.raises(ValueError, match="model.json is damaged: .*'x' is no int"):
        load_network(tmp_path)
    assert "model.json is damaged" in refused(work, "cache_logits", "dive.yaml", f"distill.teacher={tmp_path}")
