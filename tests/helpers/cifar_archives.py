"""CIFAR's python archives in all their forms: old and new pickles, packed or not, with made-up images."""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COARSE = [f"group {number}" for number in range(20)]


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 and numpy 1 wrote it: byte strings (opcodes U, T), numpy.core.multiarray."""
    return b"\x80\x02" + python2_item(value) + b"."


def python2_item(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return (b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_item, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2_item, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_item(part) for pair in value.items() for part in pair) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2_item((0,)) + python2_item("b")
    dtype = b"cnumpy\ndtype\n" + python2_item(("u1", 0, 1)) + b"R"
    dtype += python2_item((3, "|", None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + python2_item(1) + python2_item(value.shape) + dtype + python2_item(False)
    return empty + b"tR" + state + python2_item(value.tobytes()) + b"tb"


def bytes_keys(value: dict[str, Any]) -> dict[bytes, Any]:
    """The same content with bytes for str, as Python 3 sees the official archive after encoding='bytes'."""
    as_bytes: Callable[[Any], Any] = lambda item: item.encode("latin1") if isinstance(item, str) else item  # noqa: E731
    return {
        as_bytes(key): [as_bytes(item) for item in entry] if isinstance(entry, list) else as_bytes(entry)
        for key, entry in value.items()
    }


FORMS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "python 2": python2_pickle,
    "protocol 4, str": lambda value: pickle.dumps(value, protocol=4),
    "protocol 4, bytes": lambda value: pickle.dumps(bytes_keys(value), protocol=4),
    "protocol 5": lambda value: pickle.dumps(bytes_keys(value), protocol=5),
    "numpy 1": lambda value: pickle.dumps(bytes_keys(value), protocol=4).replace(
        b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    ),
}


def member(images: int, classes: int, seed: int, labels: str = "fine_labels") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "part",
        "data": rng.integers(0, 256, (images, 3072), np.uint8),
        labels: rng.permutation(np.arange(images) % classes).tolist(),
        "filenames": [f"photo_s_{seed}{number:05d}.png" for number in range(images)],
    }


def cifar100(form: Callable[[dict[str, Any]], bytes] = FORMS["protocol 4, bytes"]) -> dict[str, bytes]:
    meta = {"fine_label_names": [f"kind_{label}" for label in range(100)], "coarse_label_names": COARSE}
    return {"meta": form(meta), "train": form(member(300, 100, 1)), "test": form(member(200, 100, 2))}


def cifar10() -> dict[str, bytes]:
    names = {"label_names": [f"kind_{label}" for label in range(10)], "num_vis": 3072}
    parts = {f"data_batch_{part}": member(20, 10, part, "labels") for part in range(1, 6)}
    whole = {"batches.meta": names, **parts, "test_batch": member(30, 10, 9, "labels")}
    return {name: python2_pickle(content) for name, content in whole.items()}


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(f"some-folder/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
