"""Small data sets in every layout that tools/convert.py takes, made from one tree of class folders."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pipelines.records.reader import Records
from tools import convert

WNIDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish", "n01484850": "great white shark"}
Files = Mapping[str, bytes]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((30, 24), Image.Resampling.BILINEAR).save(buffer, kind)
    return buffer.getvalue()


def imagenet(per_class: int = 4) -> dict[str, bytes]:
    """{n01440764/n01440764_10.JPEG: bytes, ...} in the order in which a folder is read."""
    names = [f"{wnid}/{wnid}_{10 + number}.JPEG" for wnid in WNIDS for number in range(per_class)]
    return {name: picture(seed) for seed, name in enumerate(names)}


def write_tree(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_parquet(
    path: Path,
    rows: Sequence[tuple[bytes | None, str | None, int | None]],
    names: Sequence[str] | None,
    group: int = 3,
    **columns: str,
) -> Path:
    """As the hub stores an image set: rows (bytes, file name, label); columns: their names where these are others."""
    image, label = columns.get("image", "image"), columns.get("label", "label")
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([(image, kind), (label, pyarrow.int64())])
    if names is not None:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    images = [None if data is None and file is None else {"bytes": data, "path": file} for data, file, _ in rows]
    table = pyarrow.table({image: images, label: [row[2] for row in rows]}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def imagenet_row(name: str, data: bytes) -> tuple[bytes, str, int]:
    """A row of the hub's ImageNet: it appends the class to the file's name."""
    wnid, file = name.split("/")
    return data, f"{file.removesuffix('.JPEG')}_{wnid}.JPEG", list(WNIDS).index(wnid)


def write_tar(path: Path, files: Files, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _words(*words: object) -> list[str]:
    """A command line; without processes of its own, unless it asks for some."""
    return [str(word) for word in (*words, *(() if "--workers" in words else ("--workers", 0)))]


def converted(*words: object) -> Records:
    """What a command of tools/convert.py writes; the last word is the file."""
    assert convert.main(_words(*words[:-1], "--out", words[-1])) == 0
    return Records(Path(str(words[-1])))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The last line that a failing command of tools/convert.py prints."""
    capsys.readouterr()
    assert convert.main(_words(*words)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def assert_same_records(ours: Records, others: Records) -> None:
    """Equal to the byte in all but the manifest's words on how they were made."""
    assert [ours.name(i) for i in range(len(ours))] == [others.name(i) for i in range(len(others))]
    for column in (
        "labels",
        "keys",
        "widths",
        "heights",
        "sources",
        "crcs",
        "stored_widths",
        "stored_heights",
        "offsets",
    ):
        assert (getattr(ours, column) == getattr(others, column)).all(), column
    assert (ours.digest, ours.class_counts.tolist()) == (others.digest, others.class_counts.tolist())
    assert [ours.payload(i).tobytes() for i in range(len(ours))] == [
        others.payload(i).tobytes() for i in range(len(ours))
    ]
