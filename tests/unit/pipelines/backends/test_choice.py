"""Which backend serves which records where, and what a cache's identity says about the pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.augment import view_params
from pipelines.augment.recipe import Recipe
from pipelines.backends import PixelSource, choice
from pipelines.backends.choice import available_backends, refusal, resolve_backend
from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CIFAR, IMAGENET = Recipe(crop="pad_crop", size=32), Recipe(size=32)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("raw") / "raw.beton"
    write_records(path, [Sample(str(i), 0, np.full((32, 32, 3), i, np.uint8)) for i in range(4)], ["a"], kind="test")
    return Records(path)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("jpeg")
    Image.new("RGB", (40, 30), (200, 10, 90)).save(folder / "a.jpg")
    write_records(folder / "jpeg.beton", [Sample("a", 0, folder / "a.jpg")], ["a"], kind="test")
    return Records(folder / "jpeg.beton")


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with FFCV, DALI and a GPU of 80 GB beside the CPU: only the presence of the packages is faked."""
    monkeypatch.setattr(choice, "library_path", lambda: Path("libffcv.so"))
    monkeypatch.setattr(choice, "_dali_installed", lambda: True)
    monkeypatch.setattr(choice, "_device_bytes", lambda device: 80 * 10**9)


@pytest.mark.usefixtures("everything")
def test_auto_is_a_rule(raw: Records, jpeg: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    def auto(records: Records, recipe: Recipe, device: torch.device, cached: str | None = None) -> str:
        return resolve_backend("auto", records, recipe, device, cached and PixelSource.parse(cached))

    assert auto(raw, CIFAR, CUDA) == "resident" and auto(raw, CIFAR, CPU) == "ffcv"
    assert auto(raw, IMAGENET, CUDA) == "ffcv", "random_resized_crop resizes"
    assert auto(raw, CIFAR.evaluation(), CUDA) == "resident" and auto(raw, IMAGENET.evaluation(), CUDA) == "ffcv"
    assert auto(jpeg, IMAGENET, CUDA) == "dali" and auto(jpeg, IMAGENET, CPU) == "ffcv"
    assert auto(jpeg, IMAGENET, CPU, "reference") == auto(jpeg, IMAGENET, CUDA, "reference") == "reference"
    assert auto(jpeg, IMAGENET, CPU, "dali mixed 2.4.0") == "dali"
    assert auto(raw, CIFAR, CUDA, "raw") == "resident", "every backend shows raw records alike"
    monkeypatch.setattr(choice, "_device_bytes", lambda device: 4 * 40 * 40 * 3 * 4 - 1)
    assert auto(raw, CIFAR, CUDA) == "ffcv", "it does not fit a quarter of the memory"
    monkeypatch.setattr(choice, "library_path", lambda: None)
    assert auto(raw, CIFAR, CPU) == auto(jpeg, IMAGENET, CPU) == "reference"
    assert auto(jpeg, IMAGENET, CUDA) == "dali"
    monkeypatch.setattr(choice, "_dali_installed", lambda: False)
    assert auto(jpeg, IMAGENET, CUDA) == "reference"


@pytest.mark.usefixtures("everything")
def test_a_setting_is_obeyed_or_refused_with_what_would_do(
    raw: Records, jpeg: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_backends(raw, CIFAR, CPU) == ["ffcv", "resident", "reference"]
    assert available_backends(jpeg, IMAGENET, CUDA) == ["dali", "ffcv", "reference"]
    for setting in available_backends(jpeg, IMAGENET, CPU):
        assert resolve_backend(setting, jpeg, IMAGENET, CPU, cached=PixelSource("reference")) == setting
    for setting, records, recipe, words in (
        ("resident", jpeg, CIFAR, "it needs raw records, and these are JPEG; or use data.backend=ffcv"),
        ("resident", raw, IMAGENET, "cannot resize, as recipe random_resized_crop 32 .*; or use data.backend=ffcv"),
        ("dali", raw, CIFAR, "it needs JPEG records.*; or use data.backend=ffcv or data.backend=resident"),
    ):
        with pytest.raises(UserError, match=f"data.backend={setting}: .*{words}"):
            resolve_backend(setting, records, recipe, CPU)
    monkeypatch.setattr(choice, "_device_bytes", lambda device: 40_000)
    with pytest.raises(UserError, match="the images take 0.0 GB, a quarter of the memory of cpu is 0.0 GB; or use"):
        resolve_backend("resident", raw, CIFAR, CPU)
    monkeypatch.setattr(choice, "library_path", lambda: None)
    monkeypatch.setattr(choice, "_dali_installed", lambda: False)
    for setting, cached in (("ffcv", None), ("auto", "ffcv"), ("dali", None), ("auto", "dali cpu 2.4.0")):
        with pytest.raises(UserError, match="not installed; run `bash tools/setup.sh`; or use data.backend=reference"):
            resolve_backend(setting, jpeg, IMAGENET, CPU, cached and PixelSource.parse(cached))


def test_what_is_installed_here_is_found(jpeg: Records) -> None:
    """The rule and the imports agree on what this machine has."""
    for name in available_backends(jpeg, IMAGENET, CPU):
        assert refusal(name, jpeg, IMAGENET, CPU) is None
        choice.make_backend(name, jpeg, view_params(IMAGENET, 0), 1, "first", CPU, 0.5)
