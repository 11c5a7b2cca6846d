"""The losses: of hard labels, cross-entropy, balanced softmax and LDAM, with label smoothing or without; of soft targets,
DiVE and classic KD, decoupled and balanced KD, and cross-domain risk minimisation (xERM); and that of routers between experts.

Owns the formulas of the paper (He, Wu, Wei, ICCV 2021, arXiv 2103.15042) and those that it is compared with; knows nothing of
models, caches or settings. What is computed once from the class counts (margins, class weights) is in reweighting.py.
Invariant: everything is computed in float32 or wider whatever the inputs are, the log-prior enters only the hard term, no
gradient reaches the teacher's logits, and every loss is a mean over the batch, so that the mean over micro-batches or processes
of equal size is the loss of the whole batch.
Shapes: B batch, C classes, E experts.
"""

import itertools
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


def cross_entropy(
    logits_BC: Tensor,
    labels_B: Tensor,
    class_weights_C: Tensor | None = None,
    smoothing: float = 0.0,
    shares_B: Tensor | None = None,
) -> Tensor:
    """-log softmax(s)_y, mean over the batch; with class weights, of w_y times that; with shares, of share times that.

    smoothing: eps of label smoothing with the uniform distribution (Szegedy et al. 2016, arXiv 1512.00567, section 7): the target
    is 1 - eps + eps / C on the label and eps / C on each other class; a class weight is that of the label. shares: of the label,
    where an image is a mixture of two (methods.py has the sum over both). The divisor is the size of the batch, not the sum of
    its weights as in torch's `weight`: reweighting.py gives the reason.
    """
    if class_weights_C is None and shares_B is None:
        return F.cross_entropy(wide(logits_BC), labels_B, label_smoothing=smoothing)
    losses_B = F.cross_entropy(wide(logits_BC), labels_B, reduction="none", label_smoothing=smoothing)
    return _weighted_mean(losses_B, labels_B, class_weights_C, shares_B)


def _weighted_mean(
    losses_B: Tensor, labels_B: Tensor, class_weights_C: Tensor | None, shares_B: Tensor | None
) -> Tensor:
    if class_weights_C is not None:
        losses_B = class_weights_C[labels_B] * losses_B
    return (losses_B if shares_B is None else shares_B * losses_B).mean()


