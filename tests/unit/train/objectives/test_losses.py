"""The losses against an independent numpy form in float64; their identities, gradients, limits and extremes.

Shapes: B batch, C classes.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import UserError
from train.objectives import losses

B, C = 6, 5
COUNTS = np.array([500, 120, 40, 9, 2])
TAUS_AND_POWERS = [(3.0, 0.5), (9.0, 1.0), (2.0, 0.5), (1.0, 1.0), (1.5, 2.0)]


def draw(seed: int, scale: float = 4.0) -> np.ndarray:
    return scale * np.random.RandomState(seed).standard_normal((B, C))


STUDENT, TEACHER, LABELS = draw(0), draw(1), np.array([0, 4, 2, 2, 1, 3])


def wide(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=grad)


def prior() -> Tensor:
    return wide(np.log(COUNTS))


# The closed forms: directly from the definitions, probabilities by division, no logsumexp.


def np_softmax(x_BC: np.ndarray) -> np.ndarray:
    return np.exp(x_BC) / np.exp(x_BC).sum(1, keepdims=True)


def np_hard(s_BC: np.ndarray, counts_C: np.ndarray) -> float:
    weighted = counts_C * np.exp(s_BC)
    return float(-np.mean(np.log(weighted[np.arange(B), LABELS] / weighted.sum(1))))


def np_target(t_BC: np.ndarray, tau: float, p: float) -> np.ndarray:
    powered = np_softmax(t_BC / tau) ** p
    return powered / powered.sum(1, keepdims=True)


def np_kl(s_BC: np.ndarray, t_BC: np.ndarray, tau: float, p: float) -> float:
    target = np_target(t_BC, tau, p)
    return float((target * (np.log(target) - np.log(np_softmax(s_BC / tau)))).sum() / B)


def dive(student: Tensor, teacher: Tensor, prior_C: Tensor, tau: float = 3.0, p: float = 0.5, alpha: float = 0.5):
    """(loss, its parts)"""
    hard = losses.balanced_softmax(student, torch.tensor(LABELS), prior_C)
    return distilled(hard, student, teacher, tau, p, alpha)


def kd(student: Tensor, teacher: Tensor, tau: float, alpha: float):
    return distilled(losses.cross_entropy(student, torch.tensor(LABELS)), student, teacher, tau, 1.0, alpha)


def distilled(hard: Tensor, student: Tensor, teacher: Tensor, tau: float, p: float, alpha: float):
    kl = losses.kd_kl(student, losses.soften(teacher, tau, p), tau)
    return losses.distilled(hard, kl, tau, alpha), {"hard": hard.detach(), "kl": kl.detach()}


@pytest.mark.parametrize(("tau", "p"), TAUS_AND_POWERS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_dive_is_the_closed_form(tau: float, p: float, alpha: float) -> None:
    loss, parts = dive(wide(STUDENT), wide(TEACHER), prior(), tau, p, alpha)
    hard, kl = np_hard(STUDENT, COUNTS), np_kl(STUDENT, TEACHER, tau, p)
    assert hard > 0.1 and kl > 0.01
    assert parts["hard"].item() == pytest.approx(hard, rel=1e-12)
    assert parts["kl"].item() == pytest.approx(kl, rel=1e-11)
    assert loss.item() == pytest.approx((1 - alpha) * hard + alpha * tau**2 * kl, rel=1e-11)


def test_kd_is_the_closed_form_without_prior_and_power() -> None:
    loss, parts = kd(wide(STUDENT), wide(TEACHER), tau=4.0, alpha=0.9)
    hard, kl = np_hard(STUDENT, np.ones(C)), np_kl(STUDENT, TEACHER, 4.0, 1.0)
    assert parts["hard"].item() == pytest.approx(hard, rel=1e-12)
    assert loss.item() == pytest.approx(0.1 * hard + 0.9 * 16 * kl, rel=1e-11)


def test_balanced_softmax_is_cross_entropy_under_a_uniform_prior_only() -> None:
    labels = torch.tensor(LABELS)
    plain = losses.cross_entropy(wide(STUDENT), labels)
    assert plain.item() == pytest.approx(np_hard(STUDENT, np.ones(C)), rel=1e-12)
    uniform = losses.balanced_softmax(wide(STUDENT), labels, wide(np.full(C, np.log(77))))
    assert uniform.item() == pytest.approx(plain.item(), rel=1e-12)
    assert losses.balanced_softmax(wide(STUDENT), labels, prior()).item() == pytest.approx(np_hard(STUDENT, COUNTS))


@pytest.mark.parametrize("eps", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("counts", [COUNTS, COUNTS[::-1].copy(), np.array([3, 1, 9, 9, 2])])
def test_smoothing_of_the_head_is_the_closed_form(counts: np.ndarray, eps: float) -> None:
    """Samples of the most frequent class, the first of two equal ones, have the target 1 - eps and eps / (C - 1)."""
    target = np.eye(C)[LABELS]
    head = int(counts.argmax())
    of_head = np.equal(LABELS, head)
    target[of_head] = np.where(np.arange(C) == head, 1 - eps, eps / (C - 1))
    assert target.sum(1) == pytest.approx(np.ones(B)) and of_head.any() and not of_head.all()
    loss = losses.head_smoothed(wide(STUDENT), torch.tensor(LABELS), torch.tensor(counts), eps)
    assert loss.item() == pytest.approx(-(target * np.log(np_softmax(STUDENT))).sum(1).mean(), rel=1e-12)


def test_smoothing_of_the_head_beside_torchs() -> None:
    """Of samples of the head alone: torch spreads its own eps over all classes, the label included."""
    labels, counts, eps = torch.zeros(B, dtype=torch.int64), torch.tensor(COUNTS), 0.3
    ours = losses.head_smoothed(wide(STUDENT), labels, counts, eps)
    theirs = torch.nn.functional.cross_entropy(wide(STUDENT), labels, label_smoothing=eps * C / (C - 1))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    mixed = torch.tensor(LABELS)
    without = losses.head_smoothed(wide(STUDENT), mixed, counts, 0.0)
    assert torch.equal(without, losses.cross_entropy(wide(STUDENT), mixed))
    assert losses.head_smoothed(wide(STUDENT), mixed, counts, 1e-9).item() == pytest.approx(without.item(), rel=1e-8)
    one_class = losses.head_smoothed(wide(STUDENT)[:, :1], labels, counts[:1], 0.3)
    assert one_class.item() == 0


@pytest.mark.parametrize("eps", [1e-6, 0.1, 0.9])
def test_label_smoothing_is_the_closed_form(eps: float) -> None:
    """Cross-entropy of the mixed target: with the uniform distribution, of balanced softmax with the training prior."""
    labels, own, weights = torch.tensor(LABELS), np.eye(C)[LABELS], WEIGHTS
    uniform = (1 - eps) * own + eps / C
    each = -(uniform * np.log(np_softmax(STUDENT))).sum(1)
    assert losses.cross_entropy(wide(STUDENT), labels, None, eps).item() == pytest.approx(each.mean(), rel=1e-12)
    weighted = losses.cross_entropy(wide(STUDENT), labels, wide(weights), eps)
    assert weighted.item() == pytest.approx((weights[LABELS] * each).mean(), rel=1e-12)
    lowered = -(uniform * np.log(np_softmax(STUDENT - own * MARGINS))).sum(1)
    found = losses.ldam(wide(STUDENT), labels, wide(MARGINS), wide(weights), eps)
    assert found.item() == pytest.approx((weights[LABELS] * lowered).mean(), rel=1e-12)
    of_prior = (1 - eps) * own + eps * COUNTS / COUNTS.sum()
    balanced = -(of_prior * np.log(np_softmax(STUDENT + np.log(COUNTS)))).sum(1)
    found = losses.balanced_softmax(wide(STUDENT), labels, prior(), eps)
    assert found.item() == pytest.approx(balanced.mean(), rel=1e-12)


def test_without_smoothing_the_losses_are_to_the_bit_what_they_are_plain() -> None:
    labels = torch.tensor(LABELS)
    plain = torch.nn.functional.cross_entropy(wide(STUDENT) + prior(), labels)
    assert torch.equal(losses.balanced_softmax(wide(STUDENT), labels, prior(), 0.0), plain)
    assert losses.balanced_softmax(wide(STUDENT), labels, prior(), 1e-9).item() == pytest.approx(plain.item(), rel=1e-8)


def test_smoothed_balanced_softmax_still_prefers_the_label_at_its_minimum() -> None:
    """The logits of least loss for an image of the head (see docs/method.md): a uniform share would prefer the tail."""
    counts, eps, own = np.array([1000.0, *[10.0] * 9]), 0.1, np.eye(10)[:1]

    def minimum(share_C: np.ndarray) -> np.ndarray:
        """Where softmax(s + log n) is the target."""
        return np.log((1 - eps) * own + eps * share_C) - np.log(counts)

    least = minimum(counts / counts.sum())
    logits = wide(least, grad=True)
    losses.balanced_softmax(logits, torch.tensor([0]), wide(np.log(counts)), eps).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-15  # the loss is convex
    assert least.argmax() == 0 and np.ptp(least[0, 1:]) < 1e-14  # all other classes are alike, as without a prior
    assert minimum(np.full(10, 0.1)).argmax() == 1


MARGINS, WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.4, 0.7, 1.5, 4.0, 9.0])


def np_each(s_BC: np.ndarray) -> np.ndarray:
    """-log softmax(s)_y of each sample."""
    return -np.log(np_softmax(s_BC)[np.arange(B), LABELS])


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_is_the_closed_form(scale: float) -> None:
    """Of cosines of which the label's is lowered by its margin, all times the scale."""
    cosines = np.tanh(STUDENT)
    lowered = cosines.copy()
    for i, label in enumerate(LABELS):
        lowered[i, label] -= MARGINS[label]
    expected = np_each(scale * lowered)
    labels, margins = torch.tensor(LABELS), scale * wide(MARGINS)
    found = losses.ldam(scale * wide(cosines), labels, margins)
    assert found.item() == pytest.approx(expected.mean(), rel=1e-12)
    weighted = losses.ldam(scale * wide(cosines), labels, margins, wide(WEIGHTS))
    assert weighted.item() == pytest.approx((WEIGHTS[LABELS] * expected).mean(), rel=1e-12)


