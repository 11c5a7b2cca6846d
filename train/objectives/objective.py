"""What a step minimises: a loss of hard labels, and of soft targets from any source.

The objective owns the source of targets, the class counts and the prior, so that the training loop knows none of them. It returns
the loss and its named parts; methods.py says which loss that is.
"""

import torch
from accelerate import Accelerator

from models import Outputs
from pipelines.batch import Batch
from pipelines.loader import Loader
from train.finite import FiniteLogits
from train.objectives.losses import Parts, log_prior
from train.objectives.methods import METHODS, DistillConfig, Given
from train.objectives.targets import CachedTargets, Targets


class Objective:
    """Loss of one batch. targets: None for a method without.

    class_counts: int64 [C], training images per class, on the device. UserError for a 0 where the method takes their logarithm.
    """

    def __init__(self, config: DistillConfig, class_counts: torch.Tensor, targets: Targets | None):
        self._method = METHODS[config.method]
        if self._method.targets != (targets is not None):
            raise ValueError(f"distill.method={config.method} and targets={targets} do not fit")
        if "tau" in self._method.settings and config.tau is None:
            raise ValueError(f"distill.tau: {config.method} needs a temperature, for example distill.tau=3")
        self._config = config
        self._class_counts = class_counts
        prior = log_prior(class_counts.cpu().numpy()) if self._method.prior else torch.zeros(len(class_counts))
        self._log_prior = prior.to(class_counts.device)
        self._targets = targets
        self._finite = FiniteLogits()

    def resident(self) -> "Objective":
        """An objective with the same work on the device and no reads from disk: flat targets replace those of a cache."""
        if not isinstance(self._targets, CachedTargets):
            return self
        flat = self._log_prior.new_zeros(len(self._log_prior))
        return Objective(self._config, self._class_counts, lambda batch: flat.expand(len(batch.labels), -1))

    def __call__(self, outputs: Outputs, batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        """(loss, its named parts) as scalars on the device, of the student's outputs in optimizer step `step`, from 0."""
        soft = self._targets(batch) if self._targets else None
        if soft is not None:
            self._finite.see(soft, batch.keys)
        given = Given(batch.labels, soft, self._log_prior, self._class_counts, self._config, step)
        return self._method.loss(outputs, given)

    def require_finite(self, loader: Loader, accelerator: Accelerator) -> None:
        """UserError, on every process, if the soft targets of any step since the last call were not finite."""
        if self._targets is None:
            return
        self._finite.require(
            loader.records,
            "the source of soft targets",
            "the student's learning rate is not to blame; check the teacher (distill.teacher, or that of the cache), or use "
            "precision=fp32",
            accelerator,
        )
