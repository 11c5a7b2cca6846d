"""Post-compensation: the rule follows from the training, and the answers from Bayes' rule."""

from pathlib import Path

import numpy as np
import pytest

from train.evaluation import compensation
from train.evaluation.compensation import (
    compensated_answers,
    logit_shift,
    named_method,
    read_counts,
    rule_of,
    rule_of_training,
)
from train.objectives.methods import METHODS, DistillConfig

TRAIN, TEST = np.array([90, 9, 1]), np.array([1, 3, 9])


def test_the_rule_is_that_of_the_method() -> None:
    rules = {name: rule_of(name) for name in METHODS}
    assert {name: rule for name, rule in rules.items() if rule} == {
        "ce": "softmax",
        "bsce": "balanced",
        "dive": "balanced",
    }
    assert rule_of("") is None and rule_of("another") is None


def test_a_method_with_other_settings_is_named_only_where_its_rule_is_the_same() -> None:
    named = [
        ({"method": "kd", "hard": "ce", "drw_beta": 0.9}, "kd"),
        ({"method": "ce", "drw_beta": 0.9}, "ce"),
        ({"method": "dive", "drw_from": 3}, "dive"),  # its own hard term takes no class weights
        ({"method": "ldam", "drw_from": 3}, "ldam"),
        ({"method": "ce", "drw_from": 3}, ""),
        ({"method": "kd", "hard": "bsce"}, "kd"),  # neither has one
        ({"method": "dive", "hard": "ldam"}, ""),
        ({"method": "dive", "hard": "ce"}, ""),
    ]
    for settings, name in named:
        assert named_method(DistillConfig(**settings), "instance") == name, settings


def test_a_training_that_drew_all_classes_equally_often_leaves_the_prior_out() -> None:
    """One that knows p(x | y) learns log p(x | y) + log of the prior it saw, which was uniform."""
    drawn = {name: rule_of_training(DistillConfig(method=name), "class_balanced") for name in METHODS}
    assert {name: rule for name, rule in drawn.items() if rule} == dict.fromkeys(("ce", "bsce", "dive"), "balanced")
    assert named_method(DistillConfig(method="ce"), "class_balanced") == ""
    assert named_method(DistillConfig(method="ldam"), "class_balanced") == "ldam"


def test_square_root_sampling_leaves_half_of_the_prior_to_logits_that_hold_what_was_drawn() -> None:
    drawn = {name: rule_of_training(DistillConfig(method=name), "square_root") for name in METHODS}
    expected = {"ce": "square_root", "bsce": "balanced", "dive": "balanced"}
    assert {name: rule for name, rule in drawn.items() if rule} == expected
    assert named_method(DistillConfig(method="ce"), "square_root") == ""
    assert named_method(DistillConfig(method="dive"), "square_root") == "dive"


def test_the_answers_are_those_of_bayes_rule() -> None:
    """With p(x | y) known, plain softmax learns log p(x | y) + log p_train, balanced softmax log p(x | y)."""
    likelihood = np.random.default_rng(0).random((500, 3))
    best = (likelihood * TEST).argmax(axis=1)
    constant = np.random.default_rng(1).normal(size=(500, 1))  # of a sample, which no softmax sees
    balanced = np.log(likelihood) + constant
    assert np.array_equal(compensated_answers(balanced, "balanced", TRAIN, TEST), best)
    assert np.array_equal(compensated_answers(balanced + np.log(TRAIN / 100), "softmax", TRAIN, TEST), best)
    assert np.array_equal(compensated_answers(balanced + np.log(TRAIN**0.5), "square_root", TRAIN, TEST), best)
    assert not np.array_equal(compensated_answers(balanced, "softmax", TRAIN, TEST), best)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_uniform_set_changes_nothing_after_balanced_softmax(kind: type) -> None:
    """Not for ties either, nor for logits that differ by less than any constant would leave."""
    logits = np.random.default_rng(0).normal(size=(2000, 10)).astype(kind)
    tiny = np.finfo(kind).smallest_subnormal
    logits[:500] = np.random.default_rng(1).integers(0, 3, (500, 10)) * tiny
    uniform = np.full(10, 7)
    assert np.array_equal(compensated_answers(logits, "balanced", np.arange(1, 11), uniform), logits.argmax(axis=1))
    plain = compensated_answers(logits, "softmax", np.full(10, 50), uniform)
    assert np.array_equal(plain, logits.argmax(axis=1))  # both priors are uniform


def test_blocks_are_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (3 * np.random.default_rng(0).normal(size=(50, 3))).astype(np.float16)
    whole = compensated_answers(logits, "balanced", TRAIN, TEST)
    monkeypatch.setattr(compensation, "_BLOCK", 21)
    assert np.array_equal(compensated_answers(logits, "balanced", TRAIN, TEST), whole) and len(set(whole)) == 3
    assert compensated_answers(logits[:0], "softmax", TRAIN, TEST).shape == (0,)


def test_a_class_without_images_is_refused() -> None:
    logits = np.zeros((2, 3))
    for rule in ("softmax", "square_root"):
        with pytest.raises(ValueError, match="class 2 has no images"):
            compensated_answers(logits, rule, np.array([5, 5, 0]), TEST)
    with pytest.raises(ValueError, match="class 0 has no images"):
        compensated_answers(logits, "balanced", TRAIN, np.array([0, 1, 1]))
    assert compensated_answers(logits, "balanced", np.array([5, 5, 0]), TEST).tolist() == [2, 2]


def test_the_probabilities_are_those_of_bayes_rule() -> None:
    likelihood = np.random.default_rng(0).random((20, 3))
    posterior = likelihood * TEST / (likelihood * TEST).sum(axis=1, keepdims=True)
    learned = {"balanced": likelihood, "square_root": likelihood * TRAIN**0.5, "softmax": likelihood * TRAIN}
    for rule, logits in ((rule, np.log(one)) for rule, one in learned.items()):
        shifted = np.exp(logits + logit_shift(rule, TRAIN, TEST))
        assert np.allclose(shifted / shifted.sum(axis=1, keepdims=True), posterior, rtol=1e-12)


def test_counts_are_read_from_text_with_empty_lines(tmp_path: Path) -> None:
    for text in ("5\n\n 4 \n0\n", "\ufeff5\r\n4\r\n0\r\n"):  # the second as Windows' editors save it
        (tmp_path / "counts.txt").write_bytes(text.encode())
        assert read_counts(tmp_path / "counts.txt", "").tolist() == [5, 4, 0]
