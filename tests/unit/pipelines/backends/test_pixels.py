"""The source of pixels: one for raw records, one for each decoder; its text reads as it was written."""

import numpy as np
import pytest
import torch

from pipelines.backends import PixelSource, pixel_source
from pipelines.records import Records, Sample, write_records

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("raw") / "a.beton"
    write_records(path, [Sample("a/0", 0, np.zeros((8, 8, 3), np.uint8))], ["a"], kind="test")
    return Records(path)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Records:
    from PIL import Image

    folder = tmp_path_factory.mktemp("jpeg")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "0.jpg")
    write_records(folder / "a.beton", [Sample("a/0", 0, folder / "0.jpg")], ["a"], kind="test")
    return Records(folder / "a.beton")


def test_raw_records_have_one_source_whatever_the_backend(raw: Records) -> None:
    sources = {pixel_source(name, raw, CPU) for name in ("resident", "ffcv", "reference")}
    assert sources == {PixelSource("raw")} and sources.pop().backend is None


def test_every_decoder_is_a_source_of_its_own(jpeg: Records) -> None:
    found = pixel_source("ffcv", jpeg, CPU), pixel_source("reference", jpeg, CUDA)
    assert [(str(one), one.backend) for one in found] == [("ffcv exact", "ffcv"), ("reference", "reference")]
    version = pytest.importorskip("nvidia.dali").__version__
    assert str(pixel_source("dali", jpeg, CPU)) == f"dali cpu {version}"
    assert str(pixel_source("dali", jpeg, CUDA)) == f"dali mixed {version}"
    assert pixel_source("dali", jpeg, CUDA).backend == "dali"


@pytest.mark.parametrize("text", ["raw", "ffcv", "ffcv exact", "dali cpu 2.4.0", "dali mixed 2.4.0"])
def test_the_text_reads_as_it_was_written(text: str) -> None:
    assert str(PixelSource.parse(text)) == text
