"""Repair: what is found, what stays unchanged, and that a cache of the original serves the repaired file."""

from pathlib import Path

import numpy as np
import pytest
from helpers.odd_files import odd_files
from helpers.small_caches import logits_of, make_cache, make_records, some_samples, wanted_of

from pipelines.errors import UserError
from pipelines.logits.reader import LogitCache
from pipelines.records import layout, writing
from pipelines.records.encoding import Stored
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from tools.conversion.repair import find_damaged, rebuild


def nothing() -> None:
    """A progress callback that does nothing."""


def flip(path: Path, *positions: int) -> None:
    """Flip one bit in the middle of the stored bytes of some records."""
    opened = Records(path)
    places = [int(opened.offsets[i] + opened.sizes[i] // 2) for i in positions]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 8
    path.write_bytes(data)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """40 raw images of five classes, of which three are damaged."""
    path = tmp_path / "raw.beton"
    make_records(path, some_samples(40))
    flip(path, 3, 17, 38)
    return path


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_damage_is_found_by_name_key_and_reason(raw: Path, workers: int) -> None:
    seen: list[int] = []
    found = find_damaged(Records(raw), workers, lambda: seen.append(1))
    assert [(image.position, image.name, image.why) for image in found] == [
        (3, "s/3", "its CRC-32 differs"),
        (17, "s/17", "its CRC-32 differs"),
        (38, "s/38", "its CRC-32 differs"),
    ]
    assert [image.key for image in found] == [layout.sample_key(image.name) for image in found]
    assert len(seen) == 40


def test_an_image_that_does_not_decode_is_found_under_a_right_checksum(tmp_path: Path) -> None:
    good, bad = odd_files()["plain.jpg"].data, odd_files()["truncated.jpg"].data
    path, position = tmp_path / "a.beton", 41
    with writing._new_file(path, 60, force=False) as writer:
        for number in range(60):
            payload = bad if number == position else good
            stored = Stored(payload, layout.MODE_JPEG, 60, 40, 60, 40, number)
            writer.add(str(number), 0, layout.sample_key(str(number)), stored)
        writer.finish(["any"], {"kind": "test"})
    Records(path).verify(position)
    found = find_damaged(Records(path), 2, nothing)
    assert [image.name for image in found] == ["41"] and "does not decode it" in found[0].why


def test_what_stays_is_unchanged_and_the_original_untouched(tmp_path: Path, raw: Path) -> None:
    before, old = raw.read_bytes(), Records(raw)
    made = []
    for name in ("one", "two"):
        rebuild(old, find_damaged(old, 1, nothing), tmp_path / f"{name}.beton", False, nothing)
        made.append((tmp_path / f"{name}.beton").read_bytes())
    assert made[0] == made[1] and raw.read_bytes() == before
    new = Records(tmp_path / "one.beton")
    stay = [i for i in range(40) if i not in (3, 17, 38)]
    assert [new.name(i) for i in range(37)] == [old.name(i) for i in stay]
    for column in ("keys", "labels", "widths", "heights", "sources", "crcs", "raw"):
        assert (getattr(new, column) == getattr(old, column)[stay]).all(), column
    assert all((new.payload(k) == old.payload(i)).all() for k, i in enumerate(stay))
    assert new.class_names == old.class_names and not find_damaged(new, 1, nothing)


def test_the_manifest_keeps_how_it_was_made_and_adds_what_is_gone(tmp_path: Path, raw: Path) -> None:
    old, once, twice = Records(raw), tmp_path / "once.beton", tmp_path / "twice.beton"
    rebuild(old, find_damaged(old, 1, nothing), once, False, nothing)
    made = Records(once).manifest["made"]
    why = "its CRC-32 differs"
    gone = [{"name": f"s/{i}", "key": layout.sample_key(f"s/{i}"), "why": why} for i in (3, 17, 38)]
    assert made == old.manifest["made"] | {"dropped": gone}
    flip(once, 0)
    rebuild(Records(once), find_damaged(Records(once), 1, nothing), twice, False, nothing)
    assert [image["name"] for image in Records(twice).manifest["made"]["dropped"]] == ["s/3", "s/17", "s/38", "s/0"]


def test_a_cache_of_the_original_serves_the_repaired_file(tmp_path: Path, raw: Path) -> None:
    old = Records(raw)
    cache = LogitCache(make_cache(tmp_path, old, views=2))
    rebuild(old, find_damaged(old, 1, nothing), tmp_path / "new.beton", False, nothing)
    new = Records(tmp_path / "new.beton")
    assert new.digest != old.digest
    assert cache.require(wanted_of(new), 2, "same") == ["dataset: 37 of the cache's 40 samples"]
    found = cache.gather(new.keys, np.ones(37, np.int32))
    assert np.array_equal(found.numpy(), logits_of(new.keys, 1))


def test_nothing_is_written_where_nothing_is_whole(tmp_path: Path) -> None:
    path, out = tmp_path / "a.beton", tmp_path / "b.beton"
    write_records(path, [Sample("x", 0, np.zeros((4, 4, 3), np.uint8))], ["any"], kind="test")
    flip(path, 0)
    with pytest.raises(UserError, match=r"a\.beton: not one image is intact; convert it again with"):
        rebuild(Records(path), find_damaged(Records(path), 1, nothing), out, False, nothing)
    assert not out.exists()