def test_ldam_without_a_margin_is_cross_entropy() -> None:
    labels, none = torch.tensor(LABELS), wide(np.zeros(C))
    assert torch.equal(losses.ldam(wide(STUDENT), labels, none), losses.cross_entropy(wide(STUDENT), labels))
    same = wide(np.full(C, 0.5))
    assert losses.ldam(wide(STUDENT), labels, same) > losses.cross_entropy(wide(STUDENT), labels)


def test_class_weights() -> None:
    """The mean of w_y times the loss of each sample; torch divides by the sum of the weights of the batch instead."""
    labels, weights = torch.tensor(LABELS), wide(WEIGHTS)
    found = losses.cross_entropy(wide(STUDENT), labels, weights)
    assert found.item() == pytest.approx((WEIGHTS[LABELS] * np_each(STUDENT)).mean(), rel=1e-12)
    torchs = torch.nn.functional.cross_entropy(wide(STUDENT), labels, weight=weights)
    assert found.item() == pytest.approx(torchs.item() * WEIGHTS[LABELS].mean(), rel=1e-12)
    assert losses.cross_entropy(wide(STUDENT), labels, wide(np.ones(C))).item() == pytest.approx(
        losses.cross_entropy(wide(STUDENT), labels).item(), rel=1e-14
    )
    target = np.where(LABELS[:, None] == 0, np.array([0.7, *[0.3 / 4] * 4]), np.eye(C)[LABELS])
    smoothed = losses.head_smoothed(wide(STUDENT), labels, torch.tensor(COUNTS), 0.3, weights)
    expected = -(WEIGHTS[LABELS] * (target * np.log(np_softmax(STUDENT))).sum(1)).mean()
    assert smoothed.item() == pytest.approx(expected, rel=1e-12)


