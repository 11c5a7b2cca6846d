"""Drills on the logit cache: writers killed at random moments, and random damage. Short in the suite, long in long.py.

The kill drill runs train/cache_logits.py itself, under the warm Python (helpers.warm), because a start of three seconds would be
over only when there is nothing left to kill.
"""

import contextlib
import io
import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from helpers.launch import finish, run, start
from helpers.small_caches import cache_files

from pipelines.errors import UserError
from pipelines.logits import LogitCache
from pipelines.logits.blocks import BLOCK_ROWS, HEADER, open_block, record_crcs
from pipelines.logits.folder import open_folder

# ---- kills ----


class Watched(NamedTuple):
    """What a reader beside the writers has seen: the number of blocks it opened, and what was wrong with any."""

    blocks: int
    faults: list[str]


def _watch(parent: Path, stop: threading.Event) -> Watched:
    """Open and verify every block as soon as it is visible, until told to stop; then look once more."""
    seen: dict[Path, int] = {}
    faults, last = [], False
    while not last:
        last = stop.is_set()
        for path in parent.glob("*/v*/b*.lc"):
            stamp = path.stat().st_ino
            if seen.get(path) != stamp:
                seen[path] = stamp
                fault = block_fault(path)
                if fault:
                    faults.append(fault)
        time.sleep(0.004)  # to look takes one
    return Watched(len(seen), faults)


def block_fault(path: Path) -> str:
    """What is wrong with one block of a cache (header, checksums, every record); "" if nothing is."""
    try:
        opened = open_folder(path.parents[1])
        view, block = int(path.parent.name[1:]), int(path.stem[1:])
        keys = opened.rows["key"][block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        found = open_block(path.parents[1], opened.kind, view, block, len(keys))
    except UserError as error:
        return str(error)
    bad = np.flatnonzero(record_crcs(found.records, np.ascontiguousarray(keys), view) != found.crcs)
    return f"{path}: {len(bad)} records are damaged" if len(bad) else ""


def kill_writers(folder: Path, config: Path, views: int, kills: int, seed: int) -> Watched:
    """Two writers at a time on one cache in folder/killed, each killed at a random moment, while this process reads.

    folder holds the finished teacher `t`. Afterwards one more run completes the cache. Fails when any block was ever seen
    torn, or when the killed cache differs by a byte from an undisturbed one in folder/calm.
    """
    arguments = [config, "distill.teacher=t", f"data.views={views}", "cache.batch=64"]
    rng, stop = random.Random(seed), threading.Event()
    run("cache_logits", *arguments, "cache.dir=calm", cwd=folder)
    (folder / "killed").mkdir()
    watching = ThreadPoolExecutor(1)
    watcher = watching.submit(_watch, folder / "killed", stop)
    writers: list[tuple[subprocess.Popen[str], float]] = []
    killed = 0

    total = sum(1 for _ in (folder / "calm").rglob("*.lc"))

    def spent() -> bool:
        """Whether the cache has grown by this kill's share of its blocks: on any machine, blocks must be left for all kills."""
        return sum(1 for _ in (folder / "killed").rglob("*.lc")) > total * (killed + 1) / (kills + 1)

    def begin() -> subprocess.Popen[str]:
        return start("cache_logits", *arguments, "cache.dir=killed", cwd=folder)

    try:
        # How long a writer takes to its first block on this machine now: kills fall before and after that.
        begun, process = time.monotonic(), begin()
        writers.append((process, math.inf))
        while not any((folder / "killed").rglob("*.lc")):
            assert process.poll() is None, finish(process)
            time.sleep(0.005)
        life = 4 * (time.monotonic() - begun)  # two writers at a time share the machine
        writers[0] = (process, begun)
        while killed < kills:
            while len(writers) < 2:
                writers.append((begin(), time.monotonic() + rng.uniform(0, life)))
            process, end = min(writers, key=lambda writer: writer[1])
            while process.poll() is None and time.monotonic() < end and not spent():
                time.sleep(0.02)
            if process.poll() is None:
                process.kill()
                killed += 1
            ended = finish(process)
            if ended.returncode == 0 and killed < kills:
                raise AssertionError(f"the cache was complete after {killed} kills: more views are needed")
            assert ended.returncode in (0, -signal.SIGKILL), ended
            writers.remove((process, end))
    finally:
        for process, _ in writers:
            process.kill()
            finish(process)
        stop.set()
        watching.shutdown()
    seen = watcher.result()
    run("cache_logits", *arguments, "cache.dir=killed", cwd=folder)
    calm, survived = (cache_files(next((folder / name).iterdir())) for name in ("calm", "killed"))
    assert len(calm) == views * -(-len(open_folder(next((folder / "calm").iterdir())).rows) // BLOCK_ROWS) + 2
    assert survived == calm, "a killed and resumed cache differs from an undisturbed one"
    assert not seen.faults, seen.faults
    return seen


# ---- damage ----

Harm = Callable[[Path, np.random.Generator], str]


def _pick(rng: np.random.Generator, items: list[Path]) -> Path:
    return items[int(rng.integers(len(items)))]


def _blocks(cache: Path) -> list[Path]:
    return sorted(cache.glob("v*/b*.lc"))


def _any_file(cache: Path) -> list[Path]:
    return [*_blocks(cache), cache / "identity.json", cache / "index.bin", cache / "done.json"]


def flip_bit(cache: Path, rng: np.random.Generator) -> str:
    path = _pick(rng, _any_file(cache))
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path.name


def truncate(cache: Path, rng: np.random.Generator) -> str:
    path = _pick(rng, _any_file(cache))
    path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])
    return path.name


