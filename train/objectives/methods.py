"""THE table of methods: what can be trained, by which loss, and what each needs. Their names are written nowhere else.

A method is one function here and one row of METHODS; losses.py has the formulas. The row determines the settings' choices and
their explanation, the script that trains it, what is refused with it, its words on a model card and its row in the bench.
A network with several experts needs no method of its own: `each_expert` takes a loss of every expert.
Invariant: a loss depends on its arguments alone; what changes during training is a function of the step.
Shapes: B batch, C classes, E experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from models import Outputs
from pipelines.augment.finish import check_normalisation
from train.objectives import losses
from train.objectives.losses import Parts


class Given(NamedTuple):
    """The inputs of a loss besides the student's outputs."""

    labels: Tensor
    "int64 [B]"
    soft: Tensor | None
    "float32 [B, C]: the teacher's raw logits; None for a method without targets"
    log_prior: Tensor
    "float32 [C]: log of how often each class is drawn, up to a constant; zeros for a method without a prior"
    class_counts: Tensor
    "int64 [C]: training images per class, on the device as all tensors here"
    settings: "DistillConfig"
    "with the temperature resolved"
    step: int | Tensor
    "the optimizer step, from 0; with cuda_graph=true an int64 scalar on the device, as a number would stay that of the recording"
    margins: Tensor | None = None
    "float32 [C]: LDAM's, in units of the logits; None for a hard term without"
    class_weights: Tensor | None = None
    "float32 [C]: of the hard term in this step; None: all 1"
    target_weights: Tensor | None = None
    "float32 [C]: of the classes in the targets of balanced KD"
    mixture: tuple[Tensor, Tensor] | None = None
    "of images mixed from two: the second labels int64 [B], and the shares float32 [B] of the first; None: all have one label"
    shares: Tensor | None = None
    "float32 [B]: what the loss of each sample's label counts; None: 1"
    by_temperatures: bool = False
    "whether, in this step, the diversity of experts has a temperature for each class"

    @property
    def targets(self) -> Tensor:
        """`soft`, for a method that has targets."""
        assert self.soft is not None
        return self.soft

    @property
    def tau(self) -> float:
        """The temperature, for a method that has one."""
        assert self.settings.tau is not None
        return self.settings.tau

    def of_batch(self) -> list[Tensor]:
        """The tensors that are others in every batch; the rest stays from step to step, until something is switched on."""
        return [self.labels, *([] if self.soft is None else [self.soft]), *(self.mixture or ())]

    def with_batch(self, tensors: Iterator[Tensor]) -> "Given":
        """The same with the next of these in place of those of `of_batch`, in its order."""
        labels = next(tensors)
        soft = None if self.soft is None else next(tensors)
        mixture = None if self.mixture is None else (next(tensors), next(tensors))
        return self._replace(labels=labels, soft=soft, mixture=mixture)

    def rest_is_that_of(self, other: "Given") -> bool:
        """Whether another is the same but for the step and the tensors of the batch, so that the loss is the same program."""
        changing = ("labels", "soft", "mixture", "step")
        same = all(getattr(self, name) is getattr(other, name) for name in self._fields if name not in changing)
        return same and len(self.of_batch()) == len(other.of_batch())


Loss = Callable[[Outputs, Given], tuple[Tensor, Parts]]
"(loss, its named parts) as scalars on the device; parts are means over the experts"


class Method(NamedTuple):
    """One row of METHODS."""

    loss: Loss
    short: str
    "for --help"
    words: str
    "for a model card: trained by ..."
    targets: bool = False
    "whether it needs a teacher's soft targets"
    prior: bool = False
    "whether it corrects by the class counts"
    settings: tuple[str, ...] = ()
    "the keys of `distill` that its loss reads"
    hard: str | None = None
    "the row without targets that is its hard term unless distill.hard names another; None: its loss takes no other"
    part: str | None = None
    """the part of a finished network that it trains, a submodule's name and a setting of `model`, with the rest frozen; None: it
    trains the whole network"""
    mixed: bool = False
    """whether its logits hold a part of the training prior: neither all, as those of cross-entropy, nor none; or as much as its
    teacher's"""
    two_labels: bool = False
    "whether it takes images that are mixtures of two, with the labels of both"

    @property
    def script(self) -> str:
        """The entry script that trains it."""
        if self.part is not None:
            return f"train/{self.part}.py"
        return "train/distill.py" if self.targets else "train/teacher.py"

    @property
    def is_hard_term(self) -> bool:
        """Whether it can be the hard term of others: it trains the whole network by the labels alone."""
        return not self.targets and self.part is None


