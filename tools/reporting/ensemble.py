"""Several networks that answer together: the mean of their logits, and that of their probabilities.

Owns both means, which are those of `cache.average` at a temperature of 1. Invariant: each network counts once, and all have
answered the same images.
Shapes: n samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pipelines.errors import UserError
from tools.reporting.runs import Run
from tools.reporting.together import known_counts, same_images


def ensembles(runs: Sequence[Run]) -> list[Run]:
    """Two runs without a folder, of all of `runs` together: by the mean of their logits, and by that of their probabilities.

    The second has log(mean) as its logits [n, C], whose softmax is the mean. UserError for fewer than two runs, for one network
    twice, and where they have not answered the same images.
    """
    if len(runs) < 2:
        raise UserError(
            f"--ensemble needs two runs or more, and {runs[0].title} is the only one; name others beside it, or leave "
            "--ensemble out"
        )
    titles: dict[str, str] = {}
    for run in runs:
        if (other := titles.setdefault(run.predictions.weights, run.title)) != run.title and run.predictions.weights:
            raise UserError(
                f"{other} and {run.title} are the same network, which --ensemble counts once; leave one out"
            )
    first = runs[0].predictions
    by_logits = np.zeros_like(first.logits, np.float32)
    by_probabilities = np.full_like(by_logits, -np.inf)
    for run, rows in zip(runs, same_images(runs), strict=True):
        logits = run.predictions.logits[rows].astype(np.float32)
        by_logits += logits / len(runs)
        np.logaddexp(by_probabilities, torch.from_numpy(logits).log_softmax(dim=1).numpy(), out=by_probabilities)
    by_probabilities -= np.log(len(runs))
    order, methods = first.by_list, {run.predictions.method for run in runs}
    told = replace(
        first,
        **{name: getattr(first, name)[order] for name in ("keys", "labels", "positions", "names")},
        train_counts=known_counts(runs),
        method=first.method if len(methods) == 1 else "",
        weights="",
        features=None,
    )
    return [
        Run(title=f"all {len(runs)}, mean of {what}", predictions=replace(told, logits=logits))
        for what, logits in (("logits", by_logits), ("probabilities", by_probabilities))
    ]
