"""The layout of records is FFCV's: its own package has the same, and reads our files; of its files we say what they are.

The package runs in one separate process: importing it takes seconds and sets torch to one thread, and a fault in its threads
hangs the caller.
"""

import pickle
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import warm
from helpers.drawings import picture
from helpers.odd_files import unpacked

from pipelines.errors import UserError
from pipelines.records import encoding, layout
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

pytestmark = pytest.mark.skipif(encoding.decoder_name() != "libffcv", reason="FFCV is not installed")

PROGRAM = """
import os
import pickle
import sys
import numpy as np
from ffcv import DatasetWriter, types
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader
from ffcv.pipeline.compiler import Compiler

os.chdir(sys.argv[1])
with open("layout.pickle", "wb") as file:
    fields = [RGBImageField()] + [IntField() for _ in range(int(sys.argv[2]))]
    kinds = {number: kind.__name__ for number, kind in types.TYPE_ID_HANDLER.items() if kind is not None}
    pickle.dump({
        "TABLE": types.get_metadata_type(fields), "HEADER": types.HeaderType, "FIELD": types.FieldDescType,
        "ALLOCATION": types.ALLOC_TABLE_TYPE, "FFCV_VERSION": types.CURRENT_VERSION, "kinds": kinds,
    }, file)

stock = DatasetWriter("stock.beton", {"image": RGBImageField(), "label": IntField()}, num_workers=1)
pixels = np.zeros((4, 4, 3), np.uint8)
stock.from_indexed_dataset([(pixels, 0), (pixels, 1)])

found = {}
for os_cache in (True, False):
    Compiler.set_enabled(os_cache)  # compiling takes seconds; with its own cache, only the pages come from elsewhere
    loaders = {
        "raw": Loader("raw.beton", 5, 1, os_cache, drop_last=False),
        "jpeg": Loader(
            "jpeg.beton", 5, 1, os_cache, drop_last=False,
            pipelines={"image": [CenterCropRGBImageDecoder((48, 48), ratio=1.0)],
                       "key": None, "width": None, "height": None, "source": None, "crc": None},
        ),
    }
    for kind, loader in loaders.items():
        batches = [[np.array(column) for column in batch] for batch in loader]
        names = loader.reader.field_names if kind == "raw" else ["image", "label"]
        for name, column in zip(names, zip(*batches)):
            found[f"{kind}-{os_cache}-{name}"] = np.concatenate(column)
np.savez("found.npz", **found)
"""


class Made(NamedTuple):
    folder: Path
    arrays: np.ndarray
    "what raw.beton holds, uint8 [13, 800, 900, 3]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder with raw.beton and jpeg.beton of ours, and what the program has made beside them."""
    folder, rng = tmp_path_factory.mktemp("stock"), np.random.default_rng(0)
    arrays = rng.integers(0, 256, (13, 800, 900, 3), np.uint8)  # 2 MB each, three fit on a page
    samples = [Sample(f"r{number}", number % 4, array) for number, array in enumerate(arrays)]
    write_records(folder / "raw.beton", samples, list("abcd"), kind="test")
    files = [folder / f"{number}.jpg" for number in range(13)]
    for number, file in enumerate(files):
        image = picture(48, 48, number)
        (image.convert("L") if number == 4 else image).save(file, quality=90)
    samples = [Sample(file.name, number % 4, file) for number, file in enumerate(files)]
    write_records(folder / "jpeg.beton", samples, list("abcd"), kind="test")
    command = [warm.python(), "-c", PROGRAM, str(folder), str(len(layout.FIELD_NAMES) - 1)]
    subprocess.run(command, check=True, timeout=300)
    return Made(folder, arrays)


def test_dtypes_are_ffcvs(made: Made) -> None:
    theirs: dict[str, Any] = pickle.loads((made.folder / "layout.pickle").read_bytes())
    kinds = theirs.pop("kinds")
    assert {name: getattr(layout, name) for name in theirs} == theirs and len(theirs) == 5
    assert [kinds[number] for number in layout.FIELD_TYPES] == ["RGBImageField"] + ["IntField"] * 6


def test_a_file_of_ffcvs_own_is_told(made: Made) -> None:
    with pytest.raises(UserError) as caught:
        Records(made.folder / "stock.beton")
    message = str(caught.value)
    assert message.startswith(f"{made.folder}/stock.beton: an FFCV file, but not one of ours") and "\n" not in message
    assert "image, label found" in message and "tools/convert.py" in message


def test_the_stock_ffcv_loader_reads_our_files(made: Made) -> None:
    found = np.load(made.folder / "found.npz")
    raw, jpeg = Records(made.folder / "raw.beton"), Records(made.folder / "jpeg.beton")
    assert len(set(raw.offsets // layout.PAGE_SIZE)) == 5
    for os_cache in (True, False):
        assert (found[f"raw-{os_cache}-image"] == made.arrays).all()
        columns = {"label": raw.labels, "key": raw.keys, "width": raw.widths, "height": raw.heights}
        columns |= {"source": raw.sources, "crc": raw.crcs}
        for name, column in columns.items():
            assert (found[f"raw-{os_cache}-{name}"].squeeze(1) == column).all(), name
        assert (found[f"jpeg-{os_cache}-label"].squeeze(1) == jpeg.labels).all()
        for position, pixels in enumerate(found[f"jpeg-{os_cache}-image"]):
            assert np.abs(pixels - unpacked(jpeg.payload(position))).mean() < 2, position