SHARES = np.array([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])


def test_shares_of_labels() -> None:
    """The mean of share times the loss of each sample, class weights or not."""
    labels, shares = torch.tensor(LABELS), wide(SHARES)
    found = losses.cross_entropy(wide(STUDENT), labels, shares_B=shares)
    assert found.item() == pytest.approx((SHARES * np_each(STUDENT)).mean(), rel=1e-12)
    found = losses.cross_entropy(wide(STUDENT), labels, wide(WEIGHTS), shares_B=shares)
    assert found.item() == pytest.approx((SHARES * WEIGHTS[LABELS] * np_each(STUDENT)).mean(), rel=1e-12)


def test_mixed_targets_are_the_mixed_probabilities() -> None:
    """Softened by tau and p they are the mixture of the two answers, softened each; a share of 0 or 1 takes one alone."""
    other, shares = draw(2), SHARES[:, None]
    for tau, p in TAUS_AND_POWERS:
        mixed = losses.mixed_targets(wide(TEACHER), wide(other), wide(SHARES), tau / p)
        expected = shares * np_target(TEACHER, tau, p) + (1 - shares) * np_target(other, tau, p)
        np.testing.assert_allclose(losses.soften(mixed, tau, p).numpy(), expected, rtol=1e-11)
    huge = losses.mixed_targets(wide(1e4 * TEACHER), wide(1e4 * other), wide(SHARES), 1.0)
    assert torch.isfinite(huge).all()
    grown = wide(TEACHER, grad=True)
    assert not losses.mixed_targets(grown, grown, wide(SHARES), 3.0).requires_grad


