"""The objective: the loss of each method and its inputs; settings that make no sense are refused."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.small_caches import RECIPE

from models import Outputs
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.records.reader import Records
from train.objectives import losses
from train.objectives.methods import METHODS, DistillConfig, hard_part
from train.objectives.objective import Objective

B, C = 6, 4
generator = torch.Generator().manual_seed(0)
LOGITS, TEACHER = torch.randn(B, C, generator=generator), torch.randn(B, C, generator=generator)
OUTPUTS = Outputs(LOGITS)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
COUNTS = torch.tensor([100, 30, 5, 1])
PRIOR = losses.log_prior(COUNTS.numpy())
BATCH = Batch(torch.zeros(B, 3, 2, 2), LABELS, np.arange(B), np.zeros(B, np.int32), torch.zeros(B, 2, 2, 3))


def targets(batch: Batch) -> torch.Tensor:
    assert batch is BATCH
    return TEACHER


def test_each_method_is_its_formula() -> None:
    ce, _ = Objective(DistillConfig(method="ce"), COUNTS, None)(OUTPUTS, BATCH, 0)
    assert torch.equal(ce, losses.cross_entropy(LOGITS, LABELS))
    for eps in (0.0, 0.3):
        smoothed, parts = Objective(DistillConfig(method="ce", head_smoothing=eps), COUNTS.flip(0), None)(
            OUTPUTS, BATCH, 0
        )
        assert torch.equal(smoothed, losses.head_smoothed(LOGITS, LABELS, COUNTS.flip(0), eps)) and parts == {}
    bsce, parts = Objective(DistillConfig(method="bsce"), COUNTS, None)(OUTPUTS, BATCH, 0)
    assert torch.equal(bsce, losses.balanced_softmax(LOGITS, LABELS, PRIOR)) and parts == {}
    config = DistillConfig(method="dive", tau=3, p=0.5, alpha=0.3)
    dive, parts = Objective(config, COUNTS, targets)(OUTPUTS, BATCH, 0)
    hard, kl = losses.balanced_softmax(LOGITS, LABELS, PRIOR), losses.kd_kl(LOGITS, losses.soften(TEACHER, 3, 0.5), 3)
    assert torch.equal(dive, losses.distilled(hard, kl, 3, 0.3))
    assert set(parts) == {"hard", "kl"} and torch.equal(parts["hard"], hard) and torch.equal(parts["kl"], kl)
    kd, _ = Objective(DistillConfig(method="kd", tau=4, alpha=0.9), COUNTS, targets)(OUTPUTS, BATCH, 0)
    kl = losses.kd_kl(LOGITS, losses.soften(TEACHER, 4, 1), 4)
    assert torch.equal(kd, losses.distilled(losses.cross_entropy(LOGITS, LABELS), kl, 4, 0.9))


def test_targets_and_method_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Objective(DistillConfig(method="bsce"), COUNTS, targets)
    with pytest.raises(ValueError, match="do not fit"):
        Objective(DistillConfig(method="dive", tau=3), COUNTS, None)
    with pytest.raises(ValueError, match="distill.tau"):
        Objective(DistillConfig(method="dive"), COUNTS, targets)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("distill.tau", {"tau": 0.0}),
        ("distill.p", {"p": -1.0}),
        ("distill.alpha", {"alpha": 1.5}),
        ("distill.p", {"method": "kd", "p": 0.5}),
        ("distill.head_smoothing", {"method": "ce", "head_smoothing": -0.1}),
        ("distill.head_smoothing", {"method": "ce", "head_smoothing": 1.0}),
        ("distill.head_smoothing=0.1: bsce does not .* distill.method=ce,", {"method": "bsce", "head_smoothing": 0.1}),
    ],
)
def test_settings_without_sense_name_their_key(key: str, settings: dict) -> None:
    with pytest.raises(ValueError, match=key):
        DistillConfig(**settings)


def test_every_row_of_the_table_is_complete() -> None:
    known = set(DistillConfig.__dataclass_fields__)
    for name, row in METHODS.items():
        assert row.short and row.words and set(row.settings) <= known, name
        assert row.script == ("train/distill.py" if row.targets else "train/teacher.py")


def test_the_hard_part_of_a_method_has_its_prior() -> None:
    own = {"ce": "ce", "bsce": "bsce", "ldam": "ldam", "dive": "bsce", "kd": "ce"}
    assert {name: hard_part(DistillConfig(method=name)) for name in METHODS} == own
    given = {name: hard_part(DistillConfig(method=name, hard="ldam")) for name in METHODS}
    assert given == own | {"dive": "ldam", "kd": "ldam"}
    for name, row in METHODS.items():
        assert row.prior == METHODS[own[name]].prior


def test_soft_targets_that_are_not_finite_are_told_by_sample(few: Records) -> None:
    """Whatever gives them: a teacher that is asked, or a cache."""
    loader = Loader(few, RECIPE, seed=0, backend="reference", finish=None, device=torch.device("cpu"), workers=1)
    soft = TEACHER.clone()
    batch = BATCH._replace(keys=few.keys[:B])
    objective, accelerator = Objective(DistillConfig(method="kd", tau=4), COUNTS, lambda _: soft), Accelerator(cpu=True)
    objective(OUTPUTS, batch, 0)
    objective.require_finite(loader, accelerator)
    soft[2, 1] = float("nan")
    objective(OUTPUTS, batch, 1)
    words = f"the source of soft targets gives NaN or infinite logits for 1 of 6 images of {few.path}, first for {few.name(2)} "
    with pytest.raises(UserError, match=f"{words}.*the student's learning rate is not to blame"):
        objective.require_finite(loader, accelerator)
    Objective(DistillConfig(method="ce"), COUNTS, None).require_finite(loader, accelerator)
