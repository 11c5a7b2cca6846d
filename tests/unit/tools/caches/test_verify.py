"""tools/logits.py verify: every damage is named, by block and reason, and other pixels than the teacher's are refused."""

import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cache_damage import B00, B01, B10, B11, RECORD, Run, change, cut, edit, swap
from helpers.small_caches import (
    CLASSES,
    FEW,
    MANY,
    RECIPE,
    identity_of,
    logits_of,
    make_records,
    some_samples,
    write_cell,
)

from pipelines.augment.finish import Finish
from pipelines.files import temporary_path
from pipelines.loader import Loader
from pipelines.logits import CacheWriter
from pipelines.logits.blocks import HEADER
from pipelines.logits.fingerprint import Fingerprinter
from pipelines.logits.folder import open_folder, read_done, write_done
from pipelines.records.reader import Records


def test_a_whole_cache_is_whole(intact: Path, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in intact.rglob("*")}
    for path in (intact, intact.parent):
        code, out, err = run("verify", path)
        assert code == 0 and "bad" not in err and "note" not in err
        assert "every checksum of 4 blocks and 8,266 records is right; 2 views complete" in out
    assert {path: path.stat().st_mtime_ns for path in intact.rglob("*")} == before


def test_an_unfinished_cache_is_no_bad_one(tmp_path: Path, many: Records, run: Run) -> None:
    """Every visible block is checked, whatever is still missing."""
    writer = CacheWriter(tmp_path, "t", identity_of(many), many.rows())
    assert "every checksum of 0 blocks" in run("verify", writer.folder)[1]
    for cell in ((0, 1), (3, 0)):
        write_cell(writer, cell)
    code, out, _ = run("verify", writer.folder)
    assert code == 0 and "every checksum of 2 blocks and 4,133 records is right; unfinished" in out
    change(writer.folder / "v003/b00000.lc", 5000)
    assert run("verify", writer.folder)[0] == 2


def swap_records(folder: Path) -> None:
    """Two records change places with their checksums, and the file is sealed again."""
    path = folder / "v001/b00001.lc"
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    split = HEADER.itemsize + 37 * RECORD
    for table in (data[HEADER.itemsize : split].reshape(37, RECORD), data[split : split + 4 * 37].reshape(37, 4)):
        table[[3, 8]] = table[[8, 3]]
    path.write_bytes(data[:-4].tobytes() + zlib.crc32(data[split:-4].tobytes()).to_bytes(4, "little"))


def foreign_sums(folder: Path) -> None:
    """A done.json with a right seal, but of other blocks."""
    kind = open_folder(folder).kind
    views, certificate = read_done(folder, kind)
    write_done(folder, kind, views, certificate * 0.9)


