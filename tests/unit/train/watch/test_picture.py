"""The picture of the first batch: right pixels and captions for all images and names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.augment.finish import Finish
from pipelines.batch import Batch, Mix
from pipelines.loader import DataConfig
from train.watch.picture import MOST, save_picture, shown_pixels

DATA = DataConfig(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
CLASSES = ["ant", "a name far too long to fit below its picture, as taxonomists like them", "Käfer", "蜂"]


def batch(count: int, size: int) -> Batch:
    """Random crops, normalised as the loader does it."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), np.uint8))
    images = Finish(DATA.mean, DATA.std, torch.device("cpu"), channels_last=True)(pixels)
    keys = rng.integers(0, 2**63, count)
    return Batch(images, torch.arange(count) % len(CLASSES), keys, np.arange(count, dtype=np.int32), pixels)


def test_pixels_are_computed_back_from_the_networks_input() -> None:
    given = batch(8, 16)
    assert np.array_equal(shown_pixels(given.images, DATA.mean, DATA.std), given.pixels.numpy())
    far = shown_pixels(
        torch.full((1, 3, 2, 2), 100.0), DATA.mean, DATA.std
    )  # brighter than white: not from jitter, but from bf16
    assert (far == 255).all()


@pytest.mark.parametrize(("count", "size", "times"), [(5, 32, 4), (20, 100, 1), (MOST + 3, 16, 8)])
def test_every_image_is_in_the_picture_with_its_caption(tmp_path: Path, count: int, size: int, times: int) -> None:
    given = batch(count, size)
    shown = min(count, MOST)
    said = save_picture(tmp_path, given, DATA, CLASSES)
    assert str(tmp_path / "first_batch.png") in said and str(shown) in said
    assert [path.name for path in tmp_path.iterdir()] == ["first_batch.png"]
    picture = Image.open(tmp_path / "first_batch.png")
    assert json.loads(picture.text["images"]) == [  # type: ignore[attr-defined]
        {"class": CLASSES[i % 4], "key": int(given.keys[i]), "view": i} for i in range(shown)
    ]
    sheet = np.asarray(picture)
    columns, rows = min(8, shown), -(-shown // 8)
    width, height = (sheet.shape[1] - 4) // columns, (sheet.shape[0] - 4) // rows
    for i in range(shown):
        left, top = 4 + i % 8 * width, 4 + i // 8 * height
        tile = sheet[top : top + size * times : times, left : left + size * times : times]
        assert np.array_equal(tile, given.pixels[i].numpy())
        captions = sheet[top + size * times : top + height, left : left + width]
        lines = np.array_split(captions[: 3 * 14], 3)
        assert all((line < 128).any() for line in lines)  # something is written in each
        assert (captions[:, -2:] > 200).all(), i  # and ends before the next image


def test_a_mixture_is_captioned_with_both_classes(tmp_path: Path) -> None:
    given = batch(3, 16)
    partners = given._replace(labels=torch.tensor([2, 3, 0]))
    save_picture(
        tmp_path, given._replace(partners=partners, mix=Mix(torch.tensor([0.7, 1.0, 0.0]), None)), DATA, CLASSES
    )
    said = json.loads(Image.open(tmp_path / "first_batch.png").text["images"])  # type: ignore[attr-defined]
    assert [one["class"] for one in said] == [f"ant 70%, {CLASSES[2]}", CLASSES[1], f"{CLASSES[2]} 0%, ant"]


def test_the_keys_can_be_read(tmp_path: Path) -> None:
    """Another last digit of a key changes the picture: nothing is cut off."""
    given = batch(1, 16)
    pictures = []
    for key in (2**63 - 1, 2**63 - 8):
        save_picture(tmp_path, given._replace(keys=np.array([key])), DATA, CLASSES)
        pictures.append(np.asarray(Image.open(tmp_path / "first_batch.png")))
    assert (pictures[0] != pictures[1]).any()
