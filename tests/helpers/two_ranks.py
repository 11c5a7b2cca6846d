"""Twenty training steps on each rank of an experiment, batch norm in eval mode: tests/runs/test_distributed.py launches it.

    python -m torch.distributed.run --nproc_per_node 2 tests/helpers/two_ranks.py OUT.npz CONFIG [a.b=c ...]

Rank 0 writes the keys and views of every global batch, the gradients as every rank sees them, and what the evaluations before
and after them give: figures as JSON, and OUT.predictions.npz with features.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from models import outputs_of
from train.assembly import assemble
from train.config import Config
from train.evaluation.counting import evaluate
from train.evaluation.predictions import describe
from train.experiment import evaluations
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.settings import parse_args

STEPS = 20


def main(argv: list[str]) -> None:
    config, _ = parse_args(argv[1:], "", Config)
    assembled = assemble(config, Path("runs/none"), make_accelerator(config))
    training = assembled.training
    loader, _ = assembled.evaluation["test"]
    counts = assembled.splits.train.class_counts
    first = evaluate(training.model, loader, config.eval.batch, counts, training.accelerator, keep="features")
    accelerator, model = training.accelerator, training.model.train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    parts = config.optim.accumulate
    rows = config.optim.batch // accelerator.num_processes // parts
    batches = training.loader.stream(training.order.plan(0, STEPS))
    keys, views, gradients = [], [], []
    for batch in batches:
        for part in range(parts):
            micro = batch.rows(part * rows, (part + 1) * rows)
            loss, _ = training.objective(outputs_of(model(micro.images)), micro, len(keys))
            accelerator.backward(loss / parts)
        own = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        gradients.append(own.numpy().copy())
        keys.append(gather_object(batch.keys.tolist()))
        views.append(gather_object(batch.views.tolist()))
        training.optimizer.step()
        training.optimizer.zero_grad()
    samples = evaluations(assembled, "test")["test"]["samples"]
    if accelerator.is_main_process:
        assert first.kept is not None
        described = describe(first.kept, loader.records, counts, config.distill.method, "")
        described.save(Path(argv[0]).with_suffix(".predictions.npz"))
        figures = json.dumps(first.figures)
        np.savez(argv[0], keys=keys, views=views, gradients=gradients, samples=samples, figures=figures)


if __name__ == "__main__":
    sys.exit(guard(main))
