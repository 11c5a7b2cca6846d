"""The losses: cross-entropy, with smoothing of the head or without, balanced softmax, LDAM, distillation (DiVE and classic KD),
and that of the routers between experts.

Owns the formulas of the paper (He, Wu, Wei, ICCV 2021, arXiv 2103.15042) and those that it is compared with; knows nothing of
models, caches or settings. What is computed once from the class counts (margins, class weights) is in reweighting.py.
Invariant: everything is computed in float32 or wider whatever the inputs are, the log-prior enters only the hard term, no
gradient reaches the teacher's logits, and every loss is a mean over the batch, so that the mean over micro-batches or processes
of equal size is the loss of the whole batch.
Shapes: B batch, C classes, E experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.errors import UserError

Parts = dict[str, Tensor]


def wide(logits: Tensor) -> Tensor:
    """Logits as float32, or as float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def positive_counts(class_counts: Sequence[int] | np.ndarray, use: str) -> np.ndarray:
    """The training images per class as float64 [C]; UserError when a class has none, which is no good for `use`."""
    counts = np.asarray(class_counts)
    if (counts <= 0).any():
        empty = np.flatnonzero(counts <= 0)
        raise UserError(
            f"class {empty[0]} has no training images ({len(empty)} of {len(counts)} classes have none), but "
            f"{use}: use a method without it, or records with every class"
        )
    return counts.astype(np.float64)


def log_prior(class_counts: Sequence[int] | np.ndarray) -> Tensor:
    """log n_j as float32[C] from the training images per class; UserError when a class has none."""
    return torch.from_numpy(np.log(positive_counts(class_counts, "balanced softmax needs every count's log"))).float()


def cross_entropy(logits_BC: Tensor, labels_B: Tensor, class_weights_C: Tensor | None = None) -> Tensor:
    """-log softmax(s)_y, mean over the batch; with class weights, of w_y times that.

    The divisor is the size of the batch, not the sum of its weights as in torch's `weight`: reweighting.py gives the reason.
    """
    if class_weights_C is None:
        return F.cross_entropy(wide(logits_BC), labels_B)
    return _weighted_mean(F.cross_entropy(wide(logits_BC), labels_B, reduction="none"), labels_B, class_weights_C)


def _weighted_mean(losses_B: Tensor, labels_B: Tensor, class_weights_C: Tensor | None) -> Tensor:
    return losses_B.mean() if class_weights_C is None else (class_weights_C[labels_B] * losses_B).mean()


def head_smoothed(
    logits_BC: Tensor, labels_B: Tensor, class_counts_C: Tensor, eps: float, class_weights_C: Tensor | None = None
) -> Tensor:
    """Cross-entropy with label smoothing of the most frequent class alone, mean over the batch (appendix A of the paper).

    The target of a sample of that class is 1 - eps on its label and eps / (C - 1) on each other class; all other samples keep
    their one label. torch's `label_smoothing` smooths every class and spreads its eps over all classes, the label included: with
    e = eps * C / (C - 1) it has the same target. class_counts: int64 [C]; among equal ones the lowest label is the head.
    class_weights: as in `cross_entropy`.
    """
    if eps == 0:
        return cross_entropy(logits_BC, labels_B, class_weights_C)
    log_student_BC = torch.log_softmax(wide(logits_BC), dim=1)
    own_B = log_student_BC.gather(1, labels_B[:, None])[:, 0]
    others_B = (log_student_BC.sum(dim=1) - own_B) / max(1, log_student_BC.shape[1] - 1)
    head_B = (
        labels_B == class_counts_C.argmax()
    )  # the first of equal ones; it stays on the device, nothing waits for it
    smoothed_B = torch.lerp(own_B, others_B, eps * head_B.to(own_B.dtype))
    return -_weighted_mean(smoothed_B, labels_B, class_weights_C)


