"""The data of a run: opened splits, number of views, loaders with the configuration's normalisation and checks."""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.backends.choice import available_backends, resolve_backend
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.order import drawn
from pipelines.records.reader import Records
from train.config import Config
from train.schedule import begun_epochs
from train.watch.text import size_text


class Splits(NamedTuple):
    """Opened record files, which all have the same classes."""

    train: Records
    evaluation: dict[str, Records]
    "val and test, as far as the configuration names them"

    def all(self) -> dict[str, Records]:
        """{split: records}, `train` first."""
        return {"train": self.train, **self.evaluation}


def open_splits(config: Config) -> Splits:
    """Open data.train, data.val and data.test, and refuse different classes."""
    if config.data.train is None:
        raise UserError("data.train is not set; type data.train=FILE.beton (tools/convert.py makes it)")
    train = Records(config.data.train)
    named = {"val": config.data.val, "test": config.data.test}
    evaluation = {split: Records(path) for split, path in named.items() if path is not None}
    for split, records in evaluation.items():
        if records.class_names != train.class_names:
            raise UserError(
                f"data.{split}={records.path} has other classes than data.train={train.path} "
                f"({records.num_classes} and {train.num_classes}): convert both with the same --classes"
            )
        unseen = np.flatnonzero((records.class_counts > 0) & (train.class_counts == 0))
        if len(unseen):
            more = f" (and of {len(unseen) - 1} more)" if len(unseen) > 1 else ""
            raise UserError(
                f"data.{split}={records.path} has images of class {train.class_names[unseen[0]]}{more}, of which "
                f"data.train={train.path} has none, so no network can learn it (its prior is log 0): convert both again, "
                "with training images of every class or without these"
            )
    return Splits(train, evaluation)


class Overlap(NamedTuple):
    """Two splits that share most of the images of the first, or of the second."""

    split: str
    other: str
    share: float


def overlaps(splits: Splits) -> list[Overlap]:
    """Pairs of splits with (mostly) the same images, whatever their files and names: by the hashes of the original images.

    Published sets share some per cent of theirs, so that only more than half counts.
    """
    found = []
    for (split, one), (other, two) in itertools.combinations(reversed(splits.all().items()), 2):
        share = max(np.isin(a.sources, b.sources).mean() for a, b in ((one, two), (two, one)))
        if share > 0.5:
            found.append(Overlap(split, other, float(share)))
    return found


def epochs_of(config: Config, samples: int) -> int:
    """How many epochs of `samples` training images are begun; `TrainOrder` refuses a batch that is larger than an epoch."""
    batch = config.optim.batch
    return begun_epochs(config.schedule, max(1, samples // batch), batch)


def stored_digest(records: Records) -> str:
    """Hash of the stored bytes, by key; `Records.digest`, the hash of the originals, does not cover them."""
    order = np.argsort(records.keys)
    columns = (records.keys, records.stored_widths, records.stored_heights, records.crcs)
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(np.ascontiguousarray(column[order]).astype(np.int64).tobytes())
    return digest.hexdigest()


def views_of(config: Config, samples: int) -> int:
    """V: how many different views of each sample a training on `samples` images uses."""
    return config.data.views or epochs_of(config, samples)


def reuse_of_views(config: Config, class_counts: np.ndarray) -> str | None:
    """A line that says how often each view is used, in a sampling by class at most; None when none is used again."""
    samples = int(class_counts.sum())
    views, epochs = views_of(config, samples), epochs_of(config, samples)
    if config.data.sampling == "instance":
        if views >= epochs:
            return None
        times = f"{epochs // views}" if epochs % views == 0 else f"{epochs // views} or {epochs // views + 1}"
        return f"{views} views for {epochs} epochs: each is used {times} times"
    places = samples // config.optim.batch * config.optim.batch
    often = drawn(class_counts, config.data.sampling)
    most = epochs * places * np.max(often / np.maximum(class_counts, 1)) / often.sum()  # of an image
    if most <= views:
        return None
    return f"{views} views for {epochs} epochs: of an image of the rarest class each is used {most / views:.1f} times"


def make_loader(
    config: Config,
    records: Records,
    recipe: Recipe,
    backend: str,
    accelerator: Accelerator,
    finished: bool = True,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Loader:
    """A loader with the configuration's normalisation, workers and checks; without a finish: its images are the crops.

    batch: images of a batch on this process; UserError where these alone would not fit into the machine's memory. dtype: of the
    finished images.
    """
    data, device = config.data, accelerator.device
    _require_memory(recipe.size, min(batch, len(records)) * (1 if recipe.mix is None else 2))
    try:
        finish = Finish(data.mean, data.std, device, True, config.compile, dtype) if finished else None
        return Loader(
            records,
            recipe,
            seed=data.seed,
            backend=backend,
            finish=finish,
            device=device,
            workers=data.workers,
            verify=data.verify,
            hw_decoder_load=data.hw_decoder_load,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_memory(size: int, images: int) -> None:
    """UserError where the views of one batch, as bytes and as float32, are more than this machine holds."""
    needed, there = images * size * size * 3 * 5, psutil.virtual_memory().total
    if needed > there:
        raise UserError(
            f"data.recipe.size={size}: a batch of {images} such views takes {size_text(needed)}, this machine has "
            f"{size_text(there)} of memory; give a smaller size, or smaller batches"
        )


def evaluation_backend(trained: str, records: Records, recipe: Recipe, device: torch.device) -> str:
    """The backend of the training if it can serve the records, as it nearly always can; else what auto means."""
    able = trained in available_backends(records, recipe, device)
    return trained if able else resolve_backend("auto", records, recipe, device)
