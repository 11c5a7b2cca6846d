"""Post-compensation: the answers of a network that is told the class distribution of its test set.

Owns which prior is added to the logits for which kind of training (He, Wu, Wei, supplementary; arXiv 2012.00321). Invariant:
for a uniform test set, a network trained with balanced softmax gives the answers that it gives without.
Shapes: n test images, C classes.
"""

import dataclasses
from typing import Literal

import numpy as np

from train.objectives.methods import METHODS, DistillConfig, prior_left_out

Rule = Literal["softmax", "balanced"]  # what a network was trained with: its logits hold the training prior, or do not
_BLOCK = 2**24  # logits in double precision at a time: 128 MB


def rule_of(method: str) -> Rule | None:
    """The rule of a method of distill.method; None of another name, and of one whose logits are neither: the user must say it."""
    left_out = prior_left_out(DistillConfig(method=method)) if method in METHODS else None
    return None if left_out is None else "balanced" if left_out else "softmax"


def named_method(distill: DistillConfig) -> str:
    """The method as predictions name it; empty where other settings (a hard term, class weights) give its logits another rule."""
    own = dataclasses.replace(distill, hard=None, drw_from=None)
    return distill.method if prior_left_out(distill) == prior_left_out(own) else ""


def compensated_answers(
    logits: np.ndarray, rule: Rule, train_counts: np.ndarray, test_counts: np.ndarray
) -> np.ndarray:
    """Predicted classes, int64 [n], of logits f [n, C], with the numbers of images [C] that give training and test prior.

    A network trained with plain softmax answers argmax(f - log p_train + log p_test), one trained with balanced softmax
    argmax(f + log p_test). ValueError where a prior is 0, whose logarithm does not exist.
    """
    shift = _log_prior(test_counts)
    if rule == "softmax":
        shift = shift - _log_prior(train_counts)
    rows = max(1, _BLOCK // len(shift))
    answers = [(logits[i : i + rows] + shift).argmax(axis=1) for i in range(0, len(logits), rows)]
    return np.concatenate([np.empty(0, np.int64), *answers])


def _log_prior(counts: np.ndarray) -> np.ndarray:
    """float64 [C] up to a constant, which moves no argmax: 0 for the largest class, so exactly 0 for each of a uniform set."""
    if np.min(counts) < 1:
        raise ValueError(f"class {int(np.argmin(counts))} has no images; its prior has no logarithm")
    logs = np.log(np.asarray(counts, np.float64))
    return logs - logs.max()
