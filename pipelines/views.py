"""Views of records for torch's DataLoader: a training loop of one's own on the very views that a cache holds.

Owns the map-style dataset; loader.py makes the views. Invariant: item i is the view that a `Loader` gives of the same record
under the same view number, whatever process makes it.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.batch import Plan
from pipelines.loader import Loader
from pipelines.records.reader import Records


class ViewItem(NamedTuple):
    """One view of one image; a DataLoader stacks the fields of a batch."""

    image: torch.Tensor
    "float32 [3, S, S], finished; or uint8 [S, S, 3], the crop, where the dataset has no mean and std"
    label: int
    key: int
    view: int


class ViewDataset(Dataset[ViewItem]):
    """View number `view` of every image of the records, in file order; an epoch is one such dataset, usually of view epoch mod V.

    recipe, seed: as of the cache whose targets are used (data.recipe, data.seed). mean, std: of the pixels, 0..1; None = the
    items are the crops, for `cache.check_pixels`. backend: reference, or ffcv, which is faster and must not be forked
    (multiprocessing_context="spawn").
    """

    def __init__(
        self,
        records: Records,
        recipe: Recipe,
        *,
        seed: int,
        view: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        backend: str = "reference",
    ) -> None:
        if not isinstance(records, Records):
            raise TypeError(f"records is a {type(records).__name__}: give pipelines.records.Records(FILE)")
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together")
        if recipe.mix is not None:  # an item would be one image of the two, and a cache's target that of the mixture
            raise ValueError(
                f"recipe.mix={recipe.mix}: a view is one image; give recipe.unmixed(), and mix batches yourself"
            )
        if view < 0:
            raise ValueError(f"view {view}: views are counted from 0")
        self._records, self._view = records, view
        self._given: dict[str, Any] = {"recipe": recipe, "seed": seed, "mean": mean, "std": std, "backend": backend}
        self._made: tuple[int, Loader] | None = None
        self._loader()  # an image that the recipe cannot cut is refused here

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ViewItem:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ViewItem]:
        """What a DataLoader asks for: all items of a batch, which are made together."""
        positions = np.asarray(indices, np.int64)
        if len(positions) and not -len(self) <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"there are {len(self)} images")
        positions = positions % len(self)
        batch = self._loader().load(Plan(positions, np.full(len(positions), self._view, np.int32)))
        labels, keys = self._records.labels[positions].tolist(), batch.keys.tolist()
        rows = zip(batch.images, labels, keys, strict=True)
        return [ViewItem(image, label, key, self._view) for image, label, key in rows]

    def _loader(self) -> Loader:
        """Of this process: a fork must not use the threads and decoders of its parent."""
        if self._made is None or self._made[0] != os.getpid():
            given, device = self._given, torch.device("cpu")
            finish = None if given["mean"] is None else Finish(given["mean"], given["std"], device, channels_last=False)
            loader = Loader(
                self._records,
                given["recipe"],
                seed=given["seed"],
                backend=given["backend"],
                finish=finish,
                device=device,
                workers=1,
            )
            self._made = os.getpid(), loader
        return self._made[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickling sends the path of the records: another process makes its own memory map."""
        return _reopened, (self._records.path.absolute(), self._view, self._given)


def _reopened(path: Any, view: int, given: dict[str, Any]) -> ViewDataset:
    recipe, rest = given["recipe"], {name: value for name, value in given.items() if name != "recipe"}
    return ViewDataset(Records(path), recipe, view=view, **rest)
