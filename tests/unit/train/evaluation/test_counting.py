"""Evaluation: every sample once at any batch size; figures against a direct count; the model is left unchanged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.records.reader import Records
from train.evaluation.counting import EvalConfig, evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loader(tiny: Path) -> Loader:
    finish = Finish([0.5] * 3, [0.25] * 3, CPU, channels_last=False)
    recipe = Recipe(crop="pad_crop", size=16).evaluation()
    records = Records(tiny / "test.beton")
    return Loader(records, recipe, seed=0, backend="reference", finish=finish, device=CPU, workers=1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5), nn.Dropout(0.5))


@pytest.mark.parametrize("batch", [1, 13, 16, 37, 64, 10**9])
def test_every_sample_once_at_any_batch_size(loader: Loader, model: nn.Module, batch: int) -> None:
    counts = np.array([60, 30, 16, 8, 4])
    model.train()
    done = evaluate(model, loader, batch, counts, Accelerator(cpu=True), keep="logits")
    assert model.training  # restored; dropout was off meanwhile, or batch sizes would disagree
    predictions = done.kept
    assert predictions is not None
    assert sorted(predictions.keys) == list(predictions.keys) == sorted(loader.records.keys)
    label_of = dict(zip(loader.records.keys, loader.records.labels, strict=True))
    assert [label_of[key] for key in predictions.keys] == list(predictions.labels)
    hits = predictions.logits.argmax(1) == predictions.labels
    assert done.figures["samples"] == 37
    assert done.figures["top1"] == pytest.approx(hits.mean(), abs=1 / 37)
    few = [hits[predictions.labels == c].mean() for c in (2, 3, 4)]
    assert done.figures["few"] == pytest.approx(np.mean(few), abs=0.05)
    assert done.figures["many"] is None


def test_figures_do_not_depend_on_the_batch_size(loader: Loader, model: nn.Module) -> None:
    counts = np.array([60, 30, 16, 8, 4])
    one, other = (evaluate(model, loader, batch, counts, Accelerator(cpu=True)).figures for batch in (7, 37))
    assert one == other


def test_settings() -> None:
    assert [EvalConfig(every_epochs=2).period(7), EvalConfig(every_epochs=0).period(7)] == [14, 0]
    assert EvalConfig(every_steps=5).period(7) == 5
    for wrong in ({"batch": 0}, {"every_epochs": -1}, {"every_steps": -5}):
        (name,) = wrong
        with pytest.raises(ValueError, match=rf"eval\.{name}={wrong[name]}: must be at least"):
            EvalConfig(**wrong)


def pixel_sums(scale: float, offset: float = 0.0) -> nn.Module:
    """A network whose five logits are large and close together: scale * (the mean of a part of the image) + offset."""
    linear = nn.Linear(48, 5)
    with torch.no_grad():
        linear.weight.copy_(scale * torch.eye(48)[:5])
        linear.bias.fill_(offset)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), linear)


@pytest.mark.parametrize(
    ("scale", "offset", "dtype"), [(1.0, 0.0, np.float16), (1e6, 1e7, np.float32), (0.01, 60.0, np.float32)]
)
def test_predictions_give_the_figures_of_the_screen(loader: Loader, scale: float, offset: float, dtype: type) -> None:
    """Beyond float16's range, and where its rounding makes two classes equal, the file holds float32."""
    done = evaluate(pixel_sums(scale, offset), loader, 16, np.ones(5), Accelerator(cpu=True), keep="logits")
    kept = done.kept
    assert kept is not None and kept.logits.dtype == dtype and np.isfinite(kept.logits).all()
    assert float((kept.logits.argmax(axis=1) == kept.labels).mean()) == done.figures["top1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_logits_that_are_not_finite_have_no_accuracy(loader: Loader, value: float) -> None:
    model = pixel_sums(1.0)
    with torch.no_grad():
        next(iter(model.parameters()))[1] = value  # 3e38: finite weights whose logits overflow for some images
    with pytest.raises(
        UserError, match=r"the network gives NaN or infinite logits for \d+ of 37 images of .*test.beton, first"
    ):
        evaluate(model.train(), loader, 16, np.ones(5), Accelerator(cpu=True))
    assert model.training
