"""A micro-batch is the same rows of every field, without a copy."""

import numpy as np
import torch

from pipelines.batch import Batch, Holes, Mix


def test_rows_of_every_field_belong_together() -> None:
    n = 7
    number = torch.arange(n)
    batch = Batch(
        images=number.float().view(n, 1, 1, 1).expand(n, 3, 2, 2),
        labels=number,
        keys=np.arange(n),
        views=np.arange(n, dtype=np.int32),
        pixels=number.to(torch.uint8).view(n, 1, 1, 1).expand(n, 2, 2, 3),
        altered=number.to(torch.uint8).view(n, 1, 1, 1).expand(n, 2, 2, 3),
        holes=Holes(number.view(n, 1, 1).expand(n, 1, 4), 128),
        mix=Mix(number.float(), number.view(n, 1).expand(n, 4)),
    )
    batch = batch._replace(partners=batch)
    seen = []
    for start, stop in ((0, 3), (3, 6), (6, 9)):
        part = batch.rows(start, stop)
        rows = list(range(start, min(stop, n)))
        seen += rows
        assert part.images[:, 0, 0, 0].tolist() == part.pixels[:, 0, 0, 0].tolist() == rows
        assert part.altered is not None and part.altered[:, 0, 0, 0].tolist() == rows
        assert part.holes and part.holes.boxes[:, 0, 0].tolist() == rows and part.holes.level == 128
        assert part.mix and part.mix.ratios.tolist() == rows
        assert part.mix.boxes is not None and part.mix.boxes[:, 0].tolist() == rows
        assert part.labels.tolist() == part.keys.tolist() == part.views.tolist() == rows
        assert part.partners and part.partners.labels.tolist() == part.partners.keys.tolist() == rows
        assert part.labels.data_ptr() == number[start:].data_ptr() and np.shares_memory(part.keys, batch.keys)
    assert seen == list(range(n))
    weighted = batch._replace(mix=Mix(number.float(), None)).rows(1, 3).mix
    assert weighted and weighted.ratios.tolist() == [1, 2] and weighted.boxes is None