def test_the_loss_of_a_batch_is_the_mean_of_its_halves() -> None:
    """Which is what micro-batches and processes rely on; with torch's divisor it would not hold."""
    labels, weights = torch.tensor(LABELS), wide(WEIGHTS)

    def halves(loss) -> float:
        return sum(loss(wide(STUDENT[half]), labels[half]).item() for half in (slice(0, 3), slice(3, 6))) / 2

    def ldam(s: Tensor, y: Tensor) -> Tensor:
        return losses.ldam(s, y, wide(MARGINS), weights)

    def torchs(s: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(s, y, weight=weights)

    assert halves(ldam) == pytest.approx(ldam(wide(STUDENT), labels).item(), rel=1e-13)
    assert halves(torchs) != pytest.approx(torchs(wide(STUDENT), labels).item(), rel=1e-2)


# ---- other divergences to soft targets ----


def np_decoupled(s_BC: np.ndarray, t_BC: np.ndarray, tau: float) -> tuple[float, float]:
    """The two parts from the probabilities, sample by sample."""
    two, others = 0.0, 0.0
    for student, teacher, label in zip(np_softmax(s_BC / tau), np_softmax(t_BC / tau), LABELS, strict=True):
        pairs = [np.array([q[label], 1 - q[label]]) for q in (student, teacher)]
        two += (pairs[1] * np.log(pairs[1] / pairs[0])).sum()
        rests = [np.delete(q, label) / (1 - q[label]) for q in (student, teacher)]
        others += (rests[1] * np.log(rests[1] / rests[0])).sum()
    return two / B, others / B


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_decoupled_kl_is_the_closed_form(tau: float) -> None:
    found = losses.decoupled_kl(wide(STUDENT), wide(TEACHER), torch.tensor(LABELS), tau)
    assert [part.item() for part in found] == pytest.approx(np_decoupled(STUDENT, TEACHER, tau), rel=1e-10)
    assert min(part.item() for part in found) > 1e-3


def test_decoupled_kl_adds_up_to_the_kl() -> None:
    """Sample by sample: KL = TCKD + (1 - t_y) * NCKD."""
    for i in range(B):
        student, teacher, label = wide(STUDENT[i : i + 1]), wide(TEACHER[i : i + 1]), torch.tensor(LABELS[i : i + 1])
        target, others = losses.decoupled_kl(student, teacher, label, 3.0)
        certain = losses.soften(teacher, 3.0, 1.0)[0, label[0]]
        whole = losses.kd_kl(student, losses.soften(teacher, 3.0, 1.0), 3.0)
        assert (target + (1 - certain) * others).item() == pytest.approx(whole.item(), rel=1e-11)


def test_standardised_logits() -> None:
    found = losses.standardised(wide(STUDENT))
    expected = (STUDENT - STUDENT.mean(1, keepdims=True)) / STUDENT.std(1, ddof=1, keepdims=True)
    torch.testing.assert_close(found, wide(expected), rtol=1e-6, atol=0)
    # Neither shift nor scale of a network matters any more.
    torch.testing.assert_close(losses.standardised(7 * wide(STUDENT) - 3), found, rtol=1e-6, atol=0)
    assert not losses.standardised(torch.ones(2, C)).any()
    assert not losses.standardised(torch.ones(2, 1)).any()  # a single class has no deviation


def test_reweighted_targets() -> None:
    probabilities = np_softmax(TEACHER)
    weighted = probabilities * WEIGHTS
    found = losses.reweighted(wide(probabilities), wide(WEIGHTS))
    torch.testing.assert_close(found, wide(weighted / weighted.sum(1, keepdims=True)), rtol=1e-12, atol=0)
    assert (found[:, -1] > wide(probabilities)[:, -1]).all()
    same = losses.reweighted(wide(probabilities), wide(np.full(C, 3.0)))
    torch.testing.assert_close(same, wide(probabilities), rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_cross_domain_is_the_closed_form(gamma: float) -> None:
    balanced = np_softmax(TEACHER - np.log(COUNTS))
    ones, log_student = np.arange(B), np.log(np_softmax(STUDENT))
    of_balanced, of_imbalanced = -np.log(balanced[ones, LABELS]), -np.log(np_softmax(TEACHER)[ones, LABELS])
    w = of_balanced**gamma / (of_balanced**gamma + of_imbalanced**gamma)
    assert w.max() - w.min() > 0.2
    expected = (-w * (balanced * log_student).sum(1) - (1 - w) * log_student[ones, LABELS]).mean()
    found, weight = cross_domain(wide(STUDENT), wide(TEACHER), prior(), gamma)
    assert found.item() == pytest.approx(expected, rel=1e-10) and weight.item() == pytest.approx(w.mean(), rel=1e-10)


def test_cross_domain_of_a_teacher_that_is_certain_is_cross_entropy() -> None:
    certain = 1e4 * np.eye(C)[LABELS]
    found, weight = cross_domain(wide(STUDENT), wide(certain), prior(), 1.5)
    assert found.item() == pytest.approx(np_hard(STUDENT, np.ones(C)), rel=1e-12) and weight.item() == 0.5
    without_prior, weight = cross_domain(wide(STUDENT), wide(TEACHER), wide(np.zeros(C)), 1.5)
    assert weight.item() == 0.5, "both domains are one"


def cross_domain(student: Tensor, teacher: Tensor, prior_C: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    return losses.cross_domain(student, teacher, torch.tensor(LABELS), prior_C, gamma)


def weighted_parts(student: Tensor, teacher: Tensor) -> Tensor:
    target, others = losses.decoupled_kl(student, teacher, torch.tensor(LABELS), 4.0)
    return target + 8 * others


def balanced_kd(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.kd_kl(student, losses.reweighted(losses.soften(teacher, 2.0, 1.0), wide(WEIGHTS).to(teacher)), 2.0)


def standardised_kd(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = losses.standardised(student), losses.standardised(teacher)
    return losses.kd_kl(student, losses.soften(teacher, 2.0, 1.0), 2.0)


SOFT = {
    "decoupled": weighted_parts,
    "balanced": balanced_kd,
    "standardised": standardised_kd,
    "cross-domain": lambda s, t: cross_domain(s, t, prior().to(s), 1.5)[0],
}


@pytest.mark.parametrize("name", SOFT)
def test_other_divergences_by_finite_differences(name: str) -> None:
    """No gradient reaches the teacher, and the loss of a batch is the mean of that of its samples."""
    student, teacher = wide(STUDENT, grad=True), wide(TEACHER, grad=True)
    assert torch.autograd.gradcheck(lambda s: SOFT[name](s, wide(TEACHER)), (student,))
    SOFT[name](student, teacher).backward()
    assert teacher.grad is None or not teacher.grad.any()
    assert student.grad is not None and student.grad.abs().sum() > 1e-3


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.bfloat16, 1e30), (torch.float16, 6e4)])
def test_other_divergences_of_extreme_logits(name: str, dtype: torch.dtype, size: float) -> None:
    student, teacher = (torch.tensor(size * x / np.abs(x).max()).to(dtype) for x in (STUDENT, TEACHER))
    student.requires_grad_()
    loss = SOFT[name](student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all() and loss.dtype == torch.float32


def test_a_weight_of_its_own_for_the_hard_term() -> None:
    hard, kl = torch.tensor(2.0), torch.tensor(0.3)
    assert losses.distilled(hard, kl, 2.0, 9.0, 0.1).item() == pytest.approx(0.1 * 2 + 9 * 4 * 0.3)
    assert losses.distilled(hard, kl, 2.0, 0.25, 0.75).item() == losses.distilled(hard, kl, 2.0, 0.25).item()


@pytest.mark.parametrize(("tau", "p"), TAUS_AND_POWERS)
def test_power_equals_a_teacher_temperature(tau: float, p: float) -> None:
    """softmax(t/tau)^p, renormalised = softmax(t / (tau/p)); and with p < 1 it is flatter than without."""
    target = losses.soften(wide(TEACHER), tau, p)
    torch.testing.assert_close(target, losses.soften(wide(TEACHER), tau / p, 1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(target, wide(np_target(TEACHER, tau, p)), rtol=1e-12, atol=0)
    if p < 1:
        assert (target.amax(1) < losses.soften(wide(TEACHER), tau, 1.0).amax(1)).all()


def test_kl_of_equal_distributions_is_zero_and_takes_one_temperature_per_side() -> None:
    same = losses.kd_kl(wide(STUDENT), losses.soften(wide(STUDENT), 3.0, 1.0), tau=3.0)
    assert same.item() == pytest.approx(0, abs=1e-14)
    powered = losses.kd_kl(wide(STUDENT), losses.soften(wide(STUDENT), 3.0, 0.5), tau=3.0)
    assert powered.item() > 1e-3
    assert losses.kd_kl(wide(STUDENT), losses.soften(wide(STUDENT), 3.0, 0.5), tau=6.0).item() < 1e-14


def test_gradients_by_finite_differences() -> None:
    def total(student: Tensor, prior_C: Tensor) -> Tensor:
        return dive(student, wide(TEACHER), prior_C, alpha=0.3)[0]

    def classic(student: Tensor) -> Tensor:
        return kd(student, wide(TEACHER), tau=3.0, alpha=0.3)[0]

    def smoothed(student: Tensor) -> Tensor:
        return losses.head_smoothed(student, torch.tensor(LABELS), torch.tensor(COUNTS), 0.3)

    def balanced_smoothed(student: Tensor) -> Tensor:
        return losses.balanced_softmax(student, torch.tensor(LABELS), prior(), 0.3)

    def margins(student: Tensor) -> Tensor:
        return losses.ldam(student, torch.tensor(LABELS), wide(MARGINS), wide(WEIGHTS))

    assert torch.autograd.gradcheck(margins, (wide(STUDENT, grad=True),))
    assert torch.autograd.gradcheck(smoothed, (wide(STUDENT, grad=True),))
    assert torch.autograd.gradcheck(balanced_smoothed, (wide(STUDENT, grad=True),))
    assert torch.autograd.gradcheck(total, (wide(STUDENT, grad=True), prior().requires_grad_()))
    assert torch.autograd.gradcheck(classic, (wide(STUDENT, grad=True),))


def test_gradient_of_the_kl_is_the_difference_of_the_distributions() -> None:
    """d KL / d s = (softmax(s/tau) - t_hat) / (tau B): the known form, which has no prior in it."""
    student = wide(STUDENT, grad=True)
    losses.kd_kl(student, losses.soften(wide(TEACHER), 3.0, 0.5), tau=3.0).backward()
    expected = (np_softmax(STUDENT / 3) - np_target(TEACHER, 3.0, 0.5)) / (3 * B)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, wide(expected), rtol=1e-10, atol=1e-14)


def test_the_prior_is_in_the_hard_term_only() -> None:
    tilted = wide(np.log(COUNTS[::-1].copy()))
    _, parts = dive(wide(STUDENT), wide(TEACHER), prior())
    _, moved = dive(wide(STUDENT), wide(TEACHER), tilted)
    assert parts["kl"].item() == moved["kl"].item()
    assert abs(parts["hard"].item() - moved["hard"].item()) > 0.1

    only_kl = prior().requires_grad_()
    dive(wide(STUDENT), wide(TEACHER), only_kl, alpha=1.0)[0].backward()
    assert only_kl.grad is not None and not only_kl.grad.any()
    only_hard = prior().requires_grad_()
    dive(wide(STUDENT), wide(TEACHER), only_hard, alpha=0.0)[0].backward()
    assert only_hard.grad is not None and only_hard.grad.abs().min() > 1e-4


def test_the_teacher_receives_no_gradient() -> None:
    for distil in (dive, lambda s, t, n: kd(s, t, 3.0, 0.5)):
        student, teacher = wide(STUDENT, grad=True), wide(TEACHER, grad=True)
        loss, _ = distil(student, teacher, prior())
        loss.backward()
        assert teacher.grad is None
        assert student.grad is not None and student.grad.abs().sum() > 0.1
    probs = torch.full((B, C), 1 / C, dtype=torch.float64, requires_grad=True)
    assert losses.kd_kl(wide(STUDENT, grad=True), probs, 1.0).requires_grad
    losses.kd_kl(wide(STUDENT, grad=True), probs, 1.0).backward()
    assert probs.grad is None


def test_limits_of_alpha_and_p() -> None:
    labels = torch.tensor(LABELS)
    hard_only, _ = dive(wide(STUDENT), wide(TEACHER), prior(), alpha=0.0)
    assert hard_only.item() == losses.balanced_softmax(wide(STUDENT), labels, prior()).item()
    soft_only, parts = dive(wide(STUDENT), wide(TEACHER), prior(), alpha=1.0)
    assert soft_only.item() == pytest.approx(9 * parts["kl"].item(), rel=1e-14)
    without_power, _ = dive(wide(STUDENT), wide(TEACHER), wide(np.zeros(C)), p=1.0)
    classic, _ = kd(wide(STUDENT), wide(TEACHER), 3.0, 0.5)
    assert without_power.item() == classic.item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = wide(STUDENT).to(dtype), wide(TEACHER).to(dtype)
    loss, _ = dive(student, teacher, prior().float())
    exact, _ = dive(student.double(), teacher.double(), prior())
    assert loss.dtype == torch.float32
    assert losses.soften(teacher, 3.0, 0.5).dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.bfloat16, 1e30), (torch.float16, 6e4)])
def test_extreme_logits_stay_finite(dtype: torch.dtype, size: float) -> None:
    student = torch.tensor(np.sign(STUDENT) * size).to(dtype).requires_grad_()
    teacher = torch.tensor(np.sign(TEACHER) * size).to(dtype)
    labels = torch.tensor(LABELS)
    for loss, parts in (
        dive(student, teacher, prior().float()),
        kd(student, teacher, 9.0, 0.5),
        (losses.head_smoothed(student, labels, torch.tensor(COUNTS), 0.3), {}),
        (losses.cross_entropy(student, labels, None, 0.3), {}),
        (losses.balanced_softmax(student, labels, prior().float(), 0.3), {}),
        (losses.ldam(student, labels, 30 * wide(MARGINS).float(), wide(WEIGHTS).float()), {}),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all()
        assert all(part.isfinite() for part in parts.values())
        assert loss.item() > 0.01 * size


def test_unequal_shapes_are_refused_where_torch_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"student \(6, 5\), teacher \(1, 5\)"):
        dive(wide(STUDENT), wide(TEACHER)[:1], prior())


def test_log_prior() -> None:
    got = losses.log_prior(COUNTS)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), np.log(COUNTS), rtol=1e-7)
    torch.testing.assert_close(losses.log_prior(COUNTS.tolist()), got)
    with pytest.raises(UserError, match=r"class 3 has no training images \(2 of 6 classes"):
        losses.log_prior(np.array([9, 5, 2, 0, 1, 0]))


