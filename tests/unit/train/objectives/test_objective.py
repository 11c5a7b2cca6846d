"""The objective: the loss of each method and its inputs; settings that make no sense are refused."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.nondeterministic import Refused
from helpers.small_caches import RECIPE

from models import Outputs
from models.registry import ModelConfig
from pipelines.augment.recipe import Recipe
from pipelines.batch import Batch, Mix
from pipelines.errors import UserError
from pipelines.loader import DataConfig, Loader
from pipelines.order import drawn
from pipelines.records.reader import Records
from train.config import Config
from train.objectives import losses, reweighting
from train.objectives.experts import divergence
from train.objectives.methods import METHODS, DistillConfig, hard_part, prior_left_out, words_of
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
    for method, loss in {
        "ce": losses.cross_entropy(LOGITS, LABELS, None, 0.2),
        "bsce": losses.balanced_softmax(LOGITS, LABELS, PRIOR, 0.2),
        "ldam": losses.ldam(LOGITS, LABELS, reweighting.margins(COUNTS.numpy(), 0.5), None, 0.2),
    }.items():
        assert torch.equal(objective(method=method, label_smoothing=0.2)(OUTPUTS, BATCH, 0)[0], loss)
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


def test_the_prior_is_that_of_the_classes_as_drawn() -> None:
    roots = drawn(COUNTS.numpy(), "square_root")
    bsce, _ = Objective(DistillConfig(method="bsce"), COUNTS, None, drawn=roots)(OUTPUTS, BATCH, 0)
    torch.testing.assert_close(bsce, losses.balanced_softmax(LOGITS, LABELS, PRIOR / 2))
    equal = drawn(COUNTS.numpy(), "class_balanced")
    bsce, _ = Objective(DistillConfig(method="bsce"), COUNTS, None, drawn=equal)(OUTPUTS, BATCH, 0)
    torch.testing.assert_close(bsce, losses.cross_entropy(LOGITS, LABELS))


def objective(scale: float = 1.0, steps_per_epoch: int | None = 4, **settings) -> Objective:
    """Of the settings of `distill`; with targets where the method has them."""
    config = DistillConfig(**settings)
    return Objective(config, COUNTS, targets if METHODS[config.method].targets else None, scale, steps_per_epoch)


def test_ldam_subtracts_its_margins_at_the_scale_of_the_head() -> None:
    margins = reweighting.margins(COUNTS.numpy(), 0.4)
    for scale in (1.0, 30.0):
        loss, parts = objective(method="ldam", margin=0.4, scale=scale)(OUTPUTS, BATCH, 0)
        assert torch.equal(loss, losses.ldam(LOGITS, LABELS, scale * margins)) and parts == {}


@pytest.mark.parametrize("method", ["ce", "ldam", "kd", "dive"])
def test_re_weighting_begins_with_its_epoch(method: str) -> None:
    """A function of the step alone: of the last step before, the first one after, and again of the first."""
    weights = reweighting.class_weights(COUNTS.numpy(), 0.99)
    margins = reweighting.margins(COUNTS.numpy(), 0.5)
    more = {"tau": 4, "hard": "ldam" if method == "dive" else None} if METHODS[method].targets else {}
    late = objective(method=method, drw_from=2, drw_beta=0.99, **more)
    for step, given in ((7, None), (8, weights), (100, weights), (0, None)):
        loss, parts = late(OUTPUTS, BATCH, step)
        hard = parts["hard"] if parts else loss
        if method in ("ce", "kd"):
            assert torch.equal(hard, losses.cross_entropy(LOGITS, LABELS, given)), step
        else:
            assert torch.equal(hard, losses.ldam(LOGITS, LABELS, margins, given)), step
    always = objective(method=method, drw_from=0, drw_beta=0.99, **more)
    assert torch.equal(always(OUTPUTS, BATCH, 0)[0], late(OUTPUTS, BATCH, 8)[0])
    with pytest.raises(ValueError, match="steps of an epoch"):
        objective(method=method, drw_from=2, steps_per_epoch=None, **more)


def test_balanced_softmax_is_not_re_weighted() -> None:
    for more in ({"method": "bsce"}, {"method": "dive", "tau": 3}):
        weighted, plain = objective(drw_from=0, **more), objective(**more)
        assert torch.equal(weighted(OUTPUTS, BATCH, 5)[0], plain(OUTPUTS, BATCH, 5)[0])


@pytest.mark.parametrize("hard", ["ce", "bsce", "ldam"])
def test_the_hard_term_of_a_method_with_targets_can_be_another(hard: str) -> None:
    (alone, _) = objective(method=hard)(OUTPUTS, BATCH, 0)
    for method, p in (("dive", 0.5), ("kd", 1.0)):
        loss, parts = objective(method=method, hard=hard, tau=3, p=p, alpha=0.3)(OUTPUTS, BATCH, 0)
        kl = losses.kd_kl(LOGITS, losses.soften(TEACHER, 3, p), 3)
        assert torch.equal(loss, losses.distilled(alone, kl, 3, 0.3)) and torch.equal(parts["hard"], alone)
    own = {"kd": "ce", "dive": "bsce"}
    for method in own:
        same = [objective(method=method, hard=one, tau=3)(OUTPUTS, BATCH, 0)[0] for one in (None, own[method])]
        assert torch.equal(*same)


# ---- mixtures ----

SECOND, SHARES = torch.tensor([3, 1, 0, 0, 2, 1]), torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
PARTNERS = BATCH._replace(labels=SECOND, keys=np.arange(B) + 100)
MIXED = BATCH._replace(partners=PARTNERS, mix=Mix(SHARES, None))
PARTNERS_TEACHER = TEACHER.flip(0, 1)


def asked(batch: Batch) -> torch.Tensor:
    """A teacher whose answers to the mixture, to its parts and to its partners differ."""
    if batch.mix is not None:
        return TEACHER + 1.0
    return PARTNERS_TEACHER if batch.keys[0] == 100 else TEACHER


def of_labels(outputs: Outputs, labels: torch.Tensor, row: slice, **settings) -> torch.Tensor:
    """The loss of one sample of a method of labels."""
    part = BATCH._replace(labels=labels).rows(row.start, row.stop)
    experts = None if outputs.experts is None else outputs.experts[row]
    return objective(**settings)(Outputs(outputs.logits[row], experts=experts), part, 0)[0]


@pytest.mark.parametrize(
    "settings", [*({"method": name} for name in ("ce", "bsce", "ldam")), {"method": "ldam", "drw_from": 0}]
)
def test_the_loss_of_a_mixture_is_that_of_both_labels(settings: dict) -> None:
    """Of each sample r * L(y) + (1 - r) * L(y'), with experts too; that of cross-entropy is the loss of the mixed label."""
    for outputs in (doubled(OUTPUTS), doubled(SEVERAL)):
        loss, _ = objective(**settings)(outputs, MIXED, 0)
        each = [
            r * of_labels(outputs, LABELS, slice(i, i + 1), **settings)
            + (1 - r) * of_labels(outputs, SECOND, slice(i, i + 1), **settings)
            for i, r in enumerate(SHARES.double().tolist())
        ]
        assert loss.item() == pytest.approx(float(sum(each)) / B, rel=1e-6)
    if settings["method"] in ("ce", "bsce"):
        target = SHARES[:, None] * torch.eye(C)[LABELS] + (1 - SHARES[:, None]) * torch.eye(C)[SECOND]
        logits = LOGITS + PRIOR if settings["method"] == "bsce" else LOGITS
        found = objective(**settings)(OUTPUTS, MIXED, 0)[0]
        assert found.item() == pytest.approx(-(target * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{"method": "dive", "p": 0.5}, {"method": "kd"}, {"method": "bkd"}])
def test_soft_targets_of_a_mixture(settings: dict) -> None:
    """The answer to the mixture, or the probabilities of the answers to its parts, mixed by the shares."""
    shares = SHARES[:, None]
    for how in ("image", "parts"):
        config = DistillConfig(tau=3, alpha=0.3, mixed_targets=how, **settings)
        loss, parts = Objective(config, COUNTS, asked)(OUTPUTS, MIXED, 0)
        soft = losses.soften(TEACHER + 1.0, 3, config.p)
        if how == "parts":
            soft = shares * losses.soften(TEACHER, 3, config.p) + (1 - shares) * losses.soften(
                PARTNERS_TEACHER, 3, config.p
            )
        if config.method == "bkd":
            soft = losses.reweighted(soft, reweighting.class_weights(COUNTS.numpy(), config.bkd_beta))
        (hard, _), kl = objective(method=hard_part(config))(OUTPUTS, MIXED, 0), losses.kd_kl(LOGITS, soft, 3)
        assert loss.item() == pytest.approx(losses.distilled(hard, kl, 3, 0.3).item(), rel=1e-5), how
        assert parts["hard"].item() == pytest.approx(hard.item(), rel=1e-6)


def test_methods_of_one_label_do_not_take_mixtures() -> None:
    takes = {name for name, row in METHODS.items() if row.two_labels}
    assert takes == {"ce", "bsce", "ldam", "dive", "kd", "bkd"}
    for name in METHODS:
        config = {"data": DataConfig(recipe=Recipe(mix="mixup")), "distill": DistillConfig(method=name)}
        if METHODS[name].part is None and name not in takes:
            words = f"data.recipe.mix=mixup: distill.method={name} takes one label for an image, not two; use data.recipe.mix"
            with pytest.raises(ValueError, match=words):
                Config(**config)
            with pytest.raises(ValueError, match="takes one label"):
                Objective(DistillConfig(method=name, tau=3), COUNTS, asked)(OUTPUTS, MIXED, 0)
        elif name in takes:
            Config(**config)


# ---- several experts ----

E = 3
EXPERTS = torch.randn(B, E, C, generator=generator)
SEVERAL = Outputs(EXPERTS.mean(1), experts=EXPERTS)
ALL = ({"method": "ce"}, {"method": "ce", "head_smoothing": 0.3}, {"method": "bsce"}, {"method": "ldam"})
SMOOTHED = tuple({"method": name, "label_smoothing": 0.3} for name in ("ce", "bsce", "ldam"))
DISTILLED = (
    {"method": "dive", "tau": 3.0, "p": 0.5, "alpha": 0.75},
    {"method": "kd", "tau": 1.5, "hard": "ldam", "drw_from": 0},
)


def doubled(outputs: Outputs) -> Outputs:
    experts = None if outputs.experts is None else outputs.experts.double()
    return Outputs(outputs.logits.double(), experts=experts)


@pytest.mark.parametrize("settings", [*ALL, *SMOOTHED, {"method": "ldam", "drw_from": 0}, *DISTILLED])
def test_the_loss_of_experts_is_the_sum_of_their_losses(settings: dict) -> None:
    """Of each expert as of a network of its own, with the same labels and targets; parts are means over the experts."""
    loss, parts = objective(**settings)(doubled(SEVERAL), BATCH, 0)
    ones = [objective(**settings)(doubled(Outputs(EXPERTS[:, e])), BATCH, 0) for e in range(E)]
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in ones), rel=1e-12)
    for name, part in parts.items():
        assert part.item() == pytest.approx(sum(other[name].item() for _, other in ones) / E, rel=1e-12)
    assert parts.keys() == ones[0][1].keys()