def each_expert(loss: Loss) -> Loss:
    """`loss` of each expert of a network, summed over the experts; of a network without experts, `loss` itself.

    The experts are folded into the batch, so that it is called once: E times the mean over B * E samples is the sum of the
    experts' means, whatever weight the samples have. All experts have the same labels and soft targets.
    """

    def of_each(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
        if outputs.experts is None:
            return loss(outputs, given)
        experts = outputs.experts.shape[1]
        soft = None if given.soft is None else given.soft.repeat_interleave(experts, dim=0)
        labels = given.labels.repeat_interleave(experts)
        mixture = given.mixture and tuple(part.repeat_interleave(experts) for part in given.mixture)
        folded = given._replace(labels=labels, soft=soft, mixture=mixture)
        mean, parts = loss(Outputs(outputs.experts.flatten(0, 1)), folded)
        return experts * mean, parts

    return of_each


def each_label(loss: Loss) -> Loss:
    """`loss` of both labels of a mixture of images, weighted by their shares; of images with one label, `loss` itself.

    r * L(s, y) + (1 - r) * L(s, y') of each sample: for cross-entropy, and so for balanced softmax, that is the loss of the mixed
    label r * y + (1 - r) * y' of mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899). The published code of CMO (Park et al.
    2022, arXiv 2112.00412) mixes the losses of balanced softmax and LDAM in this way. The prior is that of the images before they
    are mixed. `loss` must be a mean of `given.shares` times the loss of each sample.
    """

    def of_both(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
        if given.mixture is None:
            return loss(outputs, given)
        second, share = given.mixture
        own, parts = loss(outputs, given._replace(shares=share))
        other, others = loss(outputs, given._replace(labels=second, shares=1 - share))
        return own + other, {name: part + others[name] for name, part in parts.items()}

    return of_both


@each_expert
@each_label
def _ce(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    logits, labels, weights, settings = outputs.logits, given.labels, given.class_weights, given.settings
    if settings.head_smoothing:
        eps = settings.head_smoothing
        return losses.head_smoothed(logits, labels, given.class_counts, eps, weights, given.shares), {}
    return losses.cross_entropy(logits, labels, weights, settings.label_smoothing, given.shares), {}


@each_expert
@each_label
def _bsce(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    smoothing = given.settings.label_smoothing
    return losses.balanced_softmax(outputs.logits, given.labels, given.log_prior, smoothing, given.shares), {}


@each_expert
@each_label
def _ldam(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    assert given.margins is not None
    smoothing = given.settings.label_smoothing
    logits, labels, margins, weights = outputs.logits, given.labels, given.margins, given.class_weights
    return losses.ldam(logits, labels, margins, weights, smoothing, given.shares), {}


def distilled_by(soft: Loss) -> Loss:
    """The loss of a hard term of each expert, and of `soft`, a divergence to the targets, of each or of their mean."""
    soft_of_each = each_expert(soft)

    def loss(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
        settings = given.settings
        hard, _ = METHODS[hard_part(settings)].loss(outputs, given._replace(soft=None))
        divergence, parts = (soft if settings.kl_of == "ensemble" else soft_of_each)(outputs, given)
        total = losses.distilled(hard, divergence, given.tau, settings.alpha, settings.hard_weight)
        return total, {"hard": hard.detach() / experts_of(outputs), **parts}

    return loss


def _both(outputs: Outputs, given: Given) -> tuple[Tensor, Tensor]:
    """The logits of student and teacher, standardised where distill.zscore says so."""
    if not given.settings.zscore:
        return outputs.logits, given.targets
    return losses.standardised(outputs.logits), losses.standardised(given.targets)


@distilled_by
def _kd(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    """p is 1 where a method has no power."""
    student, teacher = _both(outputs, given)
    kl = losses.kd_kl(student, losses.soften(teacher, given.tau, given.settings.p), given.tau)
    return kl, {"kl": kl.detach()}


@distilled_by
def _dkd(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    target, others = losses.decoupled_kl(*_both(outputs, given), given.labels, given.tau)
    settings = given.settings
    parts = {"tckd": target.detach(), "nckd": others.detach()}
    return settings.dkd_target * target + settings.dkd_others * others, parts


@distilled_by
def _bkd(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    assert given.target_weights is not None
    student, teacher = _both(outputs, given)
    targets = losses.reweighted(losses.soften(teacher, given.tau, 1.0), given.target_weights)
    kl = losses.kd_kl(student, targets, given.tau)
    return kl, {"kl": kl.detach()}


@each_expert
def _xerm(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    gamma = given.settings.xerm_gamma
    loss, weight = losses.cross_domain(outputs.logits, given.targets, given.labels, given.log_prior, gamma)
    return loss, {"balanced_weight": weight}


def _router(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    """Parts: the share of decisions that should be to go on, and the share that are."""
    if outputs.experts is None or outputs.router is None:
        raise ValueError("the network has no routers: type model.router=30, for example")
    needs_more = losses.needs_more(outputs.experts, given.labels)
    loss = losses.routing(outputs.router, needs_more, given.settings.router_weight)
    shares = {"needs_more": needs_more, "goes_on": outputs.router.detach() > 0}
    return loss, {name: decisions.float().mean() for name, decisions in shares.items()}


def experts_of(outputs: Outputs) -> int:
    """The number of experts of the network that gave these outputs: 1 without any."""
    return 1 if outputs.experts is None else outputs.experts.shape[1]


_DRW = ("drw_from", "drw_beta")
_SOFT = ("alpha", "hard", "hard_weight", "kl_of", "zscore")  # what each method of a divergence reads, besides tau

METHODS: dict[str, Method] = {
    "ce": Method(
        _ce,
        "cross-entropy",
        "cross-entropy",
        settings=("label_smoothing", "head_smoothing", *_DRW),
        two_labels=True,
    ),
    "bsce": Method(
        _bsce,
        "balanced softmax",
        "balanced softmax",
        prior=True,
        settings=("label_smoothing",),
        two_labels=True,
    ),
    "ldam": Method(
        _ldam,
        "cross-entropy with margins, larger for rarer classes",
        "LDAM (cross-entropy with margins that are larger for rarer classes)",
        settings=("margin", "label_smoothing", *_DRW),
        two_labels=True,
    ),
    "dive": Method(
        _kd,
        "bsce + KL to the teacher",
        "DiVE: balanced softmax and the divergence to a teacher's softened, flattened predictions",
        targets=True,
        prior=True,
        settings=("tau", "p", *_SOFT),
        hard="bsce",
        two_labels=True,
    ),
    "kd": Method(
        _kd,
        "ce + KL to the teacher",
        "cross-entropy and the divergence to a teacher's softened predictions",
        targets=True,
        settings=("tau", *_SOFT),
        hard="ce",
        two_labels=True,
        mixed=True,
    ),
    "dkd": Method(
        _dkd,
        "ce + KL to the teacher, its two parts weighted",
        "decoupled knowledge distillation (cross-entropy, and the divergence to a teacher's softened predictions in two parts)",
        targets=True,
        settings=("tau", *_SOFT, "dkd_target", "dkd_others"),
        hard="ce",
        mixed=True,
    ),
    "bkd": Method(
        _bkd,
        "ce + KL to the teacher re-weighted for rarer classes",
        "balanced knowledge distillation (cross-entropy, and the divergence to a teacher's softened predictions, of which rarer "
        "classes have more)",
        targets=True,
        settings=("tau", *_SOFT, "bkd_beta"),
        hard="ce",
        two_labels=True,
        mixed=True,
    ),
    "xerm": Method(
        _xerm,
        "ce to the label and to a ce teacher without its prior, weighted by sample",
        "cross-domain empirical risk minimisation (cross-entropy with the label and with a teacher's predictions without its "
        "prior, weighted by sample)",
        targets=True,
        prior=True,
        settings=("xerm_gamma",),
        mixed=True,
    ),
    "router": Method(
        _router,
        "of a finished network with experts, the routers that decide how many of them an image needs",
        "binary cross-entropy of its routers alone (RIDE's expert assignment), all other weights being those it started from",
        settings=("router_weight",),
        part="router",
    ),
}

if TYPE_CHECKING:
    MethodName = HardName = str
else:  # the choices of the settings are the rows of the table
    MethodName = Literal[tuple(METHODS)]
    HardName = Literal[tuple(name for name, row in METHODS.items() if row.is_hard_term)]


def hard_part(distill: "DistillConfig") -> str:
    """The row without soft targets that is the method's hard term, or the method itself where it has no soft targets.

    A method with a loss all of its own counts as having the first such row with the same prior.
    """
    row = METHODS[distill.method]
    if not row.targets:
        return distill.method
    if row.hard is not None:
        return distill.hard or row.hard
    return next(name for name, other in METHODS.items() if other.is_hard_term and other.prior == row.prior)


def settings_of(distill: "DistillConfig") -> tuple[str, ...]:
    """The keys of `distill` that the loss reads, those of its hard term among them."""
    row = METHODS[distill.method]
    return row.settings + (METHODS[hard_part(distill)].settings if row.hard else ())


def prior_left_out(distill: "DistillConfig") -> bool | None:
    """Whether the logits leave out the training prior, as balanced softmax makes them, or hold it, as cross-entropy does.

    None: neither exactly, after margins, class weights, or label smoothing that was not spread as the prior is; or not known,
    where only a part of the network was trained, or where a teacher's targets are learned, which hold as much of the prior as
    its own logits do. DiVE's teacher is one of balanced softmax, by its definition.
    """
    row, hard, found = METHODS[distill.method], METHODS[hard_part(distill)], settings_of(distill)
    if row.part is not None:
        return None
    smoothed = distill.head_smoothing or (distill.label_smoothing and not hard.prior)
    neither = row.mixed or row.prior != hard.prior or "margin" in found or smoothed
    return None if neither or ("drw_from" in found and distill.drw_from is not None) else hard.prior


def reads(row: Method, name: str) -> bool:
    """Whether a method reads the key `name` of `distill`, itself or in the hard term that it has by itself."""
    return name in row.settings or (row.hard is not None and name in METHODS[row.hard].settings)


def words_of(distill: "DistillConfig") -> str:
    """What the network is trained by, for a model card."""
    row = METHODS[distill.method]
    if row.hard is None or hard_part(distill) == row.hard:
        return row.words
    return f"{row.words}, with {METHODS[hard_part(distill)].words} in place of {METHODS[row.hard].words}"


def names_where(condition: Callable[[Method], bool]) -> str:
    """Names of the rows that fulfil `condition`, for a message: "ce, bsce or kd"."""
    names = [name for name, row in METHODS.items() if condition(row)]
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _explained() -> str:
    return "; ".join(f"{name}: {row.short}" for name, row in METHODS.items())


LEAST_T, MOST_T = 0.01, 1000  # softmax is one-hot or uniform long before; beyond, tau**2 overflows
MOST_MARGIN = 100  # of the logits of a linear head; a cosine is at most 1
MOST_DIVERSITY = MOST_WEIGHT = 100
MOST_GAMMA = 100  # the smaller of two cross-entropies counts for nothing long before
MOST_ROUTER_WEIGHT = 1e6


@dataclass(kw_only=True)
class DistillConfig:
    method: MethodName = field(default="dive", metadata={"doc": _explained()})
    teacher: str | None = field(default=None, metadata={"path": True})
    """the finished teacher: its run (name or folder), a folder with model.safetensors and model.json, or, with the keys below, a
    file of weights (.safetensors, .pth); optional beside a cache"""
    teacher_arch: str | None = None
    """network of a teacher that is a file of weights, named as in model.name: resnext50_32x4d, timm/NAME; for another head or
    experts, followed by those settings of `model`: "resnet32 head=cosine experts=6"; null = it is a run"""
    teacher_classes: str | None = field(default=None, metadata={"path": True})
    "file with that teacher's class names, one per line, in the order of its outputs"
    teacher_mean: list[float] | None = None
    "per-channel mean with which that teacher was trained, 0..1; null = data.mean"
    teacher_std: list[float] | None = None
    "per-channel standard deviation, likewise; null = data.std"
    tau: float | None = None
    "temperature of all but xerm (dive: CIFAR-100-LT 3, ImageNet-LT 9, iNaturalist 2); null = chosen from the cache, for this p"
    p: float = 1.0
    "power of dive on the teacher's probabilities: teacher temperature tau / p; 1 = none"
    alpha: float = 0.5
    "weight of the soft term; the hard term has 1 - alpha, so that it is 0..1, unless distill.hard_weight says otherwise"
    hard_weight: float | None = None
    """weight of the hard term, in place of 1 - alpha; 1 with alpha=1 is the plain sum of most publications; null = 1 - alpha"""
    hard: HardName | None = None
    """hard term of a method with a soft one; null = the method's own (dive bsce, kd, dkd and bkd ce)"""
    zscore: bool = False
    """logit standardisation: before the temperature, both networks' logits of an image get mean 0 and standard deviation 1
    (published with tau=2, alpha=9 and hard_weight=0.1)"""
    mixed_targets: Literal["image", "parts"] = "image"
    """with data.recipe.mix: image = the teacher's answer to the mixed image, from a cache of mixed views; parts = its answers to
    the two images, their probabilities mixed as the labels are, from a cache of views that are not mixed"""
    dkd_target: float = 1.0
    "of dkd: weight of the part that is about the label (TCKD)"
    dkd_others: float = 8.0
    "of dkd: weight of the part that is about the other classes (NCKD)"
    bkd_beta: float = 0.9999
    "of bkd: the targets' classes are weighted by their effective number of samples with this beta; 0 = no weights, as kd"
    xerm_gamma: float = 1.5
    "of xerm: exponent of the teacher's two cross-entropies in a sample's weight (CIFAR-100-LT 1.5, ImageNet-LT 2)"
    kl_of: Literal["experts", "ensemble"] = "experts"
    """with several experts: the KL of each expert to the teacher, summed (RIDE-DiVE), or of their mean (RIDE)"""
    margin: float = 0.5
    """of ldam, also as a hard term: the margin of the rarest class, others have less; in units of the cosine with a cosine head,
    of the logits with a linear one; 0 = cross-entropy"""
    drw_from: int | None = None
    """of ce and ldam, also as hard terms: from the START of this epoch on (as schedule.milestones) the classes are weighted by
    their effective number of samples (deferred re-weighting); 0 = always; null = never"""
    drw_beta: float = 0.9999
    "of these class weights, which are (1 - beta) / (1 - beta^n), scaled; 0 = no weights"
    diversity: float = 0.0
    """with several experts: weight of the divergence of the experts from their mean, added to any method; negative drives them
    apart (RIDE: CIFAR -0.45, ImageNet-LT and iNaturalist -0.2); 0 = none. With balanced softmax that of logits + log n"""
    diversity_from: int | None = None
    "from the START of this epoch on the diversity has a temperature for each class; null = always the temperature 1"
    diversity_eta: float = 0.05
    """of these temperatures (eta * C * p + 1 - eta, divided by the largest; p the share of the class): CIFAR 0.05, ImageNet-LT
    0.02, iNaturalist 0.015; 0 = 1 for each class"""
    router_weight: float = 100.0
    """of router: the weight of images that should go on to the next expert, 1 being that of the others; with a larger one more go
    on, for a higher accuracy at a higher cost"""
    label_smoothing: float = 0.0
    """of ce, bsce and ldam, also as hard terms: this share of every label is spread over all classes, equally, of bsce in
    proportion to their training images; 0 up to but not 1; 0.1 is usual"""
    head_smoothing: float = 0.0
    """of ce, also as a hard term: label smoothing of the most frequent class alone (the first of equal ones), 0 up to but not 1;
    its samples have the target 1 - this on their label, and this / (classes - 1) on each other class"""

    def __post_init__(self) -> None:
        self._check_teacher()
        for name, value in (("tau", self.tau), ("p", self.p)):
            if value is not None and not LEAST_T <= value <= MOST_T:
                raise ValueError(f"distill.{name}={value}: must be above 0, in {LEAST_T}..{MOST_T}")
        self._check_weights()
        for name in ("label_smoothing", "head_smoothing", "drw_beta", "bkd_beta"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"distill.{name}={value}: must be at least 0 and less than 1")
        self._check_experts()
        method = METHODS[self.method]
        self._check_smoothing()
        if self.zscore and self.mixed_targets == "parts":
            raise ValueError(
                "distill.mixed_targets=parts: mixes probabilities, which have no logits for distill.zscore=true; use "
                "distill.mixed_targets=image, or distill.zscore=false"
            )
        if method.targets and "p" not in method.settings and self.p != 1:
            with_power = names_where(lambda row: "p" in row.settings)
            raise ValueError(
                f"distill.p={self.p}: {self.method} has no power; use distill.method={with_power}, or distill.p=1"
            )

    def _check_smoothing(self) -> None:
        """ValueError for smoothed labels where the method has none, or smooths them in two ways."""
        for name in ("label_smoothing", "head_smoothing"):
            if (value := getattr(self, name)) != 0 and name not in settings_of(self):
                smoothing = names_where(lambda row, name=name: name in row.settings)
                raise ValueError(
                    f"distill.{name}={value}: {self.method} does not smooth labels so; use distill.method={smoothing}, or "
                    f"distill.{name}=0"
                )
        if self.label_smoothing and self.head_smoothing:
            raise ValueError(
                f"distill.label_smoothing={self.label_smoothing} and distill.head_smoothing={self.head_smoothing} both smooth "
                "the head; leave one out"
            )

    def _check_weights(self) -> None:
        """ValueError for a weight of a term that makes no sense."""
        if self.hard_weight is None and not 0 <= self.alpha <= 1:
            raise ValueError(
                f"distill.alpha={self.alpha}: must be from 0 to 1, as the hard term has 1 - alpha; another weight of that is "
                "distill.hard_weight=1, for example"
            )
        for name in ("alpha", "hard_weight", "dkd_target", "dkd_others"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MOST_WEIGHT:
                raise ValueError(f"distill.{name}={value}: must be from 0 to {MOST_WEIGHT}")
        if not 0 <= self.xerm_gamma <= MOST_GAMMA:
            raise ValueError(f"distill.xerm_gamma={self.xerm_gamma}: must be from 0 to {MOST_GAMMA}")

    def _check_experts(self) -> None:
        """ValueError for a margin, a switch or a weight of the diversity that makes no sense."""
        if not 0 <= self.margin <= MOST_MARGIN:
            raise ValueError(f"distill.margin={self.margin}: must be from 0 to {MOST_MARGIN}")
        for name, value in (("drw_from", self.drw_from), ("diversity_from", self.diversity_from)):
            if value is not None and value < 0:
                raise ValueError(f"distill.{name}={value}: must be at least 0, an epoch; null = never")
        if not -MOST_DIVERSITY <= self.diversity <= MOST_DIVERSITY:
            raise ValueError(f"distill.diversity={self.diversity}: must be from {-MOST_DIVERSITY} to {MOST_DIVERSITY}")
        if not 0 <= self.diversity_eta < 1:
            raise ValueError(f"distill.diversity_eta={self.diversity_eta}: must be at least 0 and less than 1")
        if not 0 < self.router_weight <= MOST_ROUTER_WEIGHT:
            raise ValueError(
                f"distill.router_weight={self.router_weight}: must be above 0, at most {MOST_ROUTER_WEIGHT:g}"
            )

    def _check_teacher(self) -> None:
        for name in ("teacher_classes", "teacher_mean", "teacher_std"):
            if getattr(self, name) is not None and self.teacher_arch is None:
                raise ValueError(
                    f"distill.{name}={getattr(self, name)}: goes with distill.teacher_arch, for a file of weights; a run "
                    "knows its own"
                )
        if self.teacher_arch is not None and (self.teacher is None or self.teacher_classes is None):
            raise ValueError(
                f"distill.teacher_arch={self.teacher_arch}: needs distill.teacher=FILE and distill.teacher_classes=FILE"
            )
        check_normalisation(self.teacher_mean, self.teacher_std, "distill.teacher_")
