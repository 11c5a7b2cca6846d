"""THE table of methods: what can be trained, by which loss, and what each needs. Their names are written nowhere else.

A method is one function here and one row of METHODS; losses.py has the formulas. The row determines the settings' choices and
their explanation, the script that trains it, what is refused with it, its words on a model card and its row in the bench.
Invariant: a loss depends on its arguments alone; what changes during training is a function of the step.
Shapes: B batch, C classes.
"""

from collections.abc import Callable
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
    "float32 [C]: log of the training images per class; zeros for a method without a prior"
    class_counts: Tensor
    "int64 [C]: training images per class, on the device as all tensors here"
    settings: "DistillConfig"
    "with the temperature resolved"
    step: int
    "the optimizer step, from 0"

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


class Method(NamedTuple):
    """One row of METHODS."""

    loss: Callable[[Outputs, Given], tuple[Tensor, Parts]]
    "(loss, its named parts) as scalars on the device"
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

    @property
    def script(self) -> str:
        """The entry script that trains it."""
        return "train/distill.py" if self.targets else "train/teacher.py"


def _ce(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    eps = given.settings.head_smoothing
    return losses.head_smoothed(outputs.logits, given.labels, given.class_counts, eps), {}


def _bsce(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    return losses.balanced_softmax(outputs.logits, given.labels, given.log_prior), {}


def _dive(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    s = given.settings
    return losses.dive(outputs.logits, given.labels, given.targets, given.log_prior, given.tau, s.p, s.alpha)


def _kd(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    return losses.kd(outputs.logits, given.labels, given.targets, given.tau, given.settings.alpha)


METHODS: dict[str, Method] = {
    "ce": Method(_ce, "cross-entropy", "cross-entropy", settings=("head_smoothing",)),
    "bsce": Method(_bsce, "balanced softmax", "balanced softmax", prior=True),
    "dive": Method(
        _dive,
        "bsce + KL to the teacher",
        "DiVE: balanced softmax and the divergence to a teacher's softened, flattened predictions",
        targets=True,
        prior=True,
        settings=("tau", "p", "alpha"),
    ),
    "kd": Method(
        _kd,
        "ce + KL to the teacher",
        "cross-entropy and the divergence to a teacher's softened predictions",
        targets=True,
        settings=("tau", "alpha"),
    ),
}

if TYPE_CHECKING:
    MethodName = str
else:  # the choices of the setting are the rows of the table
    MethodName = Literal[tuple(METHODS)]


def hard_part(name: str) -> str:
    """`name` if it has no soft targets, else its hard-label counterpart: the first method without them, with the same prior."""
    if not METHODS[name].targets:
        return name
    return next(other for other, row in METHODS.items() if not row.targets and row.prior == METHODS[name].prior)


def names_where(condition: Callable[[Method], bool]) -> str:
    """Names of the rows that fulfil `condition`, for a message: "ce or kd"."""
    return " or ".join(name for name, row in METHODS.items() if condition(row))


def _explained() -> str:
    return "; ".join(f"{name}: {row.short}" for name, row in METHODS.items())


LEAST_T, MOST_T = 0.01, 1000  # softmax is one-hot or uniform long before; beyond, tau**2 overflows


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
    "temperature of dive and kd (CIFAR-100-LT 3, ImageNet-LT 9, iNaturalist 2); null = chosen from the cache, for this p"
    p: float = 1.0
    "power of dive on the teacher's probabilities: teacher temperature tau / p; 1 = none"
    alpha: float = 0.5
    "weight of the soft term, 0..1; the hard term has 1 - alpha"
    head_smoothing: float = 0.0
    """of ce: label smoothing of the most frequent class alone (the first of equal ones), 0 up to but not 1; its samples have the
    target 1 - this on their label, and this / (classes - 1) on each other class"""

    def __post_init__(self) -> None:
        self._check_teacher()
        for name, value in (("tau", self.tau), ("p", self.p)):
            if value is not None and not LEAST_T <= value <= MOST_T:
                raise ValueError(f"distill.{name}={value}: must be above 0, in {LEAST_T}..{MOST_T}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha={self.alpha}: must be from 0 to 1")
        if not 0 <= self.head_smoothing < 1:
            raise ValueError(f"distill.head_smoothing={self.head_smoothing}: must be at least 0 and less than 1")
        method = METHODS[self.method]
        if "head_smoothing" not in method.settings and self.head_smoothing != 0:
            smoothing = names_where(lambda row: "head_smoothing" in row.settings)
            raise ValueError(
                f"distill.head_smoothing={self.head_smoothing}: {self.method} does not smooth labels; use "
                f"distill.method={smoothing}, or distill.head_smoothing=0"
            )
        if method.targets and "p" not in method.settings and self.p != 1:
            with_power = names_where(lambda row: "p" in row.settings)
            raise ValueError(
                f"distill.p={self.p}: {self.method} has no power; use distill.method={with_power}, or distill.p=1"
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