def head_smoothed(
    logits_BC: Tensor,
    labels_B: Tensor,
    class_counts_C: Tensor,
    eps: float,
    class_weights_C: Tensor | None = None,
    shares_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with label smoothing of the most frequent class alone, mean over the batch (appendix A of the paper).

    The target of a sample of that class is 1 - eps on its label and eps / (C - 1) on each other class; all other samples keep
    their one label. torch's `label_smoothing` smooths every class and spreads its eps over all classes, the label included: with
    e = eps * C / (C - 1) it has the same target. class_counts: int64 [C]; among equal ones the lowest label is the head.
    class_weights, shares: as in `cross_entropy`.
    """
    if eps == 0:
        return cross_entropy(logits_BC, labels_B, class_weights_C, shares_B=shares_B)
    log_student_BC = torch.log_softmax(wide(logits_BC), dim=1)
    own_B = log_student_BC.gather(1, labels_B[:, None])[:, 0]
    others_B = (log_student_BC.sum(dim=1) - own_B) / max(1, log_student_BC.shape[1] - 1)
    head_B = labels_B == class_counts_C.argmax()  # the first of equal ones, on the device: nothing waits for it
    smoothed_B = torch.lerp(own_B, others_B, eps * head_B.to(own_B.dtype))
    return -_weighted_mean(smoothed_B, labels_B, class_weights_C, shares_B)


def balanced_softmax(
    logits_BC: Tensor,
    labels_B: Tensor,
    log_prior_C: Tensor,
    smoothing: float = 0.0,
    shares_B: Tensor | None = None,
) -> Tensor:
    """-log softmax(s + log n)_y, mean over the batch (BSCE, Ren et al. 2020, arXiv 2007.10740).

    smoothing: eps of label smoothing with the training prior n / N, the first choice of arXiv 1512.00567, section 7: the target
    is (1 - eps) on the label plus eps * n_j / N on each class j. Without the prior, as at test time, that part is equal for all
    classes. A uniform eps / C would be divided by n_j there, and rare classes would win on images of frequent ones.
    shares: as in `cross_entropy`.
    """
    adjusted_BC = wide(logits_BC) + log_prior_C
    if smoothing == 0:
        return cross_entropy(adjusted_BC, labels_B, shares_B=shares_B)
    log_student_BC = torch.log_softmax(adjusted_BC, dim=1)
    own_B = log_student_BC.gather(1, labels_B[:, None])[:, 0]
    spread_B = (log_student_BC * log_prior_C.softmax(dim=0)).sum(dim=1)
    return -_weighted_mean(torch.lerp(own_B, spread_B, smoothing), labels_B, None, shares_B)


def ldam(
    logits_BC: Tensor,
    labels_B: Tensor,
    margins_C: Tensor,
    class_weights_C: Tensor | None = None,
    smoothing: float = 0.0,
    shares_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of logits of which the label's is lowered by the margin of its class, mean over the batch.

    LDAM (Cao et al. 2019, arXiv 1906.07413, equation 13). margins: in units of the logits (`reweighting.margins` times the scale
    of a cosine head). The paper multiplies cosines by a scale s after the margin; with logits f = s * cos that is f - s * margin.
    class_weights, smoothing, shares: as in `cross_entropy`.
    """
    logits_BC = wide(logits_BC)
    own_BC = labels_B[:, None] == torch.arange(logits_BC.shape[1], device=labels_B.device)
    lowered_BC = torch.where(own_BC, logits_BC - margins_C, logits_BC)
    return cross_entropy(lowered_BC, labels_B, class_weights_C, smoothing, shares_B)


def soften(teacher_logits_BC: Tensor, tau: float, p: float) -> Tensor:
    """The target t_hat ~ softmax(t/tau)^p, renormalised, which is softmax(p*t/tau); detached."""
    return torch.softmax(wide(teacher_logits_BC.detach()) * (p / tau), dim=1)


def mixed_targets(own_BC: Tensor, partner_BC: Tensor, shares_B: Tensor, temperature: float) -> Tensor:
    """T * log(r * softmax(t / T) + (1 - r) * softmax(t' / T)), with t and t' the logits for the two images of a mixture.

    Its softmax at T is the mixture of the two answers' probabilities. shares: r in 0..1. Detached.
    """
    shares_B1 = wide(shares_B)[:, None]
    logs = [
        torch.log_softmax(wide(logits_BC.detach()) / temperature, dim=1) + part_B1.log()
        for logits_BC, part_B1 in ((own_BC, shares_B1), (partner_BC, 1 - shares_B1))
    ]
    return temperature * torch.logaddexp(*logs)


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
    # `cumsum` of them is refused on a GPU with deterministic=true.
    sums = list(itertools.accumulate(wide(experts_BEC).unbind(1)))
    right_BE = torch.stack(sums, dim=1).argmax(2) == labels_B[:, None]
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


def distilled(hard: Tensor, kl: Tensor, tau: float, alpha: float, hard_weight: float | None = None) -> Tensor:
    """(1-a) * hard + a * tau^2 * KL (`kd_kl`): DiVE with balanced softmax as the hard term (arXiv 2103.15042), KD with
    cross-entropy and p = 1 (Hinton et al. 2015, arXiv 1503.02531).

    tau is the nominal temperature, so that p does not change the weight of the KL. hard_weight: in place of 1 - a.
    """
    return (1 - alpha if hard_weight is None else hard_weight) * hard + alpha * tau**2 * kl


def standardised(logits_BC: Tensor) -> Tensor:
    """Each sample's logits with mean 0 and standard deviation 1 (n - 1, as published), before they are softened.

    Logit standardisation (Sun et al. 2024, arXiv 2403.01427). Equal logits become 0, and so does the one
    of a single class.
    """
    logits_BC = wide(logits_BC)
    deviation_B1 = logits_BC.std(dim=1, keepdim=True, correction=min(1, logits_BC.shape[1] - 1))
    return (logits_BC - logits_BC.mean(dim=1, keepdim=True)) / (deviation_B1 + 1e-7)


def decoupled_kl(
    student_logits_BC: Tensor, teacher_logits_BC: Tensor, labels_B: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD), the two parts of KD's KL, each a mean over the batch WITHOUT the factor tau^2.

    Decoupled KD (Zhao et al. 2022, arXiv 2203.08679). TCKD: the KL between the two-valued distributions
    (label, any other class); NCKD: the KL over the other classes, renormalised. With t_y the teacher's probability of the label,
    KD's KL is TCKD + (1 - t_y) * NCKD of each sample.
    """
    teacher_BC, student_BC = wide(teacher_logits_BC.detach()) / tau, wide(student_logits_BC) / tau
    own_BC = labels_B[:, None] == torch.arange(student_BC.shape[1], device=labels_B.device)
    two, others = [], []
    for logits_BC in (student_BC, teacher_BC):
        rest_BC = logits_BC.masked_fill(own_BC, -torch.inf)
        pair_B2 = torch.stack([logits_BC.gather(1, labels_B[:, None])[:, 0], rest_BC.logsumexp(dim=1)], dim=1)
        two.append(pair_B2.log_softmax(dim=1))
        # The label has no share in the others: 0 in both, so that nothing infinite is multiplied by 0.
        others.append(rest_BC.log_softmax(dim=1).masked_fill(own_BC, 0.0))
    target = F.kl_div(two[0], two[1], reduction="batchmean", log_target=True)
    shares_BC = others[1].exp().masked_fill(own_BC, 0.0)
    return target, (shares_BC * (others[1] - others[0])).sum(dim=1).mean()


def reweighted(teacher_probs_BC: Tensor, class_weights_C: Tensor) -> Tensor:
    """Targets proportional to w_j * t_j, renormalised: balanced KD (Zhang et al. 2021, arXiv 2104.10510)."""
    weighted_BC = teacher_probs_BC * class_weights_C
    return weighted_BC / weighted_BC.sum(dim=1, keepdim=True)


def cross_domain(
    student_logits_BC: Tensor, teacher_logits_BC: Tensor, labels_B: Tensor, log_prior_C: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """(w * CE(b, softmax(s)) + (1 - w) * CE(y, softmax(s)), w), means over the batch; b = softmax(t - log n).

    Cross-domain empirical risk minimisation (xERM, Zhu et al. 2022, arXiv 2112.14380) from one teacher of cross-entropy: its
    answer t speaks for the imbalanced domain, the post-compensated b for the balanced one. w = B^gamma / (B^gamma + I^gamma) of
    each sample, with B and I the cross-entropies of b and of softmax(t) with the label. The published code adds 1e-5 to that
    divisor, which matters only where both are 0 and both targets are the label.
    """
    teacher_BC, student_BC = wide(teacher_logits_BC.detach()), wide(student_logits_BC)
    balanced_BC = teacher_BC - log_prior_C
    logs = [
        F.cross_entropy(logits, labels_B, reduction="none").clamp(min=torch.finfo(teacher_BC.dtype).tiny).log()
        for logits in (balanced_BC, teacher_BC)
    ]
    weight_B = torch.sigmoid(gamma * (logs[0] - logs[1]))  # the ratio, without powers that overflow
    soft_B = F.cross_entropy(student_BC, balanced_BC.softmax(dim=1), reduction="none")
    hard_B = F.cross_entropy(student_BC, labels_B, reduction="none")
    return (weight_B * soft_B + (1 - weight_B) * hard_B).mean(), weight_B.mean()
