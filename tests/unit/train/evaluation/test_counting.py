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
from train.evaluation.counting import EvalConfig, answers, evaluate
from train.evaluation.metrics import calibration_error

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
    # The sums are exact in any order; the float32 logits themselves may differ in their last digits with the shape of a batch.
    for name in ("nll", "ece"):
        assert one.pop(name) == pytest.approx(other.pop(name), rel=1e-5)
    assert one == other


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_likelihood_and_calibration_of_an_evaluation(loader: Loader, model: nn.Module) -> None:
    """Against numpy, on the logits as they were kept."""
    done = evaluate(model, loader, 16, np.ones(5), Accelerator(cpu=True), keep="logits")
    assert done.kept is not None
    shares, labels = softmax(done.kept.logits), done.kept.labels
    nll = -np.log(shares[np.arange(37), labels]).mean()
    assert done.figures["nll"] == pytest.approx(nll, rel=1e-6) and done.figures["top5"] is None
    expected = calibration_error(shares.max(axis=1), shares.argmax(axis=1) == labels)
    assert done.figures["ece"] == pytest.approx(expected, abs=1e-6)
    by_class = [hit for hit in done.figures["classes"] if hit is not None]
    assert done.figures["balanced_accuracy"] == pytest.approx(np.mean(by_class))


def columns(logits: list[list[float]], labels: list[int]) -> np.ndarray:
    """labels, ranks, nll, confidence: a row for each sample"""
    return answers(torch.tensor(logits), torch.tensor(labels)).numpy()


def test_answers_against_numpy() -> None:
    rng = np.random.RandomState(0)
    logits, labels = (10 * rng.randn(200, 9)).astype(np.float32), rng.randint(0, 9, 200)
    found = answers(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.dtype == torch.float64
    rows, shares = np.arange(200), softmax(logits)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert np.array_equal(found[:, 0], labels)
    assert np.array_equal(order[rows, found[:, 1].long()], labels)
    assert np.allclose(found[:, 2], -np.log(shares[rows, labels]), rtol=1e-10)
    assert np.allclose(found[:, 3], shares.max(axis=1), rtol=1e-12)


def test_of_equal_logits_the_first_class_comes_first() -> None:
    ties = columns([[1.0] * 7] * 7, list(range(7)))
    assert ties[:, 1].tolist() == list(range(7))
    assert ties[:, 2] == pytest.approx(np.log(7)) and ties[:, 3] == pytest.approx(1 / 7)
    two = columns([[0.0, 5.0, 5.0], [0.0, 5.0, 5.0], [0.0, 5.0, 5.0]], [0, 1, 2])
    assert two[:, 1].tolist() == [2, 0, 1]


def test_one_class_and_logits_far_apart() -> None:
    alone = columns([[3.0], [-1e30]], [0, 0])
    assert alone.tolist() == [[0, 0, 0, 1]] * 2 and not np.signbit(alone).any()
    apart = columns([[3e38, -3e38], [3e38, -3e38]], [0, 1])
    assert apart[0].tolist() == [0, 0, 0, 1] and apart[1, 1:].tolist() == [1, pytest.approx(6e38), 1]


@pytest.mark.gpu
def test_answers_are_deterministic_on_a_gpu() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(256, 1000), torch.randint(0, 1000, (256,))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (answers(logits.cuda(), labels.cuda()).cpu() for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(one, other) and torch.allclose(one, answers(logits, labels), rtol=1e-12)


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


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e6, 1e7), (0.01, 60.0)])
def test_predictions_give_the_figures_of_the_screen(loader: Loader, scale: float, offset: float) -> None:
    """Also beyond float16's range, and where its rounding would make two classes equal."""
    done = evaluate(pixel_sums(scale, offset), loader, 16, np.ones(5), Accelerator(cpu=True), keep="logits")
    kept = done.kept
    assert kept is not None and kept.logits.dtype == np.float32 and np.isfinite(kept.logits).all()
    logits, rows = kept.logits.astype(np.float64), np.arange(len(kept.labels))
    total = torch.from_numpy(logits).logsumexp(dim=1).numpy()
    assert done.figures["nll"] == pytest.approx((total - logits[rows, kept.labels]).mean(), rel=1e-9)
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
