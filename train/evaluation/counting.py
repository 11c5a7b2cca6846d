"""Exact evaluation: every sample of a split is counted once, whatever the number of processes and the batch size.

What the figures need of each sample stays on the device until it is gathered once at the end; metrics.py computes the figures.
Invariant: unless logits or features are kept, the host waits for the device only at the end.
Shapes: B batch, C classes, D features, n samples.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from models import outputs_of, set_training
from models.features import watched
from models.router import experts_of_routers, experts_told
from pipelines.device import Lead
from pipelines.loader import Loader
from pipelines.order import evaluation_shard
from train.evaluation.metrics import Answers, experts_used, figures
from train.finite import FiniteLogits
from train.run.stops import Stopped, Stops

NOT_FINITE = (
    "there is no accuracy to report; evaluate with precision=fp32, or an earlier checkpoint, or train it again with a lower "
    "optim.lr"
)


@dataclass(kw_only=True)
class EvalConfig:
    every_epochs: int = 10
    "epochs between two evaluations during training (on val if given, else test; nothing is selected by it); 0 = only at the end"
    every_steps: int = 0
    "optimizer steps between two evaluations during training, instead of epochs; 0 = use eval.every_epochs"
    batch: int = 256
    "images per evaluation batch, on each process"
    patience: int | None = None
    """early stopping: end the training after so many evaluations in a row without a higher score than the best before them, by
    what save.keep_best selects; null = train to the end of the schedule"""

    def __post_init__(self) -> None:
        for name, least in (("every_epochs", 0), ("every_steps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"eval.{name}={getattr(self, name)}: must be at least {least}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"eval.patience={self.patience}: must be at least 1, or null to train to the end")

    def period(self, steps_per_epoch: int) -> int:
        """Optimizer steps between two evaluations; 0 = only at the end."""
        return self.every_steps or self.every_epochs * steps_per_epoch


class Kept(NamedTuple):
    """keys int64 [n], labels int64 [n], logits [n, C] and, if asked for, features float32 [n, D], sorted by key.

    The logits are those of the figures, in float32.
    """

    keys: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    features: np.ndarray | None = None


class Evaluation(NamedTuple):
    """figures: for result.json, with those of the experts of a network with routers; kept: if asked for, on every process."""

    figures: dict[str, Any]
    kept: Kept | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    batch_size: int,
    train_counts: np.ndarray,
    accelerator: Accelerator,
    keep: Literal["nothing", "logits", "features"] = "nothing",
    stops: Stops | None = None,
    batches: int | None = None,
) -> Evaluation:
    """Evaluate by the plain argmax of raw logits on all records of the loader; groups by int64 train_counts [C].

    keep: what else to give back of each sample; features: those, and the logits. batches: at most so many, the first of each
    process.

    Raises Stopped, on all processes at the same batch, when `stops` reports a request; UserError, at the end, for logits that
    are not finite.
    """
    records = loader.records
    shard = evaluation_shard(len(records), accelerator.process_index, accelerator.num_processes)
    shard = shard if batches is None else shard[: batches * batch_size]
    device = accelerator.device
    largest = -(-len(records) // accelerator.num_processes)
    # A row for each sample: what `answers` gives, and of a network with routers the number of experts used.
    answered = torch.full((largest, len(Answers._fields) + 1), -1, dtype=torch.float64, device=device)
    done = 0
    kept: list[Kept] = []
    finite, lead = FiniteLogits(), Lead(device)
    # The bare network: the forward pass of DDP is a collective call, and the shards may differ by one batch.
    network = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1:
        for buffer in network.buffers():  # until here each process has its own batch-norm statistics of the last step
            torch.distributed.broadcast(buffer, 0)
    was_training = network.training
    network.eval()
    # Short batches are filled up, which for a small file must not cost what a large eval.batch would; the same on all processes.
    batch_size = min(batch_size, max(largest, EvalConfig().batch))
    loaded = loader.batches(shard, np.zeros(len(shard), np.int32), batch_size)
    looking_on = ExitStack()
    try:
        looking_on.enter_context(experts_told(network))
        seen = looking_on.enter_context(watched(network)) if keep == "features" else []
        for _ in range(-(-largest // batch_size)):  # equally often on all processes; some may lack a batch
            if stops and (reason := stops.agreed()):
                raise Stopped(reason)
            batch = next(loaded, None)
            if batch is None:
                continue
            logits, used = forward(network, batch.images, batch_size)
            finite.see(logits, batch.keys)
            answered[done : done + len(logits), :-1] = answers(logits, batch.labels)
            if used is not None:
                answered[done : done + len(logits), -1] = used
            done += len(logits)
            lead.step()
            if keep != "nothing":
                features = seen[0][: len(logits)].cpu().numpy() if seen else None
                kept.append(Kept(batch.keys, batch.labels.cpu().numpy(), logits.cpu().numpy(), features))
    finally:
        looking_on.close()
        loaded.close()
        if was_training:
            set_training(network)
    finite.require(records, "the network", NOT_FINITE, accelerator)
    rows: Any = accelerator.gather(answered)
    samples = columns(rows[:, :-1])
    found: dict[str, Any] = {**figures(samples, train_counts)}
    if (experts := experts_of_routers(network)) is not None:
        used_n = rows[rows[:, 0] >= 0, -1].cpu().numpy().astype(np.int64)
        found |= experts_used(samples.labels, used_n, train_counts, experts)
    return Evaluation(found, None if keep == "nothing" else _gather(kept, records.num_classes))


def answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The fields of metrics.Answers, float64 [B, 4], of logits [B, C] and labels int64 [B]: pure, without waiting for the device.

    Of equal logits the first class comes first, as for argmax.
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ranks = ((logits > own) | ((logits == own) & before)).sum(dim=1)
    log_probabilities = logits.double().log_softmax(dim=1)
    nll = 0.0 - log_probabilities.gather(1, labels[:, None])[:, 0]  # not minus zero
    return torch.stack([labels.double(), ranks.double(), nll, log_probabilities.amax(dim=1).exp()], dim=1)


def columns(rows: torch.Tensor) -> Answers:
    """float64 [n or more, 4] as columns, without the rows that a process did not fill."""
    labels, ranks, nll, confidence = rows[rows[:, 0] >= 0].T.cpu().numpy()
    return Answers(labels.astype(np.int64), ranks.astype(np.int64), nll, confidence)


def forward(network: nn.Module, images: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(float32 logits, experts used); a short last batch is padded, so that a compiled model sees only one shape."""
    count, missing = len(images), batch_size - len(images)
    if missing:
        images = torch.cat([images, images[:1].expand(missing, -1, -1, -1)])
    outputs = outputs_of(network(images))
    return outputs.logits[:count].float(), None if outputs.used is None else outputs.used[:count]


def _gather(kept: list[Kept], classes: int) -> Kept:
    """What all processes have kept, sorted by key; some may have kept nothing."""
    empty = Kept(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, classes), np.float32))
    batches: list[Any] = gather_object(kept) or [empty]
    keys, labels, logits = (np.concatenate(column) for column in list(zip(*batches, strict=True))[:3])
    order = np.argsort(keys)
    features = None if batches[0].features is None else np.concatenate([batch.features for batch in batches])[order]
    return Kept(keys[order], labels[order], logits[order], features)
