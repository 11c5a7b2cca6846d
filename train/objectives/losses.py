"""The losses: cross-entropy, with smoothing of the head or without, balanced softmax, and distillation (DiVE and classic KD).

Owns the formulas of the paper (He, Wu, Wei, ICCV 2021, arXiv 2103.15042); knows nothing of models, caches
or settings. Invariant: everything is computed in float32 or wider whatever the inputs are, the log-prior enters
only the hard term, and no gradient reaches the teacher's logits.
Shapes: B batch, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.errors import UserError

Parts = dict[str, Tensor]


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def log_prior(class_counts: Sequence[int] | np.ndarray) -> Tensor:
    """log n_j as float32[C] from the training images per class; UserError when a class has none."""
    counts = np.asarray(class_counts)
    if (counts <= 0).any():
        empty = np.flatnonzero(counts <= 0)
        raise UserError(
            f"class {empty[0]} has no training images ({len(empty)} of {len(counts)} classes have none), but "
            "balanced softmax needs every count's log: use a method without it, or records with every class"
        )
    return torch.from_numpy(np.log(counts.astype(np.float64))).float()


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """-log softmax(s)_y, mean over the batch."""
    return F.cross_entropy(_wide(logits_BC), labels_B)


def head_smoothed(logits_BC: Tensor, labels_B: Tensor, class_counts_C: Tensor, eps: float) -> Tensor:
    """Cross-entropy with label smoothing of the most frequent class alone, mean over the batch (appendix A of the paper).

    The target of a sample of that class is 1 - eps on its label and eps / (C - 1) on each other class; all other samples keep
    their one label. torch's `label_smoothing` smooths every class and spreads its eps over all classes, the label included: with
    e = eps * C / (C - 1) it has the same target. class_counts: int64 [C]; among equal ones the lowest label is the head.
    """
    if eps == 0:
        return cross_entropy(logits_BC, labels_B)
    log_student_BC = torch.log_softmax(_wide(logits_BC), dim=1)
    own_B = log_student_BC.gather(1, labels_B[:, None])[:, 0]
    others_B = (log_student_BC.sum(dim=1) - own_B) / max(1, log_student_BC.shape[1] - 1)
    head_B = (
        labels_B == class_counts_C.argmax()
    )  # the first of equal ones; it stays on the device, nothing waits for it
    return -torch.lerp(own_B, others_B, eps * head_B.to(own_B.dtype)).mean()


def balanced_softmax(logits_BC: Tensor, labels_B: Tensor, log_prior_C: Tensor) -> Tensor:
    """-log softmax(s + log n)_y, mean over the batch (BSCE, Ren et al. 2020, arXiv 2007.10740)."""
    return cross_entropy(_wide(logits_BC) + log_prior_C, labels_B)


def soften(teacher_logits_BC: Tensor, tau: float, p: float) -> Tensor:
    """The target t_hat ~ softmax(t/tau)^p, renormalised, which is softmax(p*t/tau); detached."""
    return torch.softmax(_wide(teacher_logits_BC.detach()) * (p / tau), dim=1)


def kd_kl(student_logits_BC: Tensor, teacher_probs_BC: Tensor, tau: float) -> Tensor:
    """KL(t_hat || softmax(s/tau)), summed over classes, mean over the batch, WITHOUT the factor tau^2."""
    if student_logits_BC.shape != teacher_probs_BC.shape:  # kl_div would broadcast a batch of one
        raise ValueError(
            f"student {tuple(student_logits_BC.shape)}, teacher {tuple(teacher_probs_BC.shape)}: not equal"
        )
    log_student_BC = torch.log_softmax(_wide(student_logits_BC) / tau, dim=1)
    return F.kl_div(log_student_BC, teacher_probs_BC.detach(), reduction="batchmean")


def _blend(hard: Tensor, kl: Tensor, tau: float, alpha: float) -> tuple[Tensor, Parts]:
    """(1-a) * hard + a * tau^2 * KL; tau is the nominal temperature, so that p does not change the weight of the KL."""
    return (1 - alpha) * hard + alpha * tau**2 * kl, {"hard": hard.detach(), "kl": kl.detach()}


def dive(
    student_logits_BC: Tensor,
    labels_B: Tensor,
    teacher_logits_BC: Tensor,
    log_prior_C: Tensor,
    tau: float,
    p: float,
    alpha: float,
) -> tuple[Tensor, Parts]:
    """(1-a) * CE(y, softmax(s + log n)) + a * tau^2 * KL(t_hat || softmax(s/tau)), and its detached parts.

    tau > 0 and p > 0 are the temperature and the power of the target, 0 <= alpha <= 1 the weight of the KL;
    parts are "hard" and "kl", before their weights.
    """
    hard = balanced_softmax(student_logits_BC, labels_B, log_prior_C)
    kl = kd_kl(student_logits_BC, soften(teacher_logits_BC, tau, p), tau)
    return _blend(hard, kl, tau, alpha)


def kd(
    student_logits_BC: Tensor, labels_B: Tensor, teacher_logits_BC: Tensor, tau: float, alpha: float
) -> tuple[Tensor, Parts]:
    """`dive` without prior and power (Hinton et al. 2015, arXiv 1503.02531): plain CE as the hard term, p = 1."""
    hard = cross_entropy(student_logits_BC, labels_B)
    kl = kd_kl(student_logits_BC, soften(teacher_logits_BC, tau, p=1.0), tau)
    return _blend(hard, kl, tau, alpha)
