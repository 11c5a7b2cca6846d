"""ViewDataset: the views of a Loader, item by item and from worker processes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import write_jpegs
from torch.utils.data import DataLoader

from pipelines.augment import Finish, Recipe
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.records import Records, Sample, write_records
from pipelines.views import ViewDataset

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
RECIPE = Recipe(crop="random_resized_crop", size=24, jitter=[0.4, 0.4, 0.4], rotation=15, cutout=6)
N, SEED, VIEW = 9, 5, 3


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("views")
    names = [f"{i}.jpg" for i in range(N)]
    write_jpegs(folder, names)
    write_records(folder / "a.beton", [Sample(n, i % 2, folder / n) for i, n in enumerate(names)], ["a", "b"], kind="t")
    return Records(folder / "a.beton")


def expected(records: Records, finished: bool = True) -> torch.Tensor:
    finish = Finish(MEAN, STD, torch.device("cpu"), channels_last=True) if finished else None
    loader = Loader(records, RECIPE, seed=SEED, backend="reference", finish=finish, device=torch.device("cpu"))
    (batch,) = loader.batches(np.arange(N), np.full(N, VIEW, np.int32), N)
    return batch.images


def dataset(records: Records) -> ViewDataset:
    return ViewDataset(records, RECIPE, seed=SEED, view=VIEW, mean=MEAN, std=STD)


def test_items_are_the_views_of_a_loader(records: Records) -> None:
    own, images = dataset(records), expected(records)
    assert len(own) == N
    for i in (0, 4, -1):
        item = own[i]
        assert torch.equal(item.image, images[i]) and item[1:] == (records.labels[i], records.keys[i], VIEW)
    with pytest.raises(IndexError, match="there are 9 images"):
        own[N]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_same(records: Records, workers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset(records), batch_size=4, shuffle=True, num_workers=workers, generator=generator)
    places = {int(key): i for i, key in enumerate(records.keys)}
    images, seen = expected(records), []
    for some, labels, keys, views in loader:
        rows = [places[int(key)] for key in keys]
        seen += rows
        assert torch.equal(some, images[rows]) and labels.tolist() == records.labels[rows].tolist()
        assert views.tolist() == [VIEW] * len(rows)
    assert sorted(seen) == list(range(N)) != seen


def test_without_normalisation_the_items_are_the_crops(records: Records) -> None:
    own = ViewDataset(records, RECIPE, seed=SEED, view=VIEW)
    assert own[2].image.dtype == torch.uint8 and torch.equal(own[2].image, expected(records, False)[2])


def test_it_can_be_sent_to_another_process(records: Records) -> None:
    again = pickle.loads(pickle.dumps(dataset(records)))
    assert torch.equal(again[3].image, dataset(records)[3].image)


def test_what_makes_no_sense_is_refused_at_once(records: Records, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mean and std go together"):
        ViewDataset(records, RECIPE, seed=0, view=0, mean=MEAN)
    with pytest.raises(ValueError, match="view -1: views are counted from 0"):
        ViewDataset(records, RECIPE, seed=0, view=-1)
    with pytest.raises(TypeError, match=r"records is a str: give pipelines\.records\.Records\(FILE\)"):
        ViewDataset("a.beton", RECIPE, seed=0, view=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="pad_crop needs 24x24 images"):
        ViewDataset(records, Recipe(crop="pad_crop", size=24), seed=0, view=0)


def test_mixtures_are_refused(records: Records) -> None:
    """The cached targets of a recipe that mixes belong to two images."""
    mixed = Recipe(crop="random_resized_crop", size=24, mix="mixup")
    with pytest.raises(ValueError, match="recipe.mix=mixup: a view is one image"):
        ViewDataset(records, mixed, seed=SEED, view=VIEW)
    assert len(ViewDataset(records, mixed.unmixed(), seed=SEED, view=VIEW)) == N