# ---- the routers between experts ----

EXPERTS = 3.0 * np.random.RandomState(5).standard_normal((B, 4, C))


def np_needs_more(experts_BEC: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    """Image by image, from the definition."""
    needs = np.zeros((len(labels_B), experts_BEC.shape[1] - 1), bool)
    for i, label in enumerate(labels_B):
        right = [np.argmax(sum(experts_BEC[i, : e + 1])) == label for e in range(experts_BEC.shape[1])]
        for e in range(len(right) - 1):
            needs[i, e] = not right[e] and any(right[e + 1 :])
    return needs


def np_routing(router_BR: np.ndarray, needs_BR: np.ndarray, weight: float) -> float:
    going = 1 / (1 + np.exp(-router_BR))
    return float(-(weight * needs_BR * np.log(going) + (1 - needs_BR) * np.log(1 - going)).mean())


def test_who_needs_more_experts_is_decided_by_the_sum_so_far() -> None:
    experts = np.random.RandomState(6).standard_normal((400, 4, C))
    labels = np.random.RandomState(7).randint(0, C, 400)
    found = losses.needs_more(wide(experts), torch.tensor(labels)).numpy()
    np.testing.assert_array_equal(found, np_needs_more(experts, labels))
    assert 0.1 < found.mean() < 0.5 and found.dtype == bool
    # Wrong, right, wrong: the first should go on, although the last is wrong again; the second should not.
    sums = np.array([[[0, 1.0], [1.0, -1.0], [-2.0, 3.0]]])
    assert losses.needs_more(wide(sums), torch.tensor([0])).tolist() == [[True, False]]
    assert losses.needs_more(wide(sums), torch.tensor([1])).tolist() == [[False, True]]


@pytest.mark.parametrize("weight", [1.0, 100.0, 0.5])
def test_routing_is_its_closed_form(weight: float) -> None:
    router, needs = 2.0 * np.random.RandomState(8).standard_normal((B, 3)), np_needs_more(EXPERTS, LABELS)
    assert needs.any() and not needs.all()
    loss = losses.routing(wide(router), torch.tensor(needs), weight)
    assert loss.dtype == torch.float64 and float(loss) == pytest.approx(np_routing(router, needs, weight), rel=1e-12)
    # The mean over the routers of the means over the batch, as in RIDE's code.
    each = [float(losses.routing(wide(router[:, [i]]), torch.tensor(needs[:, [i]]), weight)) for i in range(3)]
    assert float(loss) == pytest.approx(sum(each) / 3, rel=1e-12)
    halves = [float(losses.routing(wide(router[i::2]), torch.tensor(needs[i::2]), weight)) for i in range(2)]
    assert float(loss) == pytest.approx(sum(halves) / 2, rel=1e-12)


def test_gradients_of_routing() -> None:
    needs = torch.tensor(np_needs_more(EXPERTS, LABELS))
    router = wide(2.0 * np.random.RandomState(8).standard_normal((B, 3)), grad=True)
    assert torch.autograd.gradcheck(lambda logits: losses.routing(logits, needs, 100.0), (router,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_routing_of_extreme_logits_is_finite(dtype: torch.dtype) -> None:
    needs = torch.tensor([[True, False, True]])
    router = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = losses.routing(router, needs, 100.0)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and router.grad is not None
    low, high, _ = router[0].tolist()
    expected = (100 * -low + high + 100 * np.log(2)) / 3
    assert router.grad.isfinite().all() and float(loss.detach()) == pytest.approx(expected, rel=1e-5)
