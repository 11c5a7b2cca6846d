"""Every shipped configuration: it loads, its head says what a reader must know, its settings are METHOD's (paper, [SUP])."""

from pathlib import Path

import pytest

from train.config import Config, flatten, load

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
REPORTED = [path for path in CONFIGS if path.parent.name != "demo"]
# folder: (network, epochs by file stem's end, batch, lr, weight decay, tau, p)
PAPER = {
    "cifar100_lt": ("resnet32", 128, 0.1, 2e-4, 3, 0.5),
    "imagenet_lt": ("resnext50_32x4d", 512, 0.2, 5e-4, 9, 1),
    "inat18": ("resnet50", 256, 0.1, 5e-4, 2, 0.5),
}


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_head_says_command_hardware_hours_and_result(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    for field in ("# command:", "# hardware:", "# hours:", "# expected:"):
        assert field in head
    assert str(path.relative_to(ROOT)) in head


@pytest.mark.parametrize("path", REPORTED, ids=ids)
def test_settings_are_the_papers(path: Path) -> None:
    config = load(Config, path)
    network, batch, lr, decay, tau, p = PAPER[path.parent.name]
    assert (config.model.name, config.optim.batch, config.optim.lr) == (network, batch, lr)
    assert (config.optim.weight_decay, config.optim.momentum) == (decay, 0.9)
    method = path.stem.split("_")[0]
    assert config.distill.method == method
    # The teacher is not asked about the very crops it was trained on.
    assert config.data.seed == (0 if method == "dive" else 1)
    if method == "dive":
        assert (config.distill.tau, config.distill.p, config.distill.alpha) == (tau, p, 0.5)
    assert config.data.recipe.jitter == ([0.4] * 3 if path.parent.name == "imagenet_lt" else [0.0] * 3)
    if path.parent.name == "cifar100_lt":
        schedule = config.schedule
        assert (schedule.kind, schedule.epochs, schedule.warmup_epochs) == ("multistep", 200, 5)
        assert (schedule.milestones, schedule.gamma, config.optim.nesterov) == ([120, 160], 0.01, True)
    else:
        epochs = 200 if path.stem.endswith("200") else 90
        assert (config.schedule.kind, config.schedule.epochs, config.schedule.per) == ("cosine", epochs, "epoch")


def test_student_and_teacher_differ_only_where_they_must() -> None:
    """A teacher is trained with the student's recipe."""
    allowed = {"distill.method", "distill.tau", "distill.p", "data.seed"}
    for folder, student, teacher in (
        ("cifar100_lt", "dive_if100", "bsce_if100"),
        ("imagenet_lt", "dive_x50", "bsce_x50"),
        ("inat18", "dive_r50_90", "bsce_r50_90"),
        ("demo", "dive", "bsce"),
    ):
        a, b = (flatten(load(Config, ROOT / f"configs/{folder}/{name}.yaml")) for name in (student, teacher))
        assert {key for key in a if a[key] != b[key]} <= allowed


def test_the_default_run_names_differ() -> None:
    stems = [path.stem for path in REPORTED]
    assert len(set(stems)) == len(stems)