@pytest.mark.parametrize("settings", [*ALL, *DISTILLED])
@pytest.mark.parametrize("kl_of", ["experts", "ensemble"])
def test_one_expert_is_the_plain_method_to_the_bit(settings: dict, kl_of: str) -> None:
    loss, parts = objective(**settings, kl_of=kl_of)(Outputs(LOGITS, experts=LOGITS[:, None]), BATCH, 0)
    plain, others = objective(**settings)(OUTPUTS, BATCH, 0)
    assert torch.equal(loss, plain) and parts == others


def test_dive_of_each_expert_is_the_closed_form() -> None:
    """Sum over experts of (1 - a) * CE(softmax(s + log n)) + a * tau^2 * KL(t_hat || softmax(s / tau)), with numpy."""
    counts, labels, tau, p, a = COUNTS.double().numpy(), LABELS.numpy(), 3.0, 0.5, 0.75

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    target = softmax(TEACHER.double().numpy() / tau) ** p
    target /= target.sum(1, keepdims=True)
    expected = 0.0
    for e in range(E):
        s = EXPERTS[:, e].double().numpy()
        hard = -np.log(softmax(s + np.log(counts))[np.arange(B), labels]).mean()
        expected += (1 - a) * hard + a * tau**2 * (target * np.log(target / softmax(s / tau))).sum(1).mean()
    loss, _ = objective(method="dive", tau=tau, p=p, alpha=a)(doubled(SEVERAL), BATCH, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the prior is float32


def test_the_kl_of_the_ensemble_is_that_of_the_mean_once() -> None:
    settings = {"method": "kd", "tau": 1.5, "hard": "ldam", "alpha": 0.3}
    loss, parts = objective(**settings, kl_of="ensemble")(SEVERAL, BATCH, 0)
    hard = objective(method="ldam")(SEVERAL, BATCH, 0)[0]
    kl = losses.kd_kl(SEVERAL.logits, losses.soften(TEACHER, 1.5, 1), 1.5)
    assert torch.equal(loss, losses.distilled(hard, kl, 1.5, 0.3))
    assert torch.equal(parts["kl"], kl) and parts["hard"].item() == pytest.approx(hard.item() / E)


@pytest.mark.parametrize("settings", [*ALL, *DISTILLED])
def test_diversity_is_added_to_any_method(settings: dict) -> None:
    plain, others = objective(**settings)(SEVERAL, BATCH, 0)
    loss, parts = objective(**settings, diversity=-0.45)(SEVERAL, BATCH, 0)
    seen = losses.log_prior(COUNTS.numpy()) if METHODS[hard_part(DistillConfig(**settings))].prior else torch.zeros(C)
    apart = divergence(EXPERTS + seen, SEVERAL.logits + seen)
    assert torch.equal(loss, plain - 0.45 * apart) and apart > 0.1
    assert parts["diversity"].item() == pytest.approx(apart.item() / E)
    assert parts["hard"].item() == pytest.approx(others["hard"].item() if others else plain.item() / E)
    without, parts = objective(**settings, diversity=0.0)(SEVERAL, BATCH, 0)
    assert torch.equal(without, plain) and parts == others


def test_the_diversity_is_that_of_the_logits_which_the_loss_sees() -> None:
    """Balanced softmax of s is cross-entropy of s + log n, with its diversity: else the prior would be a way apart at no cost."""
    shifted = EXPERTS + losses.log_prior(COUNTS.numpy())
    switched = {"diversity": -0.45, "diversity_from": 1, "diversity_eta": 0.3}
    for step in (0, 5):
        balanced, its = objective(method="bsce", **switched)(SEVERAL, BATCH, step)
        plain, others = objective(method="ce", **switched)(Outputs(shifted.mean(1), experts=shifted), BATCH, step)
        torch.testing.assert_close(balanced, plain, rtol=1e-5, atol=0)
        torch.testing.assert_close(its["diversity"], others["diversity"], rtol=1e-5, atol=0)


def test_the_temperatures_of_the_diversity_begin_with_their_epoch() -> None:
    """Times the square of their mean; whether or not classes are re-weighted."""
    temperatures = reweighting.diversity_temperatures(COUNTS.numpy(), 0.3)
    switched = objective(method="bsce", diversity=-0.2, diversity_from=1, diversity_eta=0.3)
    plain, prior = objective(method="bsce")(SEVERAL, BATCH, 0)[0], losses.log_prior(COUNTS.numpy())
    each, mean = EXPERTS + prior, SEVERAL.logits + prior
    for step, expected in (
        (3, divergence(each, mean)),
        (4, temperatures.mean() ** 2 * divergence(each, mean, temperatures)),
    ):
        torch.testing.assert_close(switched(SEVERAL, BATCH, step)[0], plain - 0.2 * expected)
    with pytest.raises(ValueError, match="steps of an epoch"):
        objective(method="bsce", diversity=-0.2, diversity_from=1, steps_per_epoch=None)


def test_only_the_experts_get_a_gradient_and_a_plain_network_has_no_diversity() -> None:
    mean, experts = SEVERAL.logits.clone().requires_grad_(), EXPERTS.clone().requires_grad_()
    loss, parts = objective(method="dive", tau=3, diversity=-0.2)(Outputs(mean, experts=experts), BATCH, 0)
    loss.backward()
    assert mean.grad is None and experts.grad is not None and experts.grad.abs().sum() > 0.1
    assert not any(part.requires_grad for part in parts.values())
    with pytest.raises(ValueError, match="the network has no experts"):
        objective(method="ce", diversity=-0.2)(OUTPUTS, BATCH, 0)


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
        ("distill.label_smoothing=1", {"method": "ce", "label_smoothing": 1.0}),
        (
            "distill.label_smoothing=0.1: xerm .* distill.method=ce, bsce or ldam,",
            {"method": "xerm", "label_smoothing": 0.1},
        ),
        ("both smooth the head", {"method": "ce", "label_smoothing": 0.1, "head_smoothing": 0.1}),
        ("distill.margin", {"margin": -0.1}),
        ("distill.drw_from", {"drw_from": -1}),
        ("distill.drw_beta", {"drw_beta": 1.0}),
        ("distill.drw_beta", {"drw_beta": -0.1}),
        ("distill.alpha=2: must be from 0 to 1, .* distill.hard_weight=1", {"alpha": 2}),
        ("distill.alpha=-1", {"alpha": -1, "hard_weight": 1}),
        ("distill.hard_weight=-1", {"hard_weight": -1}),
        ("distill.dkd_target=-1", {"dkd_target": -1}),
        ("distill.dkd_others=101", {"dkd_others": 101}),
        ("distill.bkd_beta=1", {"bkd_beta": 1.0}),
        ("distill.xerm_gamma=-1", {"xerm_gamma": -1}),
        ("distill.diversity", {"diversity": -1e9}),
        ("distill.diversity_from", {"diversity_from": -1}),
        ("distill.diversity_eta", {"diversity_eta": 1.5}),
        ("distill.mixed_targets=parts: .* distill.zscore=true", {"mixed_targets": "parts", "zscore": True}),
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
        whole = "train/distill.py" if row.targets else "train/teacher.py"
        assert row.script == (whole if row.part is None else f"train/{row.part}.py"), name
        assert row.part is None or (not row.targets and row.part in ModelConfig.__dataclass_fields__), name


def test_the_hard_part_of_a_method_has_its_prior() -> None:
    own = {"ce": "ce", "bsce": "bsce", "ldam": "ldam", "dive": "bsce", "kd": "ce", "router": "router"}
    own |= {"dkd": "ce", "bkd": "ce", "xerm": "bsce"}
    assert {name: hard_part(DistillConfig(method=name)) for name in METHODS} == own
    given = {name: hard_part(DistillConfig(method=name, hard="ldam")) for name in METHODS}
    assert given == own | dict.fromkeys(("dive", "kd", "dkd", "bkd"), "ldam")
    for name, row in METHODS.items():
        assert row.prior == METHODS[own[name]].prior


def test_whether_the_logits_hold_the_training_prior() -> None:
    """Not known of a method whose targets are balanced in part, or hold as much of the prior as its teacher's logits."""
    held = dict.fromkeys(METHODS, None) | {"ce": False, "bsce": True, "dive": True}
    assert {name: prior_left_out(DistillConfig(method=name)) for name in METHODS} == held
    assert prior_left_out(DistillConfig(method="dive", hard="ce")) is None
    assert prior_left_out(DistillConfig(method="dive", hard="bsce")) is True


def test_smoothed_labels_hold_the_prior_only_where_they_are_smoothed_by_it() -> None:
    """Otherwise the logits are not the logarithm of the prior where an image tells nothing, and to subtract it favours others."""
    assert prior_left_out(DistillConfig(method="ce", head_smoothing=0.4)) is None
    assert prior_left_out(DistillConfig(method="ce", label_smoothing=0.1)) is None
    assert prior_left_out(DistillConfig(method="bsce", label_smoothing=0.1)) is True
    assert prior_left_out(DistillConfig(method="dive", label_smoothing=0.1)) is True


def test_words_of_a_card_name_the_hard_term() -> None:
    dive = METHODS["dive"].words
    for hard in (None, "bsce"):
        assert words_of(DistillConfig(hard=hard)) == dive
    assert words_of(DistillConfig(hard="ldam")) == f"{dive}, with {METHODS['ldam'].words} in place of balanced softmax"
    assert words_of(DistillConfig(method="ce", hard="ldam")) == "cross-entropy"


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


# ---- deterministic ----

TWO_EXPERTS = torch.randn(B, 2, C, generator=generator)
ROUTER = torch.randn(B, 1, generator=generator)


@pytest.mark.parametrize("method", METHODS)
def test_no_loss_has_an_operation_that_a_deterministic_gpu_refuses(method: str) -> None:
    config = DistillConfig(method=method, **({"tau": 3.0} if "tau" in METHODS[method].settings else {}))
    soft = (lambda batch: TEACHER) if METHODS[method].targets else None
    each, router = TWO_EXPERTS.clone().requires_grad_(), ROUTER.clone().requires_grad_()
    with Refused() as refused:
        loss, _ = Objective(config, COUNTS, soft, 1.0, 4)(Outputs(each.mean(1), experts=each, router=router), BATCH, 0)
        loss.backward()
    assert refused.found == set()
    with refused:
        each.cumsum(1)
    assert refused.found == {"cumsum"}


# ---- compiled ----


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_loss_is_one_graph_whatever_the_step(method: str, experts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced but not translated, it has the same bits; what is switched on later is a second graph."""
    if method == "router" and not experts:
        pytest.skip("routers are between experts")
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    given = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode: given(call, backend=counted, fullgraph=True))
    more = {"tau": 3.0} if "tau" in METHODS[method].settings else {}
    if experts and method != "router":
        more |= {"diversity": -0.2, "diversity_from": 1}
    config = DistillConfig(method=method, **more)
    soft = (lambda batch: TEACHER) if METHODS[method].targets else None
    plain, fast = (Objective(config, COUNTS, soft, 1.0, 4, mode) for mode in (None, "default"))
    for step in (0, 1, 2, 3, 4, 5, 6):
        found = []
        for one in (plain, fast):
            logits, each, router = (tensor.clone().requires_grad_() for tensor in (LOGITS, TWO_EXPERTS, ROUTER))
            outputs = Outputs(each.mean(1), experts=each, router=router) if experts else Outputs(logits)
            loss, parts = one(outputs, BATCH, step)
            loss.backward()
            gradients = [tensor.grad for tensor in (logits, each, router) if tensor.grad is not None]
            found.append([loss, *parts.values(), *gradients])
        assert len(found[0]) == len(found[1])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), step
    assert len(graphs) == (2 if experts and method != "router" else 1)


@pytest.mark.slow
def test_a_loss_that_is_compiled_is_the_loss_to_rounding() -> None:
    torch.compiler.reset()
    config, found = DistillConfig(method="dive", tau=3, p=0.5), []
    for mode in (None, "default"):
        logits = LOGITS.clone().requires_grad_()
        loss, parts = Objective(config, COUNTS, targets, compile_mode=mode)(Outputs(logits), BATCH, 0)
        loss.backward()
        found.append(torch.cat([torch.stack([loss.detach(), parts["hard"], parts["kl"]]), logits.grad.flatten()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