def lengthen(cache: Path, rng: np.random.Generator) -> str:
    path = _pick(rng, _any_file(cache))
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 40))))
    return path.name


def swap_blocks(cache: Path, rng: np.random.Generator) -> str:
    one, other = rng.choice(len(_blocks(cache)), 2, replace=False)
    first, second = _blocks(cache)[one], _blocks(cache)[other]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return first.name


def swap_records(cache: Path, rng: np.random.Generator) -> str:
    """Swap two records of one block, or the records at one place of two blocks."""
    opened = open_folder(cache)
    size, one = opened.kind.record_bytes, _pick(rng, _blocks(cache))
    other = one if rng.integers(2) else _pick(rng, [path for path in _blocks(cache) if path != one])
    a, b = bytearray(one.read_bytes()), bytearray(other.read_bytes())
    fit = min(((len(data) - HEADER.itemsize) // (size + 4)) for data in (a, b))
    places = rng.choice(fit - 1, 2, replace=False) if one == other else [int(rng.integers(fit - 1))] * 2
    here, there = (
        slice(HEADER.itemsize + int(place) * size, HEADER.itemsize + (int(place) + 1) * size) for place in places
    )
    if one == other:
        a[here], a[there] = a[there], a[here]
        one.write_bytes(a)
    else:
        a[here], b[there] = b[there], a[here]
        one.write_bytes(a)
        other.write_bytes(b)
    return one.name


def edit_identity(cache: Path, rng: np.random.Generator) -> str:
    path = cache / "identity.json"
    text = path.read_text()
    codec = json.loads(text)["codec"]
    edits = [
        ('"data_seed": 0', '"data_seed": 4'),
        (f'"codec": "{codec}"', f'"codec": "{"u8" if codec != "u8" else "f16"}"'),
        ('"flip": true', '"flip": false'),
    ]
    old, new = edits[int(rng.integers(len(edits)))]
    assert old in text, text
    path.write_text(text.replace(old, new))
    return path.name


def foreign_index(cache: Path, rng: np.random.Generator) -> str:
    """Write an index of the same length with other labels or another order."""
    opened = open_folder(cache)
    rows = opened.rows.copy()
    if rng.integers(2):
        rows["label"] = (rows["label"] + 1) % opened.kind.classes
    else:
        rows = rows[rng.permutation(len(rows))]
    (cache / "index.bin").write_bytes(rows.tobytes())
    return "index.bin"


def remove_file(cache: Path, rng: np.random.Generator) -> str:
    path = _pick(rng, _any_file(cache))
    path.unlink()
    return path.name


def zero_range(cache: Path, rng: np.random.Generator) -> str:
    path = _pick(rng, _any_file(cache))
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(rng.integers(1, 200)))
    if not any(data[start:stop]):
        data[start] = 1  # there was nothing but zeros
    else:
        data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    return path.name


HARMS: list[Harm] = [
    flip_bit,
    truncate,
    lengthen,
    swap_blocks,
    swap_records,
    edit_identity,
    foreign_index,
    remove_file,
    zero_range,
]


def read_everything(cache: Path) -> None:
    """Read and check every record, as training does over an epoch of each view."""
    opened = LogitCache(cache)
    keys = np.ascontiguousarray(open_folder(cache).rows["key"])
    for view in range(opened.views):
        opened.gather(keys, np.full(len(keys), view, np.int32))


def accepted_damage(cache: Path, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """(damages done, what was wrong): tools/logits.py verify and reading must each refuse every one by name."""
    wrong, done = [], 0
    for harm, file, copy in damages(cache, folder, count, seed):
        done += 1
        for name, check in (("verify", verify), ("reading", reading)):
            said = check(copy)
            if said is None:
                wrong.append(f"{name} accepts {harm} of {file}")
            elif file not in said and copy.name not in said:
                wrong.append(f"{name} does not name {file} after {harm}: {said}")
    return done, wrong


def verify(cache: Path) -> str | None:
    """What tools/logits.py verify says of a cache; None when the cache is whole (without done.json it says: unfinished)."""
    from tools import logits

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = logits.main(["verify", str(cache)])
    assert code in (0, 2), f"exit code {code}: {said.getvalue()}"
    return said.getvalue() if code or "unfinished" in said.getvalue() else None


def reading(cache: Path) -> str | None:
    """The error with which training ends on a cache; None when every record is read."""
    try:
        read_everything(cache)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def damages(cache: Path, folder: Path, count: int, seed: int) -> Iterator[tuple[str, str, Path]]:
    """(harm, file harmed, damaged copy of the cache) `count` times."""
    rng = np.random.default_rng(seed)
    for number, harm in enumerate(itertools.islice(itertools.cycle(HARMS), count)):
        copy = folder / str(number) / cache.name
        shutil.copytree(cache, copy)
        yield harm.__name__, harm(copy, rng), copy
        shutil.rmtree(copy.parent)
