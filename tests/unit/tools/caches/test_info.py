"""tools/logits.py info, of complete, unfinished and damaged caches."""

import json
import os
from pathlib import Path

from helpers.cache_damage import RECORD, Run, rows_of
from helpers.small_caches import MANY, identity_of, logits_of, write_cell

from pipelines.logits import CacheWriter
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.logits.identity import identity_hash
from pipelines.records.reader import Records


def test_info_of_a_complete_cache(cache: Path, many: Records, run: Run) -> None:
    session = {"host": "here", "time": 1.7e9, "argv": ["cache_logits.py", "my config.yaml"], "seconds": 2.5}
    (cache / "made.json").write_text(json.dumps({"sessions": [session]}))
    code, out, _ = run("info", cache.parent)
    rows = rows_of(out)
    size = sum(path.stat().st_size for path in cache.rglob("*.lc"))
    expected = {
        "dataset": f"4,133 samples, digest {many.digest}",
        "classes": "5: ant, bee, cat, ...",
        "recipe": "crop pad_crop, flip True, pad 1, size 4",
        "data_seed": "0",
        "codec": "f32",
        "record": f"{RECORD} bytes a sample and view",
        "identity": identity_hash(identity_of(many)).hex(),
        "views": "2 whole; 2 declared complete",
        "blocks": "4 of 4 in the views begun, 2 a view",
        "on disk": f"{size / 1e6:.1f} MB; a view has {size / 2e6:.1f} MB",
        "codec loses": "nothing: f32 keeps every bit",
    }
    assert code == 0 and str(cache) in out and expected.items() <= rows.items()
    assert f"weights {'ab' * 32}" in rows["teacher"] and "architecture resnet8" in rows["teacher"]
    right = sum((logits_of(many.keys, view).argmax(axis=1) == many.labels).sum() for view in range(2))
    assert rows["teacher right"] == f"{right / (2 * MANY):.2%} of 8,266 views, by plain argmax"
    assert "host here" in rows["session 1"] and "time 2023-11-1" in rows["session 1"]
    assert rows["session 1"].endswith("cache_logits.py 'my config.yaml'")


def test_info_of_an_unfinished_and_damaged_cache(tmp_path: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(many, codec="u8"), many.rows())
    assert rows_of(run("info", writer.folder)[1])["views"] == "0 whole; unfinished"
    for cell in ((0, 0), (0, 1), (2, 1), (3, 0)):
        write_cell(writer, cell)
    rows = rows_of(run("info", writer.folder)[1])
    assert rows["views"] == "1 whole; unfinished 2 views begun: 2, 3"
    assert rows["blocks"] == "4 of 6 in the views begun, 2 a view"
    assert rows["teacher right"].endswith(f"of {2 * BLOCK_ROWS + 2 * 37:,} views, by plain argmax")
    assert " at T=1, " in rows["codec loses"] and "1% is allowed" in rows["codec loses"]
    os.truncate(writer.folder / "v003/b00000.lc", 100)
    (writer.folder / "made.json").write_text('{"sessions": 3}')
    (writer.folder / "done.json").write_text("{}")
    (writer.folder / "notes.txt").write_text("")
    rows = rows_of(run("info", writer.folder)[1])
    assert "1 block; `verify` names them" in rows["damaged"] and "done.json is damaged" in rows["damaged"]
    assert rows["teacher right"].endswith(f"of {BLOCK_ROWS + 2 * 37:,} views, by plain argmax")
    assert rows["stray"] == "1 file, such as notes.txt"
