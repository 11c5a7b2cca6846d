"""What a step minimises: a loss of hard labels, and of soft targets from any source.

The objective owns the source of targets, the class counts and what is computed from them, and the switches of a training, so that
the training loop knows none of them. It returns the loss and its named parts; methods.py says which loss that is. Invariant: it
holds no state of the training: switches are functions of the step.
"""

import copy

import numpy as np
import torch
from accelerate import Accelerator

from models import Outputs
from pipelines.batch import Batch
from pipelines.loader import Loader
from train.finite import FiniteLogits
from train.networks.layout import compiled
from train.objectives import experts, reweighting
from train.objectives.losses import Parts, log_prior, mixed_targets
from train.objectives.methods import METHODS, DistillConfig, Given, experts_of, hard_part, settings_of
from train.objectives.targets import CachedTargets, Targets


class Objective:
    """Loss of one batch. targets: None for a method without.

    class_counts: int64 [C], training images per class, on the device. UserError for a 0 where the method takes their logarithm,
    or a power of them. scale: by which the network's head multiplies its cosines; 1 for a linear head. steps_per_epoch: of the
    optimizer; None is enough where nothing is switched on during the training. compile_mode: of torch.compile, which makes a few
    launches of the loss; None: it is computed as it is written. drawn: [C], in proportion to which the sampling draws the
    classes, whose logarithm is the prior of balanced softmax; None: as class_counts.
    """

    def __init__(
        self,
        config: DistillConfig,
        class_counts: torch.Tensor,
        targets: Targets | None,
        scale: float = 1.0,
        steps_per_epoch: int | None = None,
        compile_mode: str | None = None,
        drawn: np.ndarray | None = None,
    ):
        self._method = METHODS[config.method]
        if self._method.targets != (targets is not None):
            raise ValueError(f"distill.method={config.method} and targets={targets} do not fit")
        if "tau" in self._method.settings and config.tau is None:
            raise ValueError(f"distill.tau: {config.method} needs a temperature, for example distill.tau=3")
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._class_counts = class_counts
        counts, device, reads = class_counts.cpu().numpy(), class_counts.device, settings_of(config)
        often = counts if drawn is None else drawn
        prior = log_prior(often) if METHODS[hard_part(config)].prior else torch.zeros(len(counts))
        self._log_prior = prior.to(device)
        self._margins = self._class_weights = self._target_weights = self._temperatures = None
        if "margin" in reads:
            self._margins = (scale * reweighting.margins(counts, config.margin)).to(device)
        if "drw_from" in reads and config.drw_from is not None:
            self._class_weights = reweighting.class_weights(counts, config.drw_beta).to(device)
        if "bkd_beta" in reads:
            self._target_weights = reweighting.class_weights(counts, config.bkd_beta).to(device)
        if config.diversity and config.diversity_from is not None:
            temperatures = reweighting.diversity_temperatures(counts, config.diversity_eta)
            self._temperatures, self._mean_temperature = temperatures.to(device), float(temperatures.mean())
        if steps_per_epoch is None and not (self._class_weights is None and self._temperatures is None):
            raise ValueError("distill.drw_from and distill.diversity_from need the number of steps of an epoch")
        self._targets = targets
        self._finite = FiniteLogits()
        self._loss = compiled(self._loss_of, compile_mode)

    def resident(self) -> "Objective":
        """An objective with the same work on the device and no reads from disk: flat targets replace those of a cache."""
        if not isinstance(self._targets, CachedTargets):
            return self
        classes, twin = len(self._log_prior), copy.copy(self)  # the same compiled loss
        twin._targets = lambda batch: self._log_prior.new_zeros(len(batch.labels), classes)
        twin._finite = FiniteLogits()
        return twin

    def __call__(self, outputs: Outputs, batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        """(loss, its named parts) as scalars on the device, of the student's outputs in optimizer step `step`, from 0."""
        return self.loss(outputs, self.given(batch, step))

    def given(self, batch: Batch, step: int) -> Given:
        """What the loss needs beside the student's outputs: targets, read or asked for, and what is switched on in this step."""
        soft = self._soft(batch) if self._targets else None
        weights = self._class_weights if self._begun(self._config.drw_from, step) else None
        return Given(
            batch.labels,
            soft,
            self._log_prior,
            self._class_counts,
            self._config,
            step,
            self._margins,
            weights,
            self._target_weights,
            self._mixture(batch),
            by_temperatures=self._begun(self._config.diversity_from, step),
        )

    def loss(self, outputs: Outputs, given: Given) -> tuple[torch.Tensor, Parts]:
        """(loss, its named parts) of the student's outputs; what it does depends on its arguments alone."""
        return self._loss(outputs, given)

    def _soft(self, batch: Batch) -> torch.Tensor:
        """Raw logits of the teacher for the images of a batch, or, of mixtures, mixed from those for their parts."""
        assert self._targets is not None
        if batch.mix is None or batch.partners is None or self._config.mixed_targets == "image":
            soft = self._targets(batch)
            self._finite.see(soft, batch.keys)
            return soft
        answers = []
        for part in (batch._replace(mix=None, partners=None), batch.partners):
            answers.append(self._targets(part))
            self._finite.see(answers[-1], part.keys)
        assert self._config.tau is not None
        return mixed_targets(answers[0], answers[1], batch.mix.ratios, self._config.tau / self._config.p)

    def _mixture(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The second labels of the images of a batch and the shares of the first; None where nothing is mixed."""
        if batch.mix is None or batch.partners is None:
            return None
        if not self._method.two_labels:  # config.py refuses it
            raise ValueError(f"distill.method={self._config.method} takes one label for an image, not two")
        return batch.partners.labels, batch.mix.ratios

    def _begun(self, epoch: int | None, step: int) -> bool:
        """Whether the epoch from which on something is switched on has begun; None: it is never."""
        return epoch is not None and self._steps_per_epoch is not None and step >= epoch * self._steps_per_epoch

    def _loss_of(self, outputs: Outputs, given: Given) -> tuple[torch.Tensor, Parts]:
        """The method's loss, and diversity * Tbar^2 * KL(mean || expert), summed over the experts, where there is a diversity.

        It is that of the logits which the loss on labels puts into its softmax, with balanced softmax s + log n: the divergence
        of s alone could grow by the prior, of which the loss takes little notice. given.by_temperatures: whether each class has
        its temperature there, of which Tbar is the mean; else 1. What may be compiled is here, so that what looks at the number
        of the step, which differs at every call, is not.
        """
        loss, parts = self._method.loss(outputs, given)
        config = self._config
        if not config.diversity:
            return loss, parts
        if outputs.experts is None:
            raise ValueError(f"distill.diversity={config.diversity}: the network has no experts")
        temperatures, mean_temperature = None, 1.0
        if self._temperatures is not None and given.by_temperatures:
            temperatures, mean_temperature = self._temperatures, self._mean_temperature
        each, mean = outputs.experts + given.log_prior, outputs.logits + given.log_prior
        apart, count = experts.divergence(each, mean, temperatures), experts_of(outputs)
        parts = parts or {"hard": loss.detach() / count}
        total = loss + config.diversity * mean_temperature**2 * apart
        return total, parts | {"diversity": apart.detach() / count}

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