@pytest.mark.parametrize(
    ("harm", "bad"),
    [
        (
            lambda f: change(f / B00, HEADER.itemsize + 77 * RECORD),
            {B00: "1 of 4096 records are damaged, the first of"},
        ),
        (lambda f: change(f / B01, 9), {B01: "its header is not that of view 0, block 1"}),
        (lambda f: change(f / B10, -1), {B10: "its checksums are damaged"}),
        (lambda f: change(f / B10, -200), {B10: "its checksums are damaged"}),
        (cut(B11, 900), {B11: "900 bytes instead of"}),
        (cut(B11, 0), {B11: "0 bytes instead of"}),
        (swap(B00, B10), {B00: "its header is not that of view 0", B10: "its header is not that of view 1"}),
        (swap(B00, B01), {B00: "bytes instead of", B01: "bytes instead of"}),
        (swap_records, {B11: "2 of 37 records are damaged"}),
        (lambda f: (f / B01).unlink(), {B01: "is missing"}),
        (lambda f: shutil.rmtree(f / "v001"), {B10: "is missing", B11: "is missing"}),
        (edit("done.json", '"views": 2', '"views": 3'), {"done.json": "damaged, edited or of another cache"}),
        (cut("done.json", 20), {"done.json": "not JSON"}),
        (foreign_sums, {"done.json": "its certificate is not the sum of its blocks'"}),
        (cut("made.json", 4), {"made.json": "not JSON"}),
        (lambda f: (f / "made.json").write_text("[]"), {"made.json": "damaged"}),
    ],
)
def test_each_bad_file_is_named_with_block_and_reason(
    cache: Path, run: Run, harm: Callable[[Path], None], bad: dict[str, str]
) -> None:
    harm(cache)
    code, out, err = run("verify", cache)
    listed = [line for line in err.splitlines() if line.startswith("bad: ")]
    assert code == 2 and out == "" and len(listed) == len(bad)
    for line, (name, why) in zip(listed, bad.items(), strict=True):
        assert str(cache / name) in line and why in line
        where = f"view {int(name[1:4])}, block {int(name[6:11])}: " if name.endswith(".lc") else ""
        assert line.startswith(f"bad: {where}{cache / name}")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {cache}: {len(bad)} bad file")
    assert ", ".join(bad) in error and error.endswith(f"tools/logits.py repair {cache}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (edit("identity.json", '"data_seed": 0', '"data_seed": 1'), "its name should end in"),
        (edit("identity.json", '"data_seed": 0', '"data_seed":  0'), "identity.json was edited or damaged"),
        (cut("identity.json", 30), "identity.json is damaged: not JSON"),
        (lambda f: (f / "identity.json").unlink(), "identity.json is missing"),
        (lambda f: change(f / "index.bin", 100), "index.bin is damaged or of another dataset"),
        (cut("index.bin", 320), "index.bin is damaged or of another dataset"),
        (lambda f: (f / "index.bin").unlink(), "index.bin: No such file"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "repair"])
def test_without_identity_and_index_nothing_is_judged_or_deleted(
    cache: Path, run: Run, command: str, harm: Callable[[Path], None], words: str
) -> None:
    harm(cache)
    before = sorted(cache.rglob("*"))
    code, out, err = run(command, cache)
    assert code == 2 and out == "" and words in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(cache.rglob("*")) == before


def test_the_index_of_another_dataset(cache: Path, tmp_path: Path, run: Run) -> None:
    other = make_records(tmp_path / "other.beton", some_samples(MANY, seed=1))
    (cache / "index.bin").write_bytes(other.rows().tobytes())
    code, _, err = run("verify", cache)
    assert code == 2 and "index.bin is damaged or of another dataset" in err


def test_any_flipped_bit_is_found(cache: Path, run: Run) -> None:
    """At random places of every file that a target depends on."""
    rng = random.Random(0)
    for path in sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "made.json"):
        whole = path.read_bytes()
        for _ in range(4):
            change(path, rng.randrange(len(whole)), 1 << rng.randrange(8))
            code, _, err = run("verify", cache)
            assert code == 2 and path.name in err
            path.write_bytes(whole)
    assert run("verify", cache)[0] == 0


def test_what_does_not_belong_there_is_said_and_does_no_harm(cache: Path, run: Run) -> None:
    strays = [cache / name for name in ("notes.txt", "v000/b00002.lc", "v000/b00000.lc.bak", "v0/b00000.lc")]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    temporary = temporary_path(cache / B00)
    temporary.write_bytes(b"x")
    code, _, err = run("verify", cache)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == 5
    assert all(any(f"note: {path} is not part of a cache" in line for line in notes) for path in strays)
    assert any(f"note: {temporary} is being written, or was left" in line for line in notes)


def seen_by_a_teacher(parent: Path, records: Records, shift: Callable[[int, torch.Tensor], torch.Tensor]) -> Path:
    """A cache of two views with the fingerprints of the crops themselves, as `shift` changes those of a view."""
    cpu = torch.device("cpu")
    finish = Finish([0.5] * 3, [0.5] * 3, cpu, channels_last=False)
    loader = Loader(records, RECIPE, seed=0, backend="reference", finish=finish, device=cpu)
    writer = CacheWriter(parent, "t", identity_of(records), records.rows())
    by_key, fingerprint = np.argsort(records.keys), Fingerprinter()
    for cell in writer.missing(2):
        positions = by_key[writer.block_rows(cell[1])]
        views = np.full(len(positions), cell[0], np.int32)
        (batch,) = loader.batches(positions, views, len(positions))
        writer.write(cell, logits_of(batch.keys, cell[0]), fingerprint(shift(cell[0], batch.pixels)))
    writer.finish(2, None)
    return writer.folder


