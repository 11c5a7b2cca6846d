"""Post-compensation: the answers of a network that is told the class distribution of its test set.

Owns which prior is added to the logits for which kind of training (He, Wu, Wei, supplementary; arXiv 2012.00321), and the files
that state a distribution. Invariant: for a uniform test set, a network trained with balanced softmax gives the answers that it
gives without.
Shapes: n test images, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.errors import UserError, quoted
from pipelines.records.reader import Records
from train.objectives.methods import METHODS, DistillConfig, prior_left_out

# What a network was trained with: its logits hold the training prior, its square root (square-root sampling), or none of it.
Rule = Literal["softmax", "square_root", "balanced"]
_HELD: dict[Rule, float] = {"softmax": 1, "square_root": 0.5, "balanced": 0}  # how much of the logarithm
_BLOCK = 2**24  # logits in double precision at a time: 128 MB


def rule_of(method: str) -> Rule | None:
    """The rule of a method of distill.method; None of another name, and of one whose logits are neither: the user must say it."""
    left_out = prior_left_out(DistillConfig(method=method)) if method in METHODS else None
    return None if left_out is None else "balanced" if left_out else "softmax"


def rule_of_training(distill: DistillConfig, sampling: str) -> Rule | None:
    """The rule of a network trained with these settings and data.sampling; None where none is exact.

    Logits that hold the prior of a training hold that of the classes as drawn: uniform, where each came equally often.
    """
    left_out = prior_left_out(distill)
    if left_out is None:
        return None
    by_sampling: dict[str, Rule] = {"instance": "softmax", "square_root": "square_root", "class_balanced": "balanced"}
    return "balanced" if left_out else by_sampling[sampling]


def named_method(distill: DistillConfig, sampling: str) -> str:
    """The method as predictions name it; empty where other settings give its logits another rule, or none.

    Such are a hard term, class weights, smoothed labels and a sampling.
    """
    return distill.method if rule_of_training(distill, sampling) == rule_of(distill.method) else ""


def logit_shift(rule: Rule, train_counts: np.ndarray, test_counts: np.ndarray) -> np.ndarray:
    """What is added to logits f, float64 [C]; the softmax of the sum is the posterior under the test prior.

    For a network trained with plain softmax log p_test - log p_train, after square-root sampling log p_test - log p_train / 2,
    for one trained with balanced softmax log p_test; up to a constant, which moves neither an argmax nor a softmax. ValueError
    where a prior is 0, whose logarithm does not exist.
    """
    shift, held = _log_prior(test_counts), _HELD[rule]
    return shift - held * _log_prior(train_counts) if held else shift


def compensated_answers(
    logits: np.ndarray, rule: Rule, train_counts: np.ndarray, test_counts: np.ndarray
) -> np.ndarray:
    """Predicted classes, int64 [n], of logits f [n, C], with the numbers of images [C] that give training and test prior.

    ValueError as of `logit_shift`, which is added to f.
    """
    shift = logit_shift(rule, train_counts, test_counts)
    rows = max(1, _BLOCK // len(shift))
    answers = [(logits[i : i + rows] + shift).argmax(axis=1) for i in range(0, len(logits), rows)]
    return np.concatenate([np.empty(0, np.int64), *answers])


def _log_prior(counts: np.ndarray) -> np.ndarray:
    """float64 [C] up to a constant: 0 for the largest class, so exactly 0 for each of a uniform set."""
    if np.min(counts) < 1:
        raise ValueError(f"class {int(np.argmin(counts))} has no images; its prior has no logarithm")
    logs = np.log(np.asarray(counts, np.float64))
    return logs - logs.max()


def read_counts(file: Path, given: str) -> np.ndarray:
    """Images of each class, int64 [C], of a record file, or of a text file with one number in each line.

    given: what named the file, for messages: they begin with it and the file.
    """
    if file.suffix == ".beton":
        return Records(file).class_counts
    try:
        lines = file.read_text("utf-8-sig").split("\n")  # Windows' editors begin with a byte order mark
        counts = np.array([int(line) for line in lines if line.strip()], np.int64)
    except OSError as error:
        raise UserError(f"{given}{file}: {error.strerror}") from error
    except (ValueError, OverflowError) as error:
        raise UserError(f"{given}{file}: {quoted(error)}; a whole number in each line expected") from error
    if not len(counts) or counts.min() < 0 or not counts.any():
        raise UserError(f"{given}{file}: numbers of images expected, one in each line")
    return counts


def require_classes(file: Path, given: str, class_names: Sequence[str]) -> None:
    """UserError for a record file with other classes than these, or in another order; a text file names none."""
    if file.suffix == ".beton" and list(Records(file).class_names) != list(class_names):
        raise UserError(
            f"{given}{file}: its classes are not those of the network, in their order; give records of the same classes, or a "
            "text file with a number in each line"
        )
