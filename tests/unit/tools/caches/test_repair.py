"""tools/logits.py repair: it deletes what is bad and no more, and names the command that writes it again."""

import json
import os
import time
from pathlib import Path

import pytest
from helpers.cache_damage import B00, B01, B10, B11, Run, change
from helpers.small_caches import cache_files, fill, identity_of, write_cell

from pipelines.errors import UserError
from pipelines.files import temporary_path
from pipelines.logits import CacheWriter, LogitCache
from pipelines.logits.identity import identity_bytes, identity_hash
from pipelines.logits.writer import LEFTOVER_SECONDS
from pipelines.records.reader import Records


def test_what_is_bad_goes_and_is_written_again(cache: Path, intact: Path, many: Records, run: Run) -> None:
    change(cache / B00, 3000)
    (cache / B11).unlink()
    whole = cache_files(intact)
    code, out, err = run("repair", cache)
    assert code == 0 and [line for line in err.splitlines() if line.startswith("deleted")] == [
        "deleted: done.json",
        f"deleted: {B00}",
    ]
    assert cache_files(cache) == {name: data for name, data in whole.items() if name not in (B00, B11)}
    with pytest.raises(UserError, match="unfinished"):
        LogitCache(cache)
    assert "2 files to write again; type " in out
    fill(CacheWriter(cache.parent, "t", identity_of(many), many.rows()), 2)
    assert cache_files(cache) == whole
    code, out, err = run("repair", cache)
    assert code == 0 and "nothing to repair: 4 blocks, all whole" in out and "deleted" not in err


def test_done_json_goes_before_any_block(cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its first deletion, repair leaves an unfinished cache, not a complete one with a hole."""
    change(cache / B10, 3000)
    unlink = Path.unlink

    def only_one(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".lc":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", only_one)
    assert run("repair", cache)[0] == 130
    assert (cache / B10).exists() and not (cache / "done.json").exists()


@pytest.mark.parametrize("name", ["done.json", "made.json"])
def test_only_a_file_of_facts_is_bad(cache: Path, intact: Path, many: Records, run: Run, name: str) -> None:
    (cache / name).write_text("{")
    code, out, err = run("repair", cache)
    assert code == 0 and f"deleted: {name}" in err and err.count("deleted") == 1 and "1 file to write again" in out
    assert cache_files(cache) == cache_files(intact) and (cache / "done.json").exists() == (name != "done.json")
    fill(CacheWriter(cache.parent, "t", identity_of(many), many.rows()), 2)
    assert run("verify", cache)[0] == 0


def test_a_bad_block_beyond_what_is_declared_leaves_the_cache_complete(cache: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(cache.parent, "t", identity_of(many), many.rows())
    write_cell(writer, (2, 0))
    change(cache / "v002/b00000.lc", 3000)
    code, _, err = run("repair", cache)
    assert code == 0 and "deleted: v002/b00000.lc" in err and "done.json" not in err
    assert LogitCache(cache).views == 2


def test_all_blocks_are_foreign_when_the_identity_is(cache: Path, many: Records, run: Run) -> None:
    """identity.json exchanged and the folder renamed to fit: it is not the blocks that are to be deleted."""
    identity = identity_of(many, seed=1)
    (cache / "identity.json").write_bytes(identity_bytes(identity))
    renamed = cache.rename(cache.with_name(f"t-{identity_hash(identity).hex()[:12]}"))
    before = cache_files(renamed)
    assert run("verify", renamed)[0] == 2
    code, _, err = run("repair", renamed)
    assert code == 2 and "not one of its 4 blocks fits its identity.json and index.bin" in err
    assert "nothing was deleted" in err and cache_files(renamed) == before and (renamed / "done.json").exists()


def test_leftovers_go_when_they_are_old(cache: Path, run: Run) -> None:
    old, young = temporary_path(cache / B00), temporary_path(cache / B00)
    for path in (old, young):
        path.write_bytes(b"x")
    past = time.time() - LEFTOVER_SECONDS - 60
    os.utime(old, (past, past))
    code, out, err = run("repair", cache)
    assert code == 0 and "nothing to repair" in out and f"deleted: {old.relative_to(cache)}" in err
    assert young.exists() and not old.exists() and (cache / "done.json").exists()


def test_strays_stay(cache: Path, run: Run) -> None:
    (cache / "notes.txt").write_text("mine")
    change(cache / B00, 3000)
    assert run("repair", cache)[0] == 0 and (cache / "notes.txt").exists()


def test_a_block_that_cannot_be_read_may_be_whole(cache: Path, run: Run) -> None:
    """Nothing is deleted when one bad file cannot be opened: a folder in its place stands for a lack of rights."""
    change(cache / B00, 3000)
    (cache / B01).unlink()
    (cache / B01).mkdir()
    code, _, err = run("repair", cache)
    assert code == 2 and f"cannot read or delete {cache / B01}" in err and "check permissions" in err
    assert (cache / B00).exists() and (cache / "done.json").exists()


def command_of(out: str) -> list[str]:
    return out.splitlines()[-1].split()


def test_the_command_that_wrote_the_cache(cache: Path, run: Run) -> None:
    """Its own words, but for the folder, which may have moved, and the views that there are now."""
    argv = ["train/cache_logits.py", "my.yaml", "distill.teacher=bsce", "cache.dir=elsewhere", "data.views=1", "seed=3"]
    sessions = [{"argv": ["x", "old.yaml"], "views": 1}, {"argv": argv, "views": 2}]
    (cache / "made.json").write_text(json.dumps({"sessions": sessions}))
    change(cache / B00, 3000)
    out = run("repair", cache)[1]
    assert "as the last time" in out and command_of(out) == [
        *("python", "train/cache_logits.py", "my.yaml", "distill.teacher=bsce", "seed=3"),
        *("data.views=2", f"cache.dir={cache.parent}"),
    ]


def test_the_command_as_far_as_it_is_known(cache: Path, run: Run) -> None:
    (cache / "made.json").unlink()
    change(cache / B00, 3000)
    out = run("repair", cache)[1]
    known = ["distill.teacher=t", "data.seed=0", "cache.codec=f32", "cache.batch=64", "precision=fp32", "data.views=2"]
    assert "CONFIG is the configuration of the cache's students" in out
    assert command_of(out) == ["python", "train/cache_logits.py", "CONFIG", *known, f"cache.dir={cache.parent}"]


def test_an_unfinished_cache_may_need_more_views_than_it_has(tmp_path: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(many), many.rows())
    write_cell(writer, (0, 0))
    code, out, err = run("repair", writer.folder)
    assert code == 0 and "unfinished; type" in out and "data.views" not in out and "deleted" not in err
    assert writer.has((0, 0))