def balanced_softmax(logits_BC: Tensor, labels_B: Tensor, log_prior_C: Tensor) -> Tensor:
    """-log softmax(s + log n)_y, mean over the batch (BSCE, Ren et al. 2020, arXiv 2007.10740)."""
    return cross_entropy(wide(logits_BC) + log_prior_C, labels_B)


def ldam(logits_BC: Tensor, labels_B: Tensor, margins_C: Tensor, class_weights_C: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits of which the label's is lowered by the margin of its class, mean over the batch.

    LDAM (Cao et al. 2019, arXiv 1906.07413, equation 13). margins: in units of the logits (`reweighting.margins` times the scale
    of a cosine head). The paper multiplies cosines by a scale s after the margin; with logits f = s * cos that is f - s * margin.
    class_weights: as in `cross_entropy`.
    """
    logits_BC = wide(logits_BC)
    own_BC = labels_B[:, None] == torch.arange(logits_BC.shape[1], device=labels_B.device)
    return cross_entropy(torch.where(own_BC, logits_BC - margins_C, logits_BC), labels_B, class_weights_C)


def soften(teacher_logits_BC: Tensor, tau: float, p: float) -> Tensor:
    """The target t_hat ~ softmax(t/tau)^p, renormalised, which is softmax(p*t/tau); detached."""
    return torch.softmax(wide(teacher_logits_BC.detach()) * (p / tau), dim=1)


def kd_kl(student_logits_BC: Tensor, teacher_probs_BC: Tensor, tau: float) -> Tensor:
    """KL(t_hat || softmax(s/tau)), summed over classes, mean over the batch, WITHOUT the factor tau^2."""
    if student_logits_BC.shape != teacher_probs_BC.shape:  # kl_div would broadcast a batch of one
        raise ValueError(
            f"student {tuple(student_logits_BC.shape)}, teacher {tuple(teacher_probs_BC.shape)}: not equal"
        )
    log_student_BC = torch.log_softmax(wide(student_logits_BC) / tau, dim=1)
    return F.kl_div(log_student_BC, teacher_probs_BC.detach(), reduction="batchmean")


def needs_more(experts_BEC: Tensor, labels_B: Tensor) -> Tensor:
    """bool [B, E - 1]: whether, after each expert but the last, the prediction is wrong and that after a later one is right.

    A prediction is the argmax of the sum of the logits of the experts so far (RIDE, Wang et al. 2021, arXiv 2010.01809).
    """
    right_BE = wide(experts_BEC).cumsum(1).argmax(2) == labels_B[:, None]
    right_later_BE = right_BE.flip(1).cumsum(1).flip(1) > 0  # after this expert or a later one
    return ~right_BE[:, :-1] & right_later_BE[:, 1:]


def routing(router_logits_BR: Tensor, needs_more_BR: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy of the R = E - 1 routers of each sample: -w * t * log sigmoid(r) - (1 - t) * log(1 - sigmoid(r)).

    Mean over routers and batch, as in RIDE's code (arXiv 2010.01809). t: `needs_more`; w: positive_weight.
    """
    router_logits_BR = wide(router_logits_BR)
    weight = torch.full((), positive_weight, dtype=router_logits_BR.dtype, device=router_logits_BR.device)
    return F.binary_cross_entropy_with_logits(
        router_logits_BR, needs_more_BR.to(router_logits_BR.dtype), pos_weight=weight
    )


def distilled(hard: Tensor, kl: Tensor, tau: float, alpha: float) -> Tensor:
    """(1-a) * hard + a * tau^2 * KL (`kd_kl`): DiVE with balanced softmax as the hard term (arXiv 2103.15042), KD with
    cross-entropy and p = 1 (Hinton et al. 2015, arXiv 1503.02531).

    tau is the nominal temperature, so that p does not change the weight of the KL; 0 <= alpha <= 1.
    """
    return (1 - alpha) * hard + alpha * tau**2 * kl