def unchanged(view: int, pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def nudged(view: int, pixels: torch.Tensor) -> torch.Tensor:
    """One grey level, as another JPEG decoder would."""
    return pixels + (pixels < 255).to(torch.uint8)


def inverted_later(view: int, pixels: torch.Tensor) -> torch.Tensor:
    return 255 - pixels if view else pixels


def test_the_pixels_of_the_teacher(tmp_path: Path, many: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, many, unchanged)
    for samples, count in (("all", "8,266"), (50, "50"), (10**6, "8,266")):
        code, out, err = run("verify", folder, "--data", many.path, "--samples", samples)
        assert code == 0 and "is not" not in err
        assert f"{count} crops of {many.path}" in out and f"{count.replace(',', '')} same, 0 close, 0 other" in out


def test_pixels_of_another_decoder_are_close(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, nudged)
    code, out, _ = run("verify", folder, "--data", few.path)
    assert code == 0 and "82 crops" in out and "0 same, 82 close, 0 other" in out


def test_other_pixels_are_refused_by_name(tmp_path: Path, few: Records, run: Run) -> None:
    """One view out of two: a dozen crops spread over the cache find it."""
    folder = seen_by_a_teacher(tmp_path, few, inverted_later)
    code, out, err = run("verify", folder, "--data", few.path, "--samples", 12)
    assert code == 2 and "6 same, 0 close, 6 other" in out
    error = err.splitlines()[-1]
    names = {few.name(i): few.keys[i] for i in range(FEW)}
    assert error.startswith(f"error: {folder}: 6 crops of {few.path} show other pixels than the teacher saw: s/")
    shown = [part.split(" (")[0] for part in error.split("saw: ")[1].split("view 1), ")]
    assert all(f"{name} (key {names[name]}, view 1)" in error for name in shown[:3]) and "and 3 more" in error


def test_every_cell_has_its_share_of_the_samples(tmp_path: Path, many: Records, run: Run) -> None:
    """Fifty of 8266 crops: half of them in each view, and none of the smallest block left out of a larger sample."""
    folder = seen_by_a_teacher(tmp_path, many, inverted_later)
    assert "25 same, 0 close, 25 other" in run("verify", folder, "--data", many.path, "--samples", 50)[1]
    err = run("verify", folder, "--data", many.path, "--samples", "all")[2]
    assert f"error: {folder}: 4,133 crops of" in err


def test_part_of_the_data(tmp_path: Path, many: Records, run: Run) -> None:
    """A subset in another order is checked by its own images."""
    folder = seen_by_a_teacher(tmp_path, many, unchanged)
    samples = some_samples(MANY)
    chosen = [samples[i] for i in np.random.default_rng(0).permutation(MANY)[:20]]
    subset = make_records(tmp_path / "subset.beton", chosen)
    code, out, _ = run("verify", folder, "--data", subset.path, "--samples", "all")
    assert code == 0 and "40 crops" in out and "40 same, 0 close, 0 other" in out


def test_other_data_are_refused_before_any_pixel(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, unchanged)
    other = make_records(tmp_path / "other.beton", some_samples(FEW, seed=1))
    classes = make_records(tmp_path / "classes.beton", some_samples(FEW), CLASSES[::-1])
    for records, words in ((other, "dataset.digest: another dataset"), (classes, "dataset.class_names: ")):
        code, out, err = run("verify", folder, "--data", records.path)
        assert code == 2 and f"{records.path} is not the data of {folder}: {words}" in err and "crops" not in out


def test_the_blocks_of_an_unfinished_cache_are_compared(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, inverted_later)
    (folder / "done.json").unlink()
    (folder / "v001/b00000.lc").unlink()
    code, out, _ = run("verify", folder, "--data", few.path, "--samples", "all")
    assert code == 0 and "unfinished" in out and "41 same, 0 close, 0 other" in out
