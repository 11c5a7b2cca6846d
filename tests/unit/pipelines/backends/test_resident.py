"""What is specific to the resident backend: all records checked before the first batch, one copy. Pixels: test_loader.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.backends.resident import ResidentBackend, resident_bytes
from pipelines.batch import Plan
from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

CPU = torch.device("cpu")
PAD = view_params(Recipe(crop="pad_crop", size=8, pad=2), 0)
N = 50


@pytest.fixture
def records(tmp_path: Path) -> Records:
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3)).astype(np.uint8)
    write_records(tmp_path / "raw.beton", [Sample(f"i{i}", 0, x) for i, x in enumerate(images)], ["a"], kind="test")
    return Records(tmp_path / "raw.beton")


def damage(records: Records, position: int) -> None:
    with open(records.path, "r+b") as file:
        file.seek(int(records.offsets[position]) + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("verify", ["first", "always"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_record_is_named_before_the_first_batch(records: Records, verify: str, workers: int) -> None:
    damage(records, 31)
    with pytest.raises(UserError, match=rf"record 31 \(key {records.keys[31]}, i31\) is damaged: CRC-32"):
        ResidentBackend(records, PAD, workers, verify, CPU)


def test_verify_off_uses_the_bytes_as_they_are(records: Records) -> None:
    damage(records, 31)
    ResidentBackend(records, PAD, 1, "off", CPU)


def test_the_file_is_not_needed_afterwards(records: Records) -> None:
    params = view_params(Recipe(crop="pad_crop", size=8, pad=0, flip=False), 0)
    backend = ResidentBackend(records, params, 1, "first", CPU)
    expected = np.stack([records.payload(i).reshape(8, 8, 3) for i in range(N)])
    damage(records, 3)
    plan = Plan(np.arange(N), np.zeros(N, np.int32))
    batches = [(plan, draw(params, records, plan))]
    [(pixels, *_)] = list(backend.crops(batches))
    np.testing.assert_array_equal(pixels.numpy(), expected)
    pixels.zero_()
    [(again, *_)] = list(backend.crops(batches))
    np.testing.assert_array_equal(again.numpy(), expected)


def test_memory_is_that_of_the_padded_images(records: Records) -> None:
    backend = ResidentBackend(records, PAD, 1, "first", CPU)
    assert resident_bytes(records, PAD) == N * 12 * 12 * 3 == backend._images.numel()
