"""What a step minimises: hard labels, and soft targets from wherever they come.

The objective owns the source of targets and the class prior, so that the training loop knows neither. It returns the loss
and its named parts; formulas live in losses.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.augment.finish import check_normalisation
from pipelines.batch import Batch
from train.objectives import losses
from train.objectives.targets import CachedTargets, Targets

DISTILLING = ("dive", "kd")  # need soft targets
PRIOR = ("bsce", "dive")  # correct the hard term by the class counts


@dataclass(kw_only=True)
class DistillConfig:
    method: Literal["ce", "bsce", "dive", "kd"] = "dive"
    "ce: cross-entropy; bsce: balanced softmax; dive: bsce + KL to the teacher; kd: ce + KL to the teacher"
    teacher: str | None = None
    """the finished teacher: its run (name or folder), a folder with model.safetensors and model.json, or, with the keys below, a
    file of weights (.safetensors, .pth); optional beside a cache"""
    teacher_arch: str | None = None
    "network of a teacher that is a file of weights, named as in model.name: resnext50_32x4d, timm/NAME; null = it is a run"
    teacher_classes: str | None = None
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

    def __post_init__(self) -> None:
        self._check_teacher()
        if self.tau is not None and self.tau <= 0:
            raise ValueError(f"distill.tau={self.tau}: must be above 0")
        if self.p <= 0:
            raise ValueError(f"distill.p={self.p}: must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha={self.alpha}: must be from 0 to 1")
        if self.method == "kd" and self.p != 1:
            raise ValueError(f"distill.p={self.p}: kd has no power; use distill.method=dive, or distill.p=1")

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


class Objective:
    """Loss of one batch. log_prior: float32 [C], log of the training images per class; targets: None for ce and bsce."""

    def __init__(self, config: DistillConfig, log_prior: torch.Tensor, targets: Targets | None):
        if (config.method in DISTILLING) != (targets is not None):
            raise ValueError(f"distill.method={config.method} and targets={targets} do not fit")
        if config.method in DISTILLING and config.tau is None:
            raise ValueError(f"distill.tau: {config.method} needs a temperature, for example distill.tau=3")
        self._config = config
        self._log_prior = log_prior
        self._targets = targets

    def resident(self) -> "Objective":
        """The same work on the device, with nothing that comes from the disk: a cache's targets are replaced by flat ones."""
        if not isinstance(self._targets, CachedTargets):
            return self
        flat = self._log_prior.new_zeros(len(self._log_prior))
        return Objective(self._config, self._log_prior, lambda batch: flat.expand(len(batch.labels), -1))

    def __call__(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, its named parts) as scalars on the device, from student logits [B, C]."""
        c = self._config
        if self._targets is None:
            if c.method == "ce":
                loss = losses.cross_entropy(logits, batch.labels)
            else:
                loss = losses.balanced_softmax(logits, batch.labels, self._log_prior)
            return loss, {}
        soft = self._targets(batch)
        assert c.tau is not None
        if c.method == "kd":
            return losses.kd(logits, batch.labels, soft, c.tau, c.alpha)
        return losses.dive(logits, batch.labels, soft, self._log_prior, c.tau, c.p, c.alpha)
